"""Judges versions as they are served: rows in 16 bits, split scoring, histories that end before each request.

The candidate sets, which ``CANDIDATES`` states for every report:

- GAUC, AUC, log loss, calibration: the impressions of the test part, each request with its own history.
- HR@K, NDCG@K: a user's test clicks among the first K, by the user side at the user's first test request. The set: the
  whole catalogue up to 2,000 items, else 2,000 drawn (seed 0), without what the user's history holds, and with the
  clicked items. The same for every model of a run.

Intervals and differences are bootstraps over users; a difference pairs the draws of two models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.row import Rows
from aif_stream.errors import NonFiniteError, TrainingDataError
from aif_stream.model.version import ModelVersion
from aif_stream.training.cost import mflop, online_ms
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.metrics import Metric, Resampled, auc_draws, by_user, check_finite, gauc_draws, ratio

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
_CANDIDATES: Final = 2000
_TOPS: Final = (10, 100)
_BATCH: Final = 512

CANDIDATES: Final = {
    "gauc, auc, logloss, calibration": "impressions of the test part (the newest tenth by time)",
    "hr@K, ndcg@K": "catalogue, or 2,000 of it (seed 0), without the user's history, with the user's test clicks",
}

Ranker = Callable[[int, I64], NDArray[np.floating]]
"""Scores the items (indices) of one request (number)."""


class Evaluation(NamedTuple):
    """One line of ``aif evaluate``; the costs of a baseline that looks scores up are 0.

    ``difference``: each metric minus that of the first model of the run, paired; empty for the first itself.
    """

    model: str
    metrics: dict[str, Metric]
    online_ms_per_10k: float
    online_mflop_per_10k: float
    difference: dict[str, Metric]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one ranker achieved, with the draws that differences are made of."""

    found: dict[str, Resampled]

    def metrics(self) -> dict[str, Metric]:
        return {name: value.metric() for name, value in self.found.items()}

    def minus(self, other: Judged) -> dict[str, Metric]:
        return {name: value.minus(other.found[name]) for name, value in self.found.items() if name in other.found}


class Served:
    """A version over a data set's catalogue: its rows in memory, as a mirror has them.

    Of items that change it has the rows of all states (``data.states``), and ranks by those of the request's time.
    Models that are judged but never served also keep the unit content vectors here.
    """

    def __init__(self, version: ModelVersion, data: Dataset, dtype: np.dtype[np.void] | None = None) -> None:
        """``dtype``: of rows that are not the served ones. Raises ``TrainingDataError`` when the version cannot use
        some of the items, ``NonFiniteError`` when its numbers of some are beyond the rows' range."""
        self.version, self._data = version, data
        parts, units = [], []
        for at in range(0, len(data.states), _BATCH):
            batch = data.states[at : at + _BATCH]
            rows, problems = version.item_side(batch, dtype or version.layout.dtype)
            if beyond := problems.pop("beyond-f16", 0):
                first = batch[int(np.flatnonzero(rows["flags"] == 0)[0])].item_id
                raise NonFiniteError(
                    f"{version.name}: {beyond} item rows are beyond the range of 16 bits, the first of item {first}",
                    mend="train with a lower learning_rate, or correct the numbers of these items",
                )
            if problems:
                raise TrainingDataError(
                    f"{version.name} cannot use items of {data.name}: {dict(problems)}", mend="train on this data"
                )
            parts.append(rows)
            if version.config.cosines:
                units.append(version.units(batch))
        self.rows: Rows = np.concatenate(parts)
        self.units = np.concatenate(units) if units else None

    def __call__(self, request: int, items: I64) -> NDArray[np.floating]:
        history, indices = self._data.history(request)
        everything = np.ones(len(indices), dtype=np.bool_)
        profile = self._data.profiles[self._data.requests.user[request]]
        time_ms = int(self._data.requests.time_ms[request])
        indices, items = self._data.states_at(indices, time_ms), self._data.states_at(items, time_ms)
        seen, shown = (None if self.units is None else self.units[at] for at in (indices, items))
        user = self.version.user_side(profile, history, self.rows[indices], everything, seen)
        return self.version.score(user, self.rows[items], shown)


def evaluate_versions(versions: list[ModelVersion], data: Dataset) -> list[Evaluation]:
    """Quality on the test part with differences to the first, and cost at B = 10,000 and L = 1,000."""
    lines: list[Evaluation] = []
    first: Judged | None = None
    for version in versions:
        served = Served(version, data)
        judged = judge(served, data)
        difference = judged.minus(first) if first is not None else {}
        first = first or judged
        ms = online_ms(version, served.rows, served.units)
        lines.append(Evaluation(version.name, judged.metrics(), ms, mflop(version.config), difference))
    return lines


