"""Codewords of coded tiers: M signatures near to which the catalogue lies. Fitted on content, never on labels."""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

Signatures = NDArray[np.uint8]

_ROUNDS: Final = 6  # the mean distance falls by less than 1 % after
_SAMPLE_PER_CODE: Final = 64  # signatures that a codeword is fitted on, at most


def fit_codewords(signatures: Signatures, count: int, seed: int) -> Signatures:
    """k-means in Hamming space: signatures (N, W/8) -> codewords (count, W/8).

    The centre of a group is its bits' majority. With no more distinct signatures than codewords each is its own (and
    some stand twice): nothing is lost then.
    """
    distinct = np.unique(signatures, axis=0)
    random = np.random.default_rng([seed, 0xC0DE])
    if len(distinct) <= count:
        return np.resize(distinct, (count, distinct.shape[1])) if len(distinct) else _zeros(count, signatures)
    sample = signatures[random.permutation(len(signatures))[: count * _SAMPLE_PER_CODE]]
    words = distinct[random.choice(len(distinct), count, replace=False)]
    bits = np.unpackbits(sample, axis=1).astype(np.float32)
    for _ in range(_ROUNDS):
        nearest = _nearest(words, sample)
        sums = np.zeros((count, bits.shape[1]), dtype=np.float32)
        np.add.at(sums, nearest, bits)
        sizes = np.bincount(nearest, minlength=count)
        words = np.packbits(2 * sums > sizes[:, None], axis=1)
        idle = np.flatnonzero(sizes == 0)
        words[idle] = sample[random.integers(len(sample), size=len(idle))]
    return words


def _nearest(words: Signatures, signatures: Signatures) -> NDArray[np.int64]:
    index = faiss.IndexBinaryFlat(words.shape[1] * 8)
    index.add(words)
    found: NDArray[np.int64] = index.search(np.ascontiguousarray(signatures), 1)[1][:, 0].astype(np.int64)
    return found


def _zeros(count: int, like: Signatures) -> Signatures:
    return np.zeros((count, like.shape[1]), dtype=np.uint8)
