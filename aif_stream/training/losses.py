"""Losses beside BCE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as fn


def rank_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Pairwise logistic loss, each click of a request against each other impression of it; (R, B) thrice -> ().

    What a ranker is judged by (order within a user), where BCE also asks for the right chance. 0 without a pair.
    """
    pairs = (labels * weight)[:, :, None] * ((1 - labels) * weight)[:, None]  # (R, B, B): clicked before not
    gaps = logits[:, :, None] - logits[:, None]
    return (fn.softplus(-gaps) * pairs).sum() / pairs.sum().clamp(min=1)


def diversity(bridges: Tensor) -> Tensor:
    """Mean squared cosine between two bridges, (K, D) -> (); 0 for one bridge, and where all are orthogonal."""
    K = len(bridges)
    unit = fn.normalize(bridges, dim=1)
    cosines = unit @ unit.T
    return (cosines.square().sum() - torch.diagonal(cosines).square().sum()) / max(1, K * (K - 1))
