"""Ranking quality against delay: of item updates, of histories, of both.

One trained version ranks the test part as a server would whose index is late: a request at time t sees the rows of item
states that held at t - delay, and the user's behaviors until t - delay. Nothing is trained again: what is measured is
what lateness costs a model that was trained on features and histories of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Ranker, Served, judge
from aif_stream.training.loop import Recipe, Trainer

I64 = NDArray[np.int64]

DELAYS_S: Final = {
    "0": 0,
    "1 s": 1,
    "10 s": 10,
    "1 min": 60,
    "10 min": 600,
    "1 h": 3_600,
    "6 h": 21_600,
    "1 day": 86_400,
    "3 days": 259_200,
}
WHAT: Final = ("items", "histories", "both")

OnStep = Callable[[str, int, int], None]


class Late:
    """A version over a catalogue that changes, with rows of every state that an item ever had."""

    def __init__(self, version: ModelVersion, data: Dataset) -> None:
        self.version, self._data = version, data
        self._rows = Served(version, data).rows

    def ranker(self, items_ms: int, histories_ms: int) -> Ranker:
        """Ranks with item updates and histories that arrive so many ms late."""
        data, table = self._data, self._data.requests

        def rank(request: int, items: I64) -> NDArray[np.floating]:
            time_ms = int(table.time_ms[request])
            history, indices = data.history(request)
            end = table.begin[request] + len(indices)
            times = data.behaviors.time_ms[table.begin[request] : end]
            known = int(np.searchsorted(times, time_ms - histories_ms, side="left"))
            history, indices = history[:known], indices[:known]
            profile = data.profiles[table.user[request]]
            own, shown = (self._rows[data.states_at(at, time_ms - items_ms)] for at in (indices, items))
            side = self.version.user_side(profile, history, own, np.ones(known, dtype=np.bool_))
            return self.version.score(side, shown)

        return rank


def changed(data: Dataset, delay_ms: int) -> dict[str, float]:
    """Of the test part: share of impressions whose item has another state at their time than so long before, and mean
    number of history entries that are missing then."""
    table = data.requests
    test = table.of(Split.TEST)
    rows = table.shown(test)
    item, time_ms = table.item[rows], np.repeat(table.time_ms[test], np.diff(table.first)[test])
    share = float((data.states_at(item, time_ms) != data.states_at(item, time_ms - delay_ms)).mean())
    missing = []
    for request in test.tolist():
        times = data.behaviors.time_ms[table.begin[request] : table.end[request]]
        missing.append(len(times) - int(np.searchsorted(times, table.time_ms[request] - delay_ms, side="left")))
    return {"changed": round(share, 5), "missing": round(float(np.mean(missing)), 3)}


def run_staleness(
    data: Dataset, delays: Sequence[str], recipe: Recipe, seed: int, on_step: OnStep
) -> list[dict[str, Any]]:
    """One record per what is late and delay: metrics, and the paired difference to no delay."""
    what = WHAT if data.versions is not None else ("histories",)
    cases = [(kind, delay) for kind in what for delay in delays]
    on_step(f"training, seed {seed}", 0, 1 + len(cases))
    late = Late(Trainer(data, "staleness", replace(recipe, seed=seed)).run(), data)
    reference = judge(late.ranker(0, 0), data)
    records = []
    for number, (kind, delay) in enumerate(cases):
        on_step(f"{kind} {delay} late, seed {seed}", 1 + number, 1 + len(cases))
        ms = 1000 * DELAYS_S[delay]
        ranker = late.ranker(ms if kind != "histories" else 0, ms if kind != "items" else 0)
        judged = judge(ranker, data) if ms else reference
        records.append(
            {
                "seed": seed,
                "data": data.name,
                "late": kind,
                "delay": delay,
                "delay_s": DELAYS_S[delay],
                **changed(data, ms),
                "metrics": {name: metric._asdict() for name, metric in judged.metrics().items()},
                "difference": {name: metric._asdict() for name, metric in judged.minus(reference).items()},
            }
        )
    return records
