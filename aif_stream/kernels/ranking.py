"""Scores -> the best k and the ages of what was scored, in one call (sorting, selecting and masks of 10,000 by numpy
are ten calls, each of which gives the interpreter's lock away)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]


class _Ranked(ctypes.Structure):
    """struct ranked of ranking.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("scored", "best")),
        *((name, ctypes.c_uint64) for name in ("low", "high", "oldest")),
    ]


@dataclass(frozen=True, slots=True)
class Best:
    """``order`` i64 (min(k, scored)): places of the best finite scores, best first, equal ones in the order of their
    keys. ``middle``: the two middle stamps of the scored (twice the same when their number is odd), ``oldest`` the
    smallest; zeros when nothing was scored."""

    order: NDArray[np.int64]
    scored: int
    middle: tuple[int, int]
    oldest: int


def best_of(scores: F32, keys: U64, stamps: U64, k: int, *, level: Level | None = None) -> Best:
    """Rank scores f32 (B) of keys u64 (B) with stamps u64 (B). ValueError for other shapes or k < 1."""
    if not len(scores) == len(keys) == len(stamps) or k < 1:
        raise ValueError(f"{len(scores)} scores, {len(keys)} keys, {len(stamps)} stamps, k = {k}")
    if scores.dtype != np.float32 or keys.dtype != np.uint64 or stamps.dtype != np.uint64:
        raise ValueError(f"{scores.dtype} scores, {keys.dtype} keys, {stamps.dtype} stamps")
    native, _ = choose(level)
    if native is None:
        return _best_numpy(scores, keys, stamps, k)
    scores, keys = np.ascontiguousarray(scores), np.ascontiguousarray(keys)
    stamps = np.ascontiguousarray(stamps)
    count, found = len(scores), _Ranked()
    scratch, order = np.empty(2 * count, np.uint64), np.empty(min(k, count), np.int64)
    failed = native.rank(
        *(address(scores), address(keys), address(stamps), count, k),
        *(address(scratch), address(order), ctypes.addressof(found)),
    )
    if failed:
        raise MemoryError(f"no memory to rank {count} scores")
    return Best(order[: found.best], found.scored, (found.low, found.high), found.oldest)


def _best_numpy(scores: F32, keys: U64, stamps: U64, k: int) -> Best:
    """The plain twin."""
    finite = np.flatnonzero(np.isfinite(scores))
    if not finite.size:
        return Best(finite, 0, (0, 0), 0)
    order = finite[np.lexsort((keys[finite], -scores[finite]))[:k]]
    sorted_ = np.sort(stamps[finite])
    middle = int(sorted_[(finite.size - 1) // 2]), int(sorted_[finite.size // 2])
    return Best(order, int(finite.size), middle, int(sorted_[0]))
