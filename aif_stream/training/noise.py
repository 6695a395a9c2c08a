"""Addressable randomness: a number from its place, so that any item or user is computed without those before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


class Noise:
    """Functions of (seed, stream, place). Streams are named by whole numbers; each is independent of the others."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def uniform(self, stream: int, places: I64) -> F64:
        """In [0, 1)."""
        uniform: F64 = (self._bits(stream, places) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return uniform

    def integers(self, stream: int, places: I64, below: int) -> I64:
        """0 … below - 1."""
        return (self.uniform(stream, places) * below).astype(np.int64)

    def normal(self, stream: int, places: I64) -> F64:
        """Near enough: the sum of four 16-bit uniforms of one hash, scaled to deviation 1."""
        bits = self._bits(stream, places)
        total = sum(((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float64) for part in range(4))
        normal: F64 = (np.asarray(total) / 65535.0 - 2.0) * np.sqrt(3.0)
        return normal

    def _bits(self, stream: int, places: I64) -> U64:
        """64 random bits per place: splitmix64 of (seed, stream, place)."""
        base = np.random.SeedSequence([self._seed, stream]).generate_state(1, np.uint64)[0]
        x = base + places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: U64 = x ^ (x >> np.uint64(31))
        return mixed
