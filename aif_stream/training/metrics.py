"""GAUC, AUC and HR@K, each with a bootstrap interval over users (users, not impressions, are independent)."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

_RESAMPLES: Final = 1000
_LEVEL: Final = 0.95


class Metric(NamedTuple):
    """A value with its 95 % interval (percentile bootstrap)."""

    value: float
    low: float
    high: float


def auc(scores: Floats, clicked: Bools) -> float:
    """Chance that a clicked impression scores above one that was not, ties half; NaN with one class."""
    positives = int(clicked.sum())
    negatives = len(clicked) - positives
    if not positives or not negatives:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Mean rank of each run of equal scores.
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.concatenate([starts[1:], [len(ordered)]])
    ranks = np.empty(len(scores))
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return float((ranks[clicked].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def gauc(user: I64, scores: Floats, clicked: Bools, seed: int = 0) -> Metric:
    """AUC per user, weighted by impressions; users of one class are skipped. NaN when no user has both."""
    values, weights = [], []
    for rows in _by_user(user):
        value = auc(scores[rows], clicked[rows])
        if not np.isnan(value):
            values.append(value)
            weights.append(len(rows))
    return weighted_mean(np.array(values), np.array(weights, dtype=np.float64), seed)


def weighted_mean(values: Floats, weights: Floats, seed: int = 0) -> Metric:
    """Mean by weight over users, resampling users."""
    if not len(values):
        return Metric(*[float("nan")] * 3)
    picks = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    means = (values * weights)[picks].sum(axis=1) / weights[picks].sum(axis=1)
    return _metric(float((values * weights).sum() / weights.sum()), means)


def global_auc(user: I64, scores: Floats, clicked: Bools, seed: int = 0) -> Metric:
    """AUC over all impressions, resampling users (fewer draws: each sorts everything)."""
    groups = _by_user(user)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(_RESAMPLES // 10):
        rows = np.concatenate([groups[at] for at in random.integers(len(groups), size=len(groups))])
        draws.append(auc(scores[rows], clicked[rows]))
    return _metric(auc(scores, clicked), np.array([draw for draw in draws if not np.isnan(draw)]))


def _by_user(user: I64) -> list[I64]:
    order = np.argsort(user, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(user[order])) + 1)


def _metric(value: float, draws: Floats) -> Metric:
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if len(draws) else (value, value)
    return Metric(value, float(low), float(high))
