"""Many users who differ by a few behaviors, each against a few items: the joint form, without a user side for each.

A user side folds what all items of an answer need (1,000 entries: a matrix of 256 x 32 and a bag of 8,000 rows). One or
two items need of it one product each: the entry's weight for the item is computed once, and a subset of the history is
a mask over those weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aif_stream.domain.events import Attribute
from aif_stream.domain.history import History, kinds, times_ms
from aif_stream.domain.row import Rows
from aif_stream.errors import VersionError
from aif_stream.model.config import Kind, Part
from aif_stream.model.rows import has_content, tensor, valid
from aif_stream.model.scorer import Cross
from aif_stream.model.tiers import TierReader
from aif_stream.model.user_side import Histories, age_buckets
from aif_stream.model.version import ModelVersion

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]


def subset_scores(
    version: ModelVersion,
    profile: Mapping[str, Attribute] | None,
    history: History,
    rows: Rows,
    keeps: Bools,
    items: Rows,
    *,
    newest_ms: int | None = None,
) -> F32:
    """Logits f32 (R, B): of items (B), all valid, for the user as if only the entries ``keeps[r]`` of the history (L),
    oldest first, with rows (L), had ever happened: the numbers of ``user_side`` and ``score`` but for the order of
    sums.

    ``newest_ms``: the time that ages count from; None: each subset's newest entry. At most ``config.long`` entries.
    Raises ``VersionError`` for models that are judged and never served.
    """
    config, scorer = version.config, version.net.scorer
    if config.offline or len(history) > config.long:
        raise VersionError(f"{version.name}: no subsets of {len(history)} behaviors of a {config.kind.value} model")
    with torch.inference_mode():
        subsets = _Subsets(version, history, rows, keeps, newest_ms)
        t = tensor(items["t"]).float()  # (B, D)
        u, h = subsets.user(profile)
        dots = u @ t.T / config.width**0.5  # (R, D) @ (D, B)
        if config.kind is Kind.TWOTOWER:
            return np.asarray(dots.numpy(), np.float32)
        hidden = h[:, None] + tensor(items["h"]).float() + scorer.product(u[:, None] * t)  # (R, B, H)
        if config.has(Part.BEA):
            read = subsets.bridges(tensor(items["w"]).float())
            hidden = hidden + scorer.bridge(read)
            if scorer.bridge_product is not None:
                hidden = hidden + scorer.bridge_product(read * t)
        if config.has(Part.LSH):
            hidden = hidden + scorer.linear(subsets.signatures(items))
        if config.has(Part.TIERS):
            hidden = hidden + scorer.tiers(subsets.tiers(items))
        if config.has(Part.SIM):
            hidden = hidden + subsets.cross(scorer.cross, items, "category")
            if scorer.cross2 is not None:
                hidden = hidden + subsets.cross(scorer.cross2, items, "key2")
        return np.asarray((dots + scorer.head(hidden)).numpy(), np.float32)


class _Subsets:
    """R subsets of one history (L): what the items' terms need of them."""

    def __init__(
        self, version: ModelVersion, history: History, rows: Rows, keeps: Bools, newest_ms: int | None
    ) -> None:
        self._version = version
        self._rows = rows
        self._keeps = keeps & valid(rows)
        self._kinds = kinds(history)
        self._ages = _ages(times_ms(history), keeps, newest_ms)
        self._content = has_content(rows)
        self._t = tensor(rows["t"]).float()  # (L, D)
        self._here = torch.from_numpy(self._keeps.astype(np.float32))  # (R, L)

    def user(self, profile: Mapping[str, Attribute] | None) -> tuple[Tensor, Tensor]:
        """u (R, D) and h (R, H)."""
        version, R = self._version, len(self._keeps)
        tower = version.net.user_tower
        p = tower.profile_vector(version.profile(profile)).expand(R, -1)
        here = self._here if version.config.user_history else torch.zeros_like(self._here)
        count = here.sum(1, keepdim=True)
        mean = here @ self._t / count.clamp(min=1)  # (R, L) @ (L, D)
        u, h = tower.vectors(p, self._newest(here), mean, count)
        return u, h

    def _newest(self, here: Tensor) -> Histories:
        """The newest entries of each subset, right-aligned; an empty history is one masked entry."""
        R, L = here.shape
        mask = here.numpy() > 0
        at = np.argsort(mask, axis=1, kind="stable")[:, -self._version.config.short :]  # those that are not kept first
        if not L:
            zero = torch.zeros(R, 1, dtype=torch.int64)
            return _short(torch.zeros(R, 1, self._version.config.width), zero > 0, zero, zero)
        row = np.arange(R)[:, None]
        kind = torch.from_numpy(self._kinds[at].astype(np.int64))
        return _short(
            self._t[torch.from_numpy(at)], torch.from_numpy(mask[row, at]), kind, torch.from_numpy(self._ages[row, at])
        )

    def bridges(self, w: Tensor) -> Tensor:
        """The items' (B, K) read-outs (R, B, D): Σ_k w_bk Σ_j softmax_j(k) t_j, one exponent an entry for all subsets.

        In 64 bits: a subset without the entry that had all of a bridge's weight still divides by what is left.
        """
        tower = self._version.net.item_tower
        scores = (tower.bridge_rows @ self._t.T * tower.sharpness).double()  # (K, D) @ (D, L)
        if not scores.shape[1]:
            return torch.zeros(len(self._keeps), len(w), self._t.shape[1])
        weights = torch.exp(scores - scores.amax(1, keepdim=True))  # (K, L)
        here = self._here.double()
        sums = (here @ weights.T)[:, None]  # (R, L) @ (L, K) -> (R, 1, K)
        share = torch.where(sums > 0, w.double() / sums.clamp(min=1e-300), 0.0)  # (R, B, K)
        spread = (share @ weights) * here[:, None]  # (R, B, K) @ (K, L) -> (R, B, L)
        return spread.float() @ self._t  # (R, B, L) @ (L, D)

    def signatures(self, items: Rows) -> Tensor:
        """(R, B, D): Σ_j (σ_b·σ_j) t_j / 2WL over entries with content; zero for an item without."""
        W = self._version.config.signature_bits
        here = self._here * torch.from_numpy(self._content.astype(np.float32))  # (R, L)
        signs = W - 2.0 * (W - _equal_bits(items["sig"], self._rows["sig"])).astype(np.float32)  # (B, L): σ_b·σ_j
        signs[~has_content(items)] = 0.0
        weights = torch.from_numpy(signs)[None] * here[:, None]  # (R, B, L)
        return weights @ self._t / (2 * W * here.sum(1).clamp(min=1))[:, None, None]

    def tiers(self, items: Rows) -> Tensor:
        """(R, B, columns): log(1 + 100·share) by tier and group of kinds."""
        version = self._version
        config, reader = version.config, TierReader(version.config)
        own = items["sig"]
        if config.codes:
            own = version.net.item_tower.codewords.numpy()[items["code"].astype(np.int64)]
        tier = reader.edges[_equal_bits(own, self._rows["sig"])]  # (B, L)
        found = np.zeros((len(self._keeps), len(items), reader.columns), np.float32)
        for number, mine in enumerate(reader.members(self._kinds)):
            counted = (self._keeps & mine & self._content).astype(np.float32)  # (R, L)
            of = np.maximum(counted.sum(1), 1.0)
            for item in range(len(items)):
                one_hot = (tier[item][:, None] == np.arange(config.tiers)).astype(np.float32)  # (L, T)
                columns = slice(number * config.tiers, (number + 1) * config.tiers)
                found[:, item, columns] = reader.gain(counted @ one_hot / of[:, None])
        found[:, ~has_content(items)] = 0.0
        return torch.from_numpy(found)

    def cross(self, cross: Cross, items: Rows, field: str) -> Tensor:
        """(R, B, H): the share of the entries under each item's own key."""
        asked, own = items[field].astype(np.int64), self._rows[field].astype(np.int64)
        at = np.flatnonzero(np.isin(own, asked) & (own >= 0))  # the others are in no group that is asked for
        R = len(self._keeps)
        history = _short(
            self._t[torch.from_numpy(at)].expand(R, -1, -1),
            torch.from_numpy(self._keeps[:, at]),
            torch.zeros(R, len(at), dtype=torch.int64),
            torch.from_numpy(self._ages[:, at]),
        )
        keys = torch.from_numpy(asked).expand(R, -1)
        return cross.of_keys(keys, torch.from_numpy(own[at]).expand(R, -1), history)


def _short(t: Tensor, mask: Tensor, kind: Tensor, age: Tensor) -> Histories:
    """Histories of which signatures and keys are not read."""
    return Histories(t, t[..., :0], mask, kind, age, kind, kind)


def _ages(times: NDArray[np.int64], keeps: Bools, newest_ms: int | None) -> NDArray[np.int64]:
    """Age buckets (R, L), from ``newest_ms`` or from the newest entry that is kept."""
    R, L = keeps.shape
    if not L:
        return np.zeros((R, 0), np.int64)
    last = L - 1 - np.argmax(keeps[:, ::-1], axis=1)
    newest = times[last] if newest_ms is None else np.full(R, newest_ms, times.dtype)
    distinct, which = np.unique(newest, return_inverse=True)  # leaving out all but the last changes none
    ages: NDArray[np.int64] = np.stack([age_buckets((each - times) / 1000.0) for each in distinct])[which]
    return ages


def _equal_bits(items: NDArray[np.uint8], entries: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many of W bits agree: (B, W/8), (L, W/8) -> (B, L)."""
    unlike = np.bitwise_count(items[:, None] ^ entries[None]).sum(axis=2, dtype=np.int64)
    found: NDArray[np.int64] = 8 * items.shape[1] - unlike
    return found
