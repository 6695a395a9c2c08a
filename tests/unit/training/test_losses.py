"""The losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from aif_stream.training.losses import diversity, rank_loss
from tests.precision import sum_bound


def test_the_rank_loss_is_the_mean_over_pairs_of_a_request() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # the 9 is padding, the second has no pair
    expected = torch.nn.functional.softplus(torch.tensor([-1.0, -2.0])).mean()
    assert rank_loss(logits, labels, weight) == pytest.approx(float(expected), abs=sum_bound(3, 3.0))
    assert rank_loss(logits[1:], labels[1:], weight[1:]) == 0


def test_diversity_is_nothing_for_orthogonal_and_all_for_equal_bridges() -> None:
    assert diversity(torch.eye(4) * 3) == 0
    assert diversity(torch.ones(4, 8)) == pytest.approx(1.0, abs=sum_bound(4 * 8, 1.0))
    assert diversity(torch.ones(1, 8)) == 0
