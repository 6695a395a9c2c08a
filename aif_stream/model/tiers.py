"""SimTier features: how much of a long history lies in each tier of similarity to a candidate, per group of kinds.

A feature is log(1 + 100 · share). From signatures (the kernel's popcounts), or from the angles themselves, which is
what signatures estimate: the bound that more bits approach.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.tiers import tiers
from aif_stream.model.config import HISTORY_KINDS, ModelConfig
from aif_stream.model.signature import Signatures

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

# A tier feature is log(1 + 100·share): the high tiers hold one entry in a hundred and decide the most.
TIER_GAIN: Final = 100.0
_BLOCK: Final = 256  # candidates at a time: 1 MB of cosines at L = 1,000 stays in the second cache


class TierReader:
    """The tier features of a config. Stateless after construction; safe from several threads."""

    def __init__(self, config: ModelConfig) -> None:
        self.columns = config.tier_columns
        self._tiers = config.tiers
        self.groups = max(1, len(config.tier_groups))
        self._group_of = np.full(HISTORY_KINDS, -1 if config.tier_groups else 0, dtype=np.int64)
        for number, group in enumerate(config.tier_groups):
            self._group_of[list(group)] = number
        equal_bits = np.arange(config.signature_bits + 1)
        self.edges = np.searchsorted(config.tier_edges, equal_bits, side="right").astype(np.uint8)
        self._cosines = np.cos(np.pi * (1.0 - config.bounds)).astype(np.float32)  # of 1 - angle/π, rising

    def read(self, items: Signatures, content: Bools, history: Signatures, kinds: NDArray[np.integer]) -> F32:
        """Candidates (B, W/8) against entries with content (L', W/8) of kinds (L') -> f32 (B, columns).

        Zeros for a candidate without content and a group without entries.
        """
        out = np.empty((len(items), self.columns), dtype=np.float32)
        self.read_into(out, items, content, history, kinds)
        return out

    def read_into(
        self, out: F32, items: Signatures, content: Bools, history: Signatures, kinds: NDArray[np.integer]
    ) -> None:
        """The same into ``out``, which may be a column block of a wider array."""
        for number, mine in enumerate(self.members(kinds)):
            columns = out[:, number * self._tiers : (number + 1) * self._tiers]
            tiers(items, history, mine, self.edges, self._tiers, item_mask=content, out=columns)
        _gain(out)

    def members(self, kinds: NDArray[np.integer]) -> list[Bools]:
        """Which entries, of kinds (L'), belong to each group of kinds: bool (L') each."""
        group = self._group_of[kinds]
        return [group == number for number in range(self.groups)]

    @staticmethod
    def gains(entries: int) -> F32:
        """The tier feature of 0 … ``entries`` entries in a tier, f32 (entries + 1), read-only: the same bits as
        ``read``'s."""
        return _gains(entries)

    @staticmethod
    def gain(shares: F32) -> F32:
        """The tier features of shares, in place."""
        _gain(shares)
        return shares

    def read_cosines(self, items: F32, content: Bools, history: F32, kinds: NDArray[np.integer]) -> F32:
        """The same of unit vectors (B, V) and (L', V)."""
        out = np.zeros((len(items), self.columns), dtype=np.float32)
        group = self._group_of[kinds]
        for number in range(self.groups):
            entries = history[group == number]
            if not len(entries):
                continue
            columns = out[:, number * self._tiers : (number + 1) * self._tiers]
            for at in range(0, len(items), _BLOCK):
                cosines = items[at : at + _BLOCK] @ entries.T  # (b, V) @ (V, L')
                reached = [np.full(len(cosines), len(entries))]
                reached += [np.count_nonzero(cosines >= bound, axis=1) for bound in self._cosines]
                reached.append(np.zeros(len(cosines), dtype=np.int64))
                columns[at : at + _BLOCK] = -np.diff(np.stack(reached, axis=1), axis=1) / np.float32(len(entries))
        out[~content] = 0
        _gain(out)
        return out


@lru_cache(maxsize=64)  # full histories are as long as each other; 40 KB at 10,000 entries
def _gains(entries: int) -> F32:
    shares = np.arange(entries + 1, dtype=np.float32) / np.float32(max(entries, 1))
    _gain(shares)
    shares.flags.writeable = False
    return shares


def _gain(shares: F32) -> None:
    shares *= TIER_GAIN
    np.log1p(shares, out=shares)
