"""Two answers to one request: what is different, and which items' scores made it so.

Only the first k of each answer are known. An item that is in one of them alone has either changed or was pushed out by
others; which of the two follows from the other answer's last score: an item that would still have beaten it, and is not
there, must have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.request import RankedItem

_RESAMPLES: Final = 1_000
_CHUNK_NUMBERS: Final = 4_000_000  # 32 MB of indices at a time
_SEED: Final = 7  # the same answers give the same intervals
_LEVEL: Final = (2.5, 97.5)
NAMED: Final = 1_000  # changed items that a report names at most; with two model versions every item changes


class Difference(NamedTuple):
    """Of one request. ``overlap``: share of the first k in both. ``correlation``: Spearman's, over items in both
    (nan below two). ``score_max_abs``: largest change of a score; for an item that is in one answer alone, what it must
    have changed by at least. ``changed``: item -> that change. ``lost``, ``gained``: in the first, the second alone."""

    overlap: float
    correlation: float
    score_max_abs: float
    changed: dict[str, float]
    lost: frozenset[str]
    gained: frozenset[str]
    compared: int


SAME: Final = Difference(1.0, 1.0, 0.0, {}, frozenset(), frozenset(), 0)


def compare(before: list[RankedItem], after: list[RankedItem], k: int) -> Difference:
    """Two answers, best first, to a request for k items."""
    if before == after:
        return SAME._replace(compared=len(before), correlation=1.0 if len(before) > 1 else float("nan"))
    old = {item.item_id: item.score for item in before}
    new = {item.item_id: item.score for item in after}
    common = old.keys() & new.keys()
    changed = {item: new[item] - old[item] for item in common if new[item] != old[item]}
    lost, gained = old.keys() - common, new.keys() - common
    changed.update({item: -by for item, by in _beyond(old, lost, after, k)})
    changed.update(_beyond(new, gained, before, k))
    return Difference(
        overlap=len(common) / max(len(old), len(new)),
        correlation=_spearman([i.item_id for i in before], [i.item_id for i in after], common),
        score_max_abs=max((abs(by) for by in changed.values()), default=0.0),
        changed=changed,
        lost=frozenset(lost),
        gained=frozenset(gained),
        compared=len(common),
    )


def _beyond(scores: dict[str, float], alone: Iterable[str], other: list[RankedItem], k: int) -> list[tuple[str, float]]:
    """Items that the other answer would hold if their score were the same, and how far it is beyond its last one."""
    if len(other) < k:  # the other answer holds all that it could score: an absent item was taken away
        return [(item, abs(scores[item])) for item in alone]
    cut = other[-1].score
    return [(item, scores[item] - cut) for item in alone if scores[item] > cut]


def _spearman(before: list[str], after: list[str], common: Iterable[str]) -> float:
    """By the sum of squared differences of places, so that equal orders give exactly 1."""
    both = set(common)
    n = len(both)
    if n < 2:
        return float("nan")
    place = {item: i for i, item in enumerate(item for item in before if item in both)}
    squares = sum((place[item] - i) ** 2 for i, item in enumerate(item for item in after if item in both))
    return 1.0 - 6.0 * squares / (n * (n * n - 1))


@dataclass(slots=True)
class ItemChange:
    """One item over all requests. ``apart``: requests in which it changed while most others did not: its own features
    did it, not the user's. ``excess``: by how much more than the request's median change, added up."""

    item_id: str
    requests: int = 0
    apart: int = 0
    lost: int = 0
    gained: int = 0
    max_abs: float = 0.0
    excess: float = 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % bootstrap interval over requests."""

    value: float
    low: float
    high: float


@dataclass(slots=True)
class Drift:
    """All requests: per-request arrays (n; nan where a request was not compared), and the items that changed."""

    overlap: NDArray[np.float64]
    correlation: NDArray[np.float64]
    score_max_abs: NDArray[np.float64]
    items: dict[str, ItemChange] = field(default_factory=dict)
    degraded: int = 0  # not compared: an answer fell short of something
    unanswered: int = 0  # not compared: there is no answer
    whole_user: int = 0  # requests in which most scores changed: the user's side or the version did
    versions: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))

    @classmethod
    def of(cls, count: int) -> Drift:
        """Nothing compared yet."""
        return cls(np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.nan))

    def add(self, i: int, found: Difference) -> None:
        """Take in request i."""
        self.overlap[i], self.correlation[i], self.score_max_abs[i] = found[:3]
        if not found.changed and not found.lost and not found.gained:
            return
        most = len(found.changed) > 1 and 2 * len(found.changed) > found.compared
        self.whole_user += most
        median = float(np.median([abs(by) for by in found.changed.values()])) if most else 0.0
        for item, by in found.changed.items():
            change = self.items.setdefault(item, ItemChange(item))
            change.requests += 1
            change.apart += not most
            change.lost += item in found.lost
            change.gained += item in found.gained
            change.max_abs = max(change.max_abs, abs(by))
            change.excess += abs(by) - median

    @property
    def compared(self) -> int:
        return int(np.isfinite(self.overlap).sum())

    @property
    def overlap_mean(self) -> Interval:
        return mean_interval(self.overlap)

    @property
    def correlation_mean(self) -> Interval:
        return mean_interval(self.correlation)

    @property
    def score_mean(self) -> Interval:
        """Mean over requests of the largest change in each."""
        return mean_interval(self.score_max_abs, nothing=0.0)

    @property
    def score_worst(self) -> float:
        return float(np.nanmax(self.score_max_abs)) if self.compared else 0.0

    @property
    def value(self) -> float:
        """What ``--max-drift`` bounds: the largest of 1 - overlap@k and 1 - rank correlation (means over requests) and
        the largest change of a score. 0 exactly when every answer is the same, bit for bit."""
        return max(1.0 - self.overlap_mean.value, 1.0 - self.correlation_mean.value, self.score_worst)

    def changed(self) -> list[ItemChange]:
        """Items whose score changed: first those that changed apart from others, in most requests."""
        return sorted(self.items.values(), key=lambda c: (-c.apart, -c.excess, -c.max_abs, c.item_id))[:NAMED]


def mean_interval(values: NDArray[np.float64], nothing: float = 1.0) -> Interval:
    """Mean of the finite values; ``nothing`` when there is none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(nothing, nothing, nothing)
    if values.min() == values.max():
        same = float(values[0])
        return Interval(same, same, same)
    low, high = np.percentile(_resampled(values.size, lambda at: values[at].mean(-1)), _LEVEL)
    return Interval(float(values.mean()), float(low), float(high))


def quantile_difference(a: NDArray[np.float64], b: NDArray[np.float64], q: float) -> Interval:
    """Quantile of b less that of a (n each, the same requests), with the interval over requests drawn in pairs."""
    if not a.size:
        return Interval(float("nan"), float("nan"), float("nan"))

    def difference(at: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.quantile(b[at], q, axis=-1) - np.quantile(a[at], q, axis=-1)
        return found

    low, high = np.percentile(_resampled(a.size, difference, 300), _LEVEL)
    return Interval(float(np.quantile(b, q) - np.quantile(a, q)), float(low), float(high))


def _resampled(
    n: int, statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], resamples: int = _RESAMPLES
) -> NDArray[np.float64]:
    """The statistic of ``resamples`` draws of n requests, with repetition."""
    random = np.random.default_rng(_SEED)
    step = max(1, _CHUNK_NUMBERS // n)
    found = [statistic(random.integers(n, size=(min(step, resamples - i), n))) for i in range(0, resamples, step)]
    return np.concatenate(found)