def evaluate_version(version: ModelVersion, data: Dataset) -> Evaluation:
    """``evaluate_versions`` of one."""
    return evaluate_versions([version], data)[0]


def evaluate_baselines(data: Dataset) -> list[Evaluation]:
    """Popularity (clicks in the training part) and the mean of an item's training labels (prior of 5)."""
    requests = data.requests
    shown = requests.shown(requests.of(Split.TRAIN))
    count = np.bincount(requests.item[shown], minlength=len(data.items))
    chosen = requests.item[shown[requests.clicked[shown]]]
    clicks = np.bincount(chosen, minlength=len(data.items)).astype(np.float64)
    mean = (clicks + 5 * requests.clicked[shown].mean()) / (count + 5)
    return [
        Evaluation(name, judge(_lookup(table), data, logits=False).metrics(), 0.0, 0.0, {})
        for name, table in (("popularity", clicks), ("item-mean", mean))
    ]


def judge(ranker: Ranker, data: Dataset, *, logits: bool = True, top: bool = True) -> Judged:
    """All metrics of a ranker; ``logits``: its scores are some, so that their chances can be judged too. ``top``: HR
    and NDCG too, which rank 2,000 items for every user and take most of the time."""
    table, test = data.requests, data.requests.of(Split.TEST)
    scores = np.concatenate([ranker(int(r), table.item[table.first[r] : table.first[r + 1]]) for r in test])
    user = np.repeat(table.user[test], np.diff(table.first)[test])
    clicked = table.clicked[table.shown(test)]
    found = {"gauc": gauc_draws(user, scores, clicked), "auc": auc_draws(user, scores, clicked)}
    if top:
        found |= _top(ranker, data)
    if logits:
        found |= _chances(user, scores.astype(np.float64), clicked)
    return Judged(found)


def _chances(user: I64, scores: F64, clicked: NDArray[np.bool_]) -> dict[str, Resampled]:
    """Log loss per impression; calibration: expected over seen clicks, 1 is right, above 1 promises too much."""
    loss = np.logaddexp(0.0, np.where(clicked, -scores, scores))
    groups = by_user(user)

    def sums(values: NDArray[np.floating]) -> F64:
        return np.array([values[rows].sum() for rows in groups], dtype=np.float64)

    return {
        "logloss": ratio(sums(loss), sums(np.ones(len(user)))),
        "calibration": ratio(sums(1 / (1 + np.exp(-np.clip(scores, -500, 500)))), sums(clicked.astype(np.float64))),
    }


def _top(ranker: Ranker, data: Dataset) -> dict[str, Resampled]:
    """HR@K weighted by clicks, NDCG@K by users."""
    table, random = data.requests, np.random.default_rng(0)
    test = data.requests.of(Split.TEST)
    test = test[np.lexsort((table.time_ms[test], table.user[test]))]
    _, heads = np.unique(table.user[test], return_index=True)
    hits: dict[int, list[int]] = {k: [] for k in _TOPS}
    gains: dict[int, list[float]] = {k: [] for k in _TOPS}
    counts = []
    everything = np.arange(len(data.items))
    for mine in np.split(test, heads[1:]):
        shown = table.shown(mine)
        clicks = np.unique(table.item[shown][table.clicked[shown]])
        if not len(clicks):
            continue
        some = everything if len(everything) <= _CANDIDATES else random.choice(everything, _CANDIDATES, replace=False)
        candidates = np.union1d(np.setdiff1d(some, data.history(int(mine[0]))[1]), clicks)
        scores = ranker(int(mine[0]), candidates)
        check_finite(scores, "scores")
        top = candidates[np.argsort(-scores, kind="stable")[: max(_TOPS)]]
        right = np.isin(top, clicks)
        counts.append(len(clicks))
        for k in _TOPS:
            discount = 1 / np.log2(np.arange(min(k, len(top))) + 2)
            hits[k].append(int(right[:k].sum()))
            gains[k].append(float((right[:k] * discount).sum() / discount[: len(clicks)].sum()))
    weight = np.array(counts, dtype=np.float64)
    found: dict[str, Resampled] = {}
    for k in _TOPS:
        found[f"hr@{k}"] = ratio(np.array(hits[k], dtype=np.float64), weight)
        found[f"ndcg@{k}"] = ratio(np.array(gains[k]), np.ones(len(weight)))
    return found


def _lookup(table: F64) -> Ranker:
    def rank(request: int, items: I64) -> NDArray[np.floating]:
        return table[items]

    return rank
