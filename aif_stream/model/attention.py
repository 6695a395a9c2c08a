"""Attention of each candidate over the whole long history: what BEA and LSH approximate. Judged, never served.

``exact``: softmax of scaled dot products. ``din``: DIN's MLP on [q, k, q − k, q ⊙ k] (Zhou et al. 2018), not
normalised but for the length; its first layer is split by input, so that only q ⊙ k costs B·L·D·A. ``hamming``: softmax
of the signatures' similarity, sharpened by a trained number: what the linear LSH term would be if it were not linear.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from aif_stream.model.config import HISTORY_KINDS, Kind, ModelConfig
from aif_stream.model.user_side import AGES, Histories

DIN_HIDDEN: Final = 36  # the DIN paper's
_SHARPNESS: Final = 8.0  # to begin with: an entry alike in 9 of 10 bits weighs 600 times one alike in half of them
_PAIRS: Final = 1 << 19  # candidates × entries at a time: 75 MB of DIN's hidden layer


class Remembered(NamedTuple):
    """Keys (R, L, D; signatures (R, L, W) of ``hamming``) and values (R, L, D), and which entries there are (R, L)."""

    key: Tensor
    value: Tensor
    mask: Tensor


class TargetAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, H, A = config.width, config.hidden, DIN_HIDDEN
        self.kind, self.age = nn.Embedding(HISTORY_KINDS, D), nn.Embedding(AGES, D)
        nn.init.normal_(self.kind.weight, std=0.05)
        nn.init.normal_(self.age.weight, std=0.05)
        self.query, self.key, self.value = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.share = nn.Linear(2 * D, H, bias=False)
        self.din, self.hamming = config.kind is Kind.DIN, config.kind is Kind.HAMMING
        if self.hamming:
            self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS))
        if self.din:
            self.of_query, self.of_key = nn.Linear(D, A), nn.Linear(D, A, bias=False)
            self.of_product = nn.Linear(D, A, bias=False)
            self.weigh = nn.Linear(A, 1)

    def remember(self, history: Histories) -> Remembered:
        """The user's part: (R, L, D) twice."""
        x = history.t + self.kind(history.kind) + self.age(history.age)
        if self.hamming:
            return Remembered(history.sigma, self.value(x), history.mask & history.sigma.any(-1))
        return Remembered(self.key(x), self.value(x), history.mask)

    def forward(self, t: Tensor, sigma: Tensor, history: Remembered) -> Tensor:
        """Candidates (R, B, D) with signs (R, B, W) -> their share of the first layer (R, B, H)."""
        R, B, _ = t.shape
        step = B if torch.is_grad_enabled() else max(1, _PAIRS // (R * history.key.shape[1]))
        cuts = [slice(at, at + step) for at in range(0, B, step)]
        parts = [self._read(t[:, cut], sigma[:, cut], history) for cut in cuts]
        share: Tensor = self.share(torch.cat(parts, dim=1))
        return share

    def _read(self, t: Tensor, sigma: Tensor, history: Remembered) -> Tensor:
        """(R, b, D), (R, b, W) -> [read, read ⊙ t] (R, b, 2D); zero for an empty history."""
        q, (k, value, mask) = self.query(t), history
        here = mask[:, None]  # (R, 1, L)
        if self.din:
            hidden = self.of_query(q)[:, :, None] + self.of_key(k)[:, None]  # (R, b, L, A)
            hidden = hidden + self.of_product(q[:, :, None] * k[:, None])  # (R, b, L, D) -> (R, b, L, A)
            weights = self.weigh(torch.relu(hidden))[..., 0] * here / here.sum(-1, keepdim=True).clamp(min=1)
        else:
            if self.hamming:  # 2 sim - 1, and 0 to every entry without content of one's own
                scores = sigma @ k.transpose(1, 2) * (self.sharpness / k.shape[-1])  # (R, b, W) @ (R, W, L)
            else:
                scores = q @ k.transpose(1, 2) / t.shape[-1] ** 0.5  # (R, b, D) @ (R, D, L)
            weights = torch.softmax(scores.masked_fill(~here, torch.finfo(scores.dtype).min), dim=-1) * here
        read = weights @ value  # (R, b, L) @ (R, L, D) -> (R, b, D)
        return torch.cat([read, read * t], dim=-1)
