"""How far two computations of one number may lie apart, from the precision of their parts: the tests' only tolerances.

A product or sum of floats is off by at most half a unit in the last place, EPS / 2 of its magnitude. A sum of n terms,
in whatever order and with or without fused products, is off by at most n · EPS / 2 · Σ|terms|. The errors have either
sign, so that it is off by more than λ · √n · EPS / 2 · Σ|terms| with a chance of 2n · exp(-λ² / 2) (Higham and Mary,
2019, A new approach to probabilistic rounding error analysis). Two orders of a sum lie at most twice that apart. Order
is what CPUs differ in: the width of their vectors, fused products, and how a library cuts a product into blocks.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from aif_stream.model.config import ModelConfig

EPS16: Final = float(np.finfo(np.float16).eps)  # 9.8e-4
EPS32: Final = float(np.finfo(np.float32).eps)  # 1.2e-7
EPS_BF16: Final = 2.0**-7  # 7.8e-3
EPS64: Final = float(np.finfo(np.float64).eps)  # 2.2e-16
# Once in 70,000 of the sums of 450 terms that make a small model's logit.
_LAMBDA: Final = 6.0


def sum_bound(terms: int, magnitude: float = 1.0, eps: float = EPS32) -> float:
    """Of two sums of the same ``terms`` terms, whose absolute values add up to ``magnitude``."""
    return min(terms, _LAMBDA * terms**0.5) * eps * magnitude


def score_bound(config: ModelConfig, scores: ArrayLike) -> float:
    """Of logits that two orders of sums give; ``scores``: some of them, for their magnitude (1 at least).

    The terms are those of the sums that follow one another from features to a logit: content, embeddings, and the two
    norms and layers of the item tower; the history's sums and the user tower's layers; the first layer, its norm, and
    the head.
    """
    D, E, H = config.width, config.embedding, config.hidden
    item = config.content_width + len(config.item_fields) + 2 + 2 * E + 2 * D + 2 * E
    user = config.long + 4 * D + E
    first = D + config.bridges + config.tier_columns + config.signature_bits // 4 + 3
    head = 2 * H + H + config.head + D
    return sum_bound(item + user + first + head, max(1.0, largest(scores)))


def rounding_bound(scores: ArrayLike, eps: float) -> float:
    """Of logits, after the numbers that they are sums of were rounded once to ``eps``: half a unit each, where Σ|terms|
    of a logit is at most eight times the largest one."""
    return 8 * eps / 2 * max(1.0, largest(scores))


def largest(values: ArrayLike) -> float:
    """The largest absolute value of those that are finite; 0 of none."""
    found = np.asarray(values, dtype=np.float64)
    return float(np.abs(found[np.isfinite(found)]).max(initial=0.0))


def assert_close(found: Any, expected: Any, bound: float) -> None:
    """Equal within ``bound``, infinities in the same places."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=bound)
