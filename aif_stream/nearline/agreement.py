"""How far two versions agree on the same requests: scores of the same candidates, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]

_TOP_SHARE: Final = 10  # overlap is of the best tenth: what pre-ranking hands on is about that
_TOP_MOST: Final = 100
# Below this share of the scores' size a spread is rounding, not an opinion.
_FLAT: Final = 1e-6


class Agreement(NamedTuple):
    """Means over requests. ``correlation``: Spearman's (equal scores share their place; a flat ranking gives 0);
    ``overlap``: share of the best that both have; ``shift``: how far the new scores' median lies from the old ones', in
    deviations of the old ones (median over requests). ``flat``, ``unfinite``: requests in which all new scores are
    equal, or some of rows that can be scored are no numbers."""

    requests: int
    correlation: float
    overlap: float
    shift: float
    flat: int
    unfinite: int


def agree(pairs: Sequence[tuple[Scores, Scores]]) -> Agreement:
    """Old and new scores (B each, over the same candidates) of each request; one with less than two says nothing."""
    pairs = [pair for pair in pairs if len(pair[0]) > 1]
    if not pairs:
        return Agreement(0, 1.0, 1.0, 0.0, 0, 0)
    wrong = [not np.isfinite(new).all() for _, new in pairs]
    finite = [pair for pair, bad in zip(pairs, wrong, strict=True) if not bad]
    correlations = [_correlation(old, new) for old, new in finite] or [0.0]
    overlaps = [_overlap(old, new) for old, new in finite] or [0.0]
    shifts = [_shift(old, new) for old, new in finite] or [float("inf")]
    flat = sum(_is_flat(new) and not _is_flat(old) for old, new in finite)
    return Agreement(
        requests=len(pairs),
        correlation=float(np.mean(correlations)),
        overlap=float(np.mean(overlaps)),
        shift=float(np.median(shifts)),
        flat=flat,
        unfinite=sum(wrong),
    )


def _is_flat(scores: Scores) -> bool:
    return bool(np.ptp(scores) <= _FLAT * max(1.0, float(np.abs(scores).max())))


def _correlation(old: Scores, new: Scores) -> float:
    if _is_flat(old) or _is_flat(new):
        return 0.0
    return float(np.corrcoef(_places(old), _places(new))[0, 1])


def _places(scores: Scores) -> NDArray[np.float64]:
    """Rank of each score; equal ones share the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    places: NDArray[np.float64] = (ends - (counts - 1) / 2.0)[inverse]
    return places


def _overlap(old: Scores, new: Scores) -> float:
    top = min(_TOP_MOST, max(1, len(old) // _TOP_SHARE))
    best, others = (set(np.argsort(-scores, kind="stable")[:top].tolist()) for scores in (old, new))
    return len(best & others) / top


def _shift(old: Scores, new: Scores) -> float:
    deviation = max(float(np.std(old)), _FLAT)
    return abs(float(np.median(new)) - float(np.median(old))) / deviation
