"""Judges versions as they are served: rows in 16 bits, split scoring, histories that end before each request.

- GAUC, AUC: impressions of the test part.
- HR@100: the share of a user's test clicks among the first hundred of a candidate set, by the user side at the
  user's first test request. The set: the whole catalogue up to 2,000 items, else 2,000 drawn (seed 0), without what
  the user's history holds, and with the clicked items.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.history import ENTRY
from aif_stream.domain.row import Rows
from aif_stream.errors import TrainingDataError
from aif_stream.model.config import Kind, ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.metrics import Metric, gauc, global_auc, weighted_mean

I64 = NDArray[np.int64]
_CANDIDATES: Final = 2000
_TOP: Final = 100
_COST_B: Final = 10_000
_COST_L: Final = 1_000
_COST_RUNS: Final = 21
_BATCH: Final = 512


Ranker = Callable[[int, I64], NDArray[np.floating]]
"""Scores the items (indices) of one request (number)."""


class Evaluation(NamedTuple):
    """One line of ``aif evaluate``; the costs of a baseline that looks scores up are 0."""

    model: str
    metrics: dict[str, Metric]
    online_ms_per_10k: float
    online_mflop_per_10k: float


class Served:
    """A version over a data set's catalogue: its rows in memory, as a mirror has them."""

    def __init__(self, version: ModelVersion, data: Dataset) -> None:
        """Raises ``TrainingDataError`` when the version cannot use some of the items."""
        self.version, self._data = version, data
        parts = []
        for at in range(0, len(data.items), _BATCH):
            rows, problems = version.item_side(data.items[at : at + _BATCH], version.layout.dtype)
            if problems:
                raise TrainingDataError(
                    f"{version.name} cannot use items of {data.name}: {dict(problems)}", mend="train on this data"
                )
            parts.append(rows)
        self.rows: Rows = np.concatenate(parts)

    def __call__(self, request: int, items: I64) -> NDArray[np.floating]:
        history, indices = self._data.history(request)
        everything = np.ones(len(indices), dtype=np.bool_)
        profile = self._data.profiles[self._data.requests.user[request]]
        user = self.version.user_side(profile, history, self.rows[indices], everything)
        return self.version.score(user, self.rows[items])


def evaluate_version(version: ModelVersion, data: Dataset) -> Evaluation:
    """Quality on the test part and cost at B = 10,000, L = 1,000 (median of 21, on rows of this catalogue)."""
    served = Served(version, data)
    return Evaluation(version.name, judge(served, data), _online_ms(served), _mflop(version.config))


def evaluate_baselines(data: Dataset) -> list[Evaluation]:
    """Popularity (clicks in the training part) and the mean of an item's training labels (prior of 5)."""
    requests = data.requests
    shown = requests.shown(requests.of(Split.TRAIN))
    count = np.bincount(requests.item[shown], minlength=len(data.items))
    chosen = requests.item[shown[requests.clicked[shown]]]
    clicks = np.bincount(chosen, minlength=len(data.items)).astype(np.float64)
    mean = (clicks + 5 * requests.clicked[shown].mean()) / (count + 5)
    return [
        Evaluation(name, judge(_lookup(table), data), 0.0, 0.0)
        for name, table in (("popularity", clicks), ("item-mean", mean))
    ]


def judge(ranker: Ranker, data: Dataset) -> dict[str, Metric]:
    """GAUC, AUC and HR@100 with intervals."""
    table, test = data.requests, data.requests.of(Split.TEST)
    scores = np.concatenate([ranker(int(r), table.item[table.first[r] : table.first[r + 1]]) for r in test])
    user = np.repeat(table.user[test], np.diff(table.first)[test])
    clicked = table.clicked[table.shown(test)]
    return {
        "gauc": gauc(user, scores, clicked),
        "auc": global_auc(user, scores, clicked),
        "hr@100": _hit_rate(ranker, data),
    }


def _hit_rate(ranker: Ranker, data: Dataset) -> Metric:
    table, random = data.requests, np.random.default_rng(0)
    test = data.requests.of(Split.TEST)
    test = test[np.lexsort((table.time_ms[test], table.user[test]))]
    _, heads = np.unique(table.user[test], return_index=True)
    shares, weights = [], []
    for mine in np.split(test, heads[1:]):
        shown = table.shown(mine)
        clicks = np.unique(table.item[shown][table.clicked[shown]])
        if not len(clicks):
            continue
        everything = np.arange(len(data.items))
        some = everything if len(everything) <= _CANDIDATES else random.choice(everything, _CANDIDATES, replace=False)
        candidates = np.union1d(np.setdiff1d(some, data.history(int(mine[0]))[1]), clicks)
        top = candidates[np.argsort(-ranker(int(mine[0]), candidates), kind="stable")[:_TOP]]
        shares.append(len(np.intersect1d(top, clicks)) / len(clicks))
        weights.append(len(clicks))
    return weighted_mean(np.array(shares), np.array(weights, dtype=np.float64))


def _lookup(table: NDArray[np.floating]) -> Callable[[int, I64], NDArray[np.floating]]:
    def rank(request: int, items: I64) -> NDArray[np.floating]:
        return table[items]

    return rank


def _online_ms(served: Served) -> float:
    """Milliseconds from the user side and candidate rows to scores, as many threads as torch has."""
    random = np.random.default_rng(0)
    rows, seen = (served.rows[random.integers(len(served.rows), size=size)] for size in (_COST_B, _COST_L))
    history = np.zeros(_COST_L, dtype=ENTRY)
    history["time_kind"] = np.sort(random.integers(1 << 40, size=_COST_L)).astype(np.uint64) << np.uint64(
        3
    ) | np.uint64(1)
    user = served.version.user_side(None, history, seen, np.ones(_COST_L, dtype=np.bool_))
    for _ in range(3):  # pages, caches, the allocator
        served.version.score(user, rows)
    times = []
    for _ in range(_COST_RUNS):
        began = monotonic_s()
        served.version.score(user, rows)
        times.append(elapsed_ms(began))
    return round(statistics.median(times), 3)


def _mflop(config: ModelConfig) -> float:
    """Floating-point operations (multiply and add count two) per 10,000 candidates; popcounts are none of them."""
    D, H, K, T, W = config.width, config.hidden, config.bridges, config.tiers, config.signature_bits
    dot, head = 2 * D, 7 * H + 2 * H * config.head + 3 * config.head
    each = {
        Kind.TWOTOWER: dot,
        Kind.COLD: dot + 2 * D * H + 2 * H + head,
        Kind.AIF: dot + 2 * (K + T + D) * H + (W // 8 + 2) * H + 3 * T + head,
    }[config.kind]
    return round(each * _COST_B / 1e6, 3)
