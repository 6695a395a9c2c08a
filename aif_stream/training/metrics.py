"""GAUC, AUC and ratios, each with a bootstrap interval over users (users, not impressions, are independent).

A score that is not finite is refused with ``NonFiniteError``: sorting would place a NaN somewhere, and the metric would
look like any other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import NonFiniteError

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
    check_finite(scores, "scores")
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


class Resampled(NamedTuple):
    """A value and its bootstrap draws. Draws of one seed over the same users pair up: draw n is of the same users."""

    value: float
    draws: Floats

    def metric(self) -> Metric:
        """With its interval; NaN where nothing could be measured."""
        draws = self.draws[~np.isnan(self.draws)]
        low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if len(draws) else (self.value, self.value)
        return Metric(self.value, float(low), float(high))

    def minus(self, other: Resampled) -> Metric:
        """The paired difference: narrower than two intervals side by side. ValueError when the users differ."""
        if len(self.draws) != len(other.draws):
            raise ValueError("only draws over the same users can be paired")
        return Resampled(self.value - other.value, self.draws - other.draws).metric()


def ratio(top: Floats, bottom: Floats, seed: int = 0) -> Resampled:
    """Σ top / Σ bottom over users (U), resampling users."""
    if not len(top):
        return Resampled(float("nan"), np.zeros(0))
    for values in (top, bottom):
        check_finite(values, "sums of users")
    random, draws = np.random.default_rng(seed), np.empty(_RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        for at in range(_RESAMPLES):  # one at a time: a thousand times the users would not fit memory
            picks = random.integers(len(top), size=len(top))
            draws[at] = top[picks].sum() / bottom[picks].sum()
        return Resampled(float(top.sum() / bottom.sum()), draws)


def gauc_draws(user: I64, scores: Floats, clicked: Bools, seed: int = 0) -> Resampled:
    """AUC per user, weighted by impressions; users of one class are skipped. NaN when no user has both."""
    check_finite(scores, "scores")
    values, weights = [], []
    for rows in by_user(user):
        value = auc(scores[rows], clicked[rows])
        if not np.isnan(value):
            values.append(value)
            weights.append(len(rows))
    weight = np.array(weights, dtype=np.float64)
    return ratio(np.array(values) * weight, weight, seed)


def gauc(user: I64, scores: Floats, clicked: Bools, seed: int = 0) -> Metric:
    """``gauc_draws`` with its interval."""
    return gauc_draws(user, scores, clicked, seed).metric()


def auc_draws(user: I64, scores: Floats, clicked: Bools, seed: int = 0) -> Resampled:
    """AUC over all impressions, resampling users (fewer draws: each sorts everything)."""
    check_finite(scores, "scores")
    groups = by_user(user)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(_RESAMPLES // 10):
        rows = np.concatenate([groups[at] for at in random.integers(len(groups), size=len(groups))])
        draws.append(auc(scores[rows], clicked[rows]))
    return Resampled(auc(scores, clicked), np.array(draws))


def check_finite(values: Floats, what: str) -> None:
    """Raise ``NonFiniteError`` when one of the values is not finite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise NonFiniteError(
            f"{len(wrong)} of {len(values)} {what} are not finite; number {wrong[0] + 1} is {values[wrong[0]]}",
            mend="the model diverged: train it again with a lower learning_rate",
        )


def by_user(user: I64) -> list[I64]:
    """Rows of each user, users rising."""
    order = np.argsort(user, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(user[order])) + 1)
