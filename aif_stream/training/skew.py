"""What closed versions buy: ranking quality when item rows and user side or scorer come from different versions.

A chain of versions is trained, each on a later window of the training part: anew with a seed of its own (``anew``),
anew from the same initial weights (``same start``), or going on from the version before (``fine-tuned``). Then the test
part is ranked by mixtures that a system without closed versions would serve: version k's user side and scorer on rows
of version k - d (rows lag), rows and scorer of k with a user side of k - d (the user side lags); and, beside them, by
version k - d alone (closed, d versions late), which is what a closed system serves until its rebuild has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import TrainingDataError
from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import TEST_FROM, VALID_FROM, Dataset, Split
from aif_stream.training.evaluate import Judged, Ranker, Served, judge
from aif_stream.training.loop import Recipe, Trainer
from aif_stream.training.metrics import Resampled, check_finite, ratio

I64 = NDArray[np.int64]

ROADS: Final = ("anew", "same start", "fine-tuned")
MODES: Final = ("closed", "rows lag", "user side lags")
_TOP: Final = 100
_ITEMS: Final = 2000
_USERS: Final = 60
_UNSEEN: Final = 3  # a part that nobody reads

OnStep = Callable[[str, int, int], None]


def window(data: Dataset, number: int, count: int) -> Dataset:
    """The data set as version ``number`` of ``count`` sees it: of what lies before the test part it knows the older
    half and a share of the newer one; the newest ninth of that validates, as in the whole set. What is later
    is in no part, so an early version knows nothing of later weeks. The test part stays."""
    table = data.requests
    known = np.flatnonzero(table.split < Split.TEST)
    known = known[np.argsort(table.time_ms[known], kind="stable")]
    keep = round(len(known) * (0.5 + 0.5 * (number + 1) / count))
    split = table.split.copy()
    split[known] = _UNSEEN
    split[known[:keep]] = Split.TRAIN
    split[known[round(keep * VALID_FROM / TEST_FROM) : keep]] = Split.VALID
    name = f"{data.name}, the first {TEST_FROM * keep / len(known):.0%}"
    return replace(data, name=name, requests=replace(table, split=split))


def chain(
    data: Dataset, road: str, count: int, recipe: Recipe, on_version: Callable[[int], None]
) -> list[ModelVersion]:
    """``count`` versions, oldest first, trained along a road of ``ROADS``."""
    versions: list[ModelVersion] = []
    for number in range(count):
        on_version(number)
        seed = recipe.seed * 100 + (number if road == "anew" else 0)
        trainer = Trainer(window(data, number, count), f"v{number}", replace(recipe, seed=seed))
        if road == "fine-tuned" and versions:
            trainer.net.load_state_dict(versions[-1].net.state_dict())
        versions.append(trainer.run())
    return versions


def mixed(rows: Served, user: Served, scorer: Served, data: Dataset) -> Ranker:
    """Ranks by the rows of one version, the user side of another and the scorer of a third.

    The user side reads the history through the rows that are there, as in service."""

    def rank(request: int, items: I64) -> NDArray[np.floating]:
        history, indices = data.history(request)
        profile = data.profiles[data.requests.user[request]]
        everything, time_ms = np.ones(len(indices), dtype=np.bool_), int(data.requests.time_ms[request])
        indices, items = data.states_at(indices, time_ms), data.states_at(items, time_ms)
        side = user.version.user_side(profile, history, rows.rows[indices], everything)
        return scorer.version.score(side, rows.rows[items])

    return rank


def overlap(ranker: Ranker, reference: Ranker, data: Dataset) -> Resampled:
    """Share of the reference's first 100 that the ranker has in its own: of 60 test requests by different users over
    the same 2,000 items (or the catalogue)."""
    table, test = data.requests, data.requests.of(Split.TEST)
    _, first = np.unique(table.user[test], return_index=True)
    requests = test[np.sort(first)]
    requests = requests[np.linspace(0, len(requests) - 1, min(_USERS, len(requests))).astype(np.int64)]
    items = np.random.default_rng(0).permutation(len(data.items))[:_ITEMS]
    top = min(_TOP, len(items))
    same = []
    for request in requests.tolist():
        scores = [r(request, items) for r in (reference, ranker)]
        check_finite(np.concatenate(scores), "scores")
        best, other = (set(np.argsort(-values, kind="stable")[:top].tolist()) for values in scores)
        same.append(len(best & other) / top)
    return ratio(np.array(same), np.ones(len(same)))


def run_skew(
    data: Dataset, roads: Sequence[str], count: int, recipe: Recipe, seed: int, on_step: OnStep
) -> list[dict[str, Any]]:
    """One record per road, mode and distance: metrics, the paired difference to the closed newest version, and the
    overlap of the first 100 with it."""
    if count < 2:
        raise TrainingDataError("one version cannot lag behind itself", mend="train at least two")
    records: list[dict[str, Any]] = []
    for place, road in enumerate(roads):

        def on_version(number: int, place: int = place, road: str = road) -> None:
            step = f"{road}, version {number + 1} of {count}, seed {seed}"
            on_step(step, place * count + number, len(roads) * count)

        versions = chain(data, road, count, replace(recipe, seed=seed), on_version)
        found = _compare([Served(version, data) for version in versions], data)
        records += [{"seed": seed, "data": data.name, "road": road, **line} for line in found]
    return records


def _compare(versions: Sequence[Served], data: Dataset) -> list[dict[str, Any]]:
    newest = versions[-1]
    reference = judge(newest, data)
    lines = [_line("closed", 0, newest, reference, reference, newest, data)]
    for distance in range(1, len(versions)):
        late = versions[-1 - distance]
        rankers: dict[str, Ranker] = {
            "closed": late,
            "rows lag": mixed(late, newest, newest, data),
            "user side lags": mixed(newest, late, newest, data),
        }
        lines += [_line(m, distance, r, judge(r, data), reference, newest, data) for m, r in rankers.items()]
    return lines


def _line(
    mode: str, distance: int, ranker: Ranker, judged: Judged, reference: Judged, newest: Ranker, data: Dataset
) -> dict[str, Any]:
    return {
        "mode": mode,
        "distance": distance,
        "metrics": {name: metric._asdict() for name, metric in judged.metrics().items()},
        "difference": {name: metric._asdict() for name, metric in judged.minus(reference).items()},
        "overlap": overlap(ranker, newest, data).metric()._asdict(),
    }
