"""Codewords stand near the signatures they are fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from aif_stream.training.codewords import fit_codewords


def far(signatures: np.ndarray, words: np.ndarray) -> float:
    """Mean bits between a signature and its nearest codeword."""
    return float(np.bitwise_count(signatures[:, None] ^ words[None]).sum(-1).min(1).mean())


@pytest.fixture(scope="module")
def signatures() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.integers(0, 256, size=(20, 8), dtype=np.uint8)
    noise = np.packbits(random.random((3000, 64)) < 0.08, axis=1)
    return centres[random.integers(20, size=3000)] ^ noise


def test_more_codewords_lie_nearer(signatures: np.ndarray) -> None:
    distances = [far(signatures, fit_codewords(signatures, count, seed=0)) for count in (8, 64, 512)]
    assert distances == sorted(distances, reverse=True)
    assert distances[1] < 1.2 * 64 * 0.08  # 64 codewords find the 20 centres: what is left is the noise


def test_as_many_codewords_as_signatures_lose_nothing(signatures: np.ndarray) -> None:
    some = signatures[:50]
    words = fit_codewords(some, 64, seed=0)
    assert words.shape == (64, 8)
    assert far(some, words) == 0


def test_a_catalogue_without_content_has_codewords_too() -> None:
    assert fit_codewords(np.zeros((0, 8), dtype=np.uint8), 4, seed=0).shape == (4, 8)


def test_the_same_seed_gives_the_same_codewords(signatures: np.ndarray) -> None:
    np.testing.assert_array_equal(fit_codewords(signatures, 32, seed=1), fit_codewords(signatures, 32, seed=1))
