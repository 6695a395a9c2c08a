"""User side: profile and history → u, h_u, bridge read-outs, the signature matrix. Runs beside retrieval.

Batched over requests (R); a served request is R = 1. Histories are right-aligned: column L - 1 is the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from aif_stream.model.attributes import Attributes
from aif_stream.model.config import HISTORY_KINDS, ModelConfig, Part
from aif_stream.model.item_side import AttributeEmbedding

AGES: Final = 24  # log2 of seconds before the newest behavior: up to half a year and beyond
_MAX_AGE: Final = float(2 ** (AGES - 1))


def age_buckets(ages_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds before the newest behavior -> 0 … AGES - 1, by powers of two."""
    buckets: NDArray[np.int64] = np.frexp(np.clip(ages_s, 0.0, _MAX_AGE - 1.0) + 0.5)[1].astype(np.int64)
    return buckets


@dataclass(frozen=True, slots=True)
class Histories:
    """Long histories of R requests; ``mask`` False: padding, or no row of this version. ``full``: no entry is that, so
    nobody has to look (a served request; else False says nothing)."""

    t: Tensor  # f (R, L, D)
    sigma: Tensor  # f (R, L, W); 0 without content
    mask: Tensor  # bool (R, L)
    kind: Tensor  # i64 (R, L)
    age: Tensor  # i64 (R, L), see age_buckets
    category: Tensor  # i64 (R, L); -1: none
    key2: Tensor  # i64 (R, L); -1: none
    full: bool = False

    def newest(self, count: int) -> Histories:
        return Histories(
            t=self.t[:, -count:],
            sigma=self.sigma[:, -count:],
            mask=self.mask[:, -count:],
            kind=self.kind[:, -count:],
            age=self.age[:, -count:],
            category=self.category[:, -count:],
            key2=self.key2[:, -count:],
            full=self.full,
        )

    def hidden(self) -> Histories:
        """The same entries, none of them to be read."""
        return replace(self, mask=torch.zeros_like(self.mask), full=False)


class UserNumbers(NamedTuple):
    """u (R, D), h (R, H), bridge read-outs V (R, K, D), signature matrix M (R, W, D); None: a part switched off."""

    u: Tensor
    h: Tensor
    readouts: Tensor | None
    signature_matrix: Tensor | None


class UserTower(nn.Module):
    """u = [p, long mean, interest] A + MLP(…): interest is profile-over-history attention after self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, E, H = config.width, config.embedding, config.hidden
        self.config = config
        self.profile = AttributeEmbedding(config.user_fields, 0, E)
        self.profile_norm = nn.LayerNorm(E)
        self.profile_down = nn.Linear(E, D)
        self.kind, self.age = nn.Embedding(HISTORY_KINDS, D), nn.Embedding(AGES, D)
        nn.init.normal_(self.kind.weight, std=0.05)
        nn.init.normal_(self.age.weight, std=0.05)
        self.value = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.qkv, self.mix = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.query, self.key = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.skip = nn.Linear(3 * D + 1, D)
        self.up, self.down = nn.Linear(3 * D + 1, E), nn.Linear(E, D)
        self.share = nn.Linear(2 * D, H)

    def forward(self, profile: Attributes, history: Histories, bridges: Tensor, sharpness: float) -> UserNumbers:
        p = self.profile_vector(profile)
        own = history if self.config.user_history else history.hidden()
        here = own.mask.to(p.dtype)  # (R, L)
        count = here.sum(1, keepdim=True)
        mean = (here[:, None] @ history.t)[:, 0] / count.clamp(min=1)  # (R, 1, L) @ (R, L, D) -> (R, D)
        u, h = self.vectors(p, own.newest(self.config.short), mean, count)
        readouts = self.readouts(history, bridges, sharpness) if self.config.has(Part.BEA) else None
        return UserNumbers(u, h, readouts, signature_matrix(history) if self.config.has(Part.LSH) else None)

    def vectors(self, p: Tensor, short: Histories, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """u (R, D) and h (R, H) of the profile (R, D), the newest entries, and mean (R, D) and count (R, 1) of all."""
        interest = self.interest(p, short)
        z = torch.cat([p, interest, mean, torch.log1p(count) / 8], dim=-1)  # (R, 3D + 1)
        u = self.skip(z) + self.down(fn.relu(self.up(z)))  # (R, D)
        h = self.share(torch.cat([u, p], dim=-1))  # (R, 2D) -> (R, H)
        return u, h

    def profile_vector(self, profile: Attributes) -> Tensor:
        """p (R, D)."""
        p: Tensor = self.profile_down(fn.relu(self.profile_norm(self.profile(profile))))  # (R, E) -> (R, D)
        return p

    def interest(self, p: Tensor, short: Histories) -> Tensor:
        """Self-attention over the short history, then the profile's attention over it: (R, S, D) -> (R, D)."""
        x, weights = self.attended(p, short)
        interest = (weights[:, None] @ x)[:, 0]  # (R, 1, S) @ (R, S, D) -> (R, D)
        masked: Tensor = interest if short.full else interest * short.mask.any(1, keepdim=True)
        return masked

    def attended(self, p: Tensor, short: Histories) -> tuple[Tensor, Tensor]:
        """The entries after self-attention (R, S, D), and how the profile weighs them (R, S)."""
        R, S, D = short.t.shape
        heads = self.config.heads
        x = self.value(short.t) + self.kind(short.kind) + self.age(short.age)  # (R, S, D)
        # An empty history would leave a softmax over nothing; its result is masked out below.
        seen = None if short.full else short.mask | ~short.mask.any(1, keepdim=True)
        q, k, v = self.qkv(self.norm(x)).view(R, S, 3, heads, D // heads).permute(2, 0, 3, 1, 4)  # each (R, h, S, D/h)
        attended = fn.scaled_dot_product_attention(q, k, v, attn_mask=None if seen is None else seen[:, None, None, :])
        x = x + self.mix(attended.transpose(1, 2).reshape(R, S, D))
        scores = (self.key(x) @ self.query(p)[:, :, None])[..., 0] / D**0.5  # (R, S, D) @ (R, D, 1) -> (R, S)
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return x, torch.softmax(scores, dim=-1)

    def readouts(self, history: Histories, bridges: Tensor, sharpness: float) -> Tensor:
        """V = softmax(Br Xᵀ / τ√D) X over the long history -> (R, K, D); zero for an empty one."""
        scores = bridges @ history.t.transpose(1, 2) * sharpness  # (K, D) @ (R, D, L) -> (R, K, L)
        if history.full:
            weights = torch.softmax(scores, dim=-1)
        else:
            scores = scores.masked_fill(~history.mask[:, None], torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=-1) * history.mask[:, None]
        return weights @ history.t  # (R, K, L) @ (R, L, D) -> (R, K, D)


def signature_matrix(history: Histories) -> Tensor:
    """M = Σ_j σ_j t_jᵀ / 2WL over entries with content -> (R, W, D)."""
    sigma, t = history.sigma, history.t
    # An entry's signs are all ±1 or, without content, all 0: the first one counts it. Masking t is the same sum as
    # masking σ, which is W / D times as large.
    content = sigma[..., 0].abs()  # (R, L)
    if not history.full:
        here = history.mask.to(t.dtype)
        content, t = content * here, t * here[..., None]
    count = content.sum(1).clamp(min=1)[:, None, None]  # (R, 1, 1)
    return sigma.transpose(1, 2) @ t / (2 * sigma.shape[-1] * count)  # (R, W, L) @ (R, L, D) -> (R, W, D)
