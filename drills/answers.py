"""Are scores of one version? Every answer against the joint forward of the version that it names.

An asked item may change while it is asked for. So per (user, version) the plain joint model scores every state that
the item ever had; a score must be that of a state that the server may have seen: the newest one from before the request
minus ``WINDOW_MS``, or any later one until the answer. Older: "stale" (a freshness matter, counted apart). No state at
all: the score is not of the version that the answer names, and the answer counts as mixed.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.history import History
from aif_stream.domain.ids import key_of
from aif_stream.domain.request import RankAnswer
from aif_stream.domain.row import Rows
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings
from drills.catalogue import HISTORY_ITEMS, Catalogue
from drills.rank_client import Heard

WINDOW_MS: Final = 10_000
# Rows are f16: measured 4e-4 on such models. Versions differ by some tenths.
TOLERANCE: Final = 5e-3
OK, STALE, MIXED = "ok", "stale", "mixed"

_HEARD = msgspec.json.Decoder(Heard)
_ANSWER = msgspec.json.Decoder(RankAnswer)


class Asker(NamedTuple):
    """One user: what the pinned side is made of."""

    history: History
    history_items: list[ItemUpserted]


@dataclass(slots=True)
class Truth:
    """Joint scores f64 of every state, by version, user and item; ``times`` (item): when each state was sent."""

    scores: dict[tuple[str, str], dict[str, NDArray[np.float64]]]
    times: dict[str, list[int]]


@dataclass(slots=True)
class Verdicts:
    """What became of all answers."""

    answers: Counter[str] = field(default_factory=Counter)
    scores: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    examples: list[str] = field(default_factory=list)


def read_heard(path: Path) -> Iterator[Heard]:
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield _HEARD.decode(line)


async def askers(settings: Settings, catalogue: Catalogue) -> dict[str, Asker]:
    """Each user's history as Redis has it, with the features of its items."""
    names = {key_of(f"still-{n}"): f"still-{n}" for n in range(HISTORY_ITEMS)}
    async with open_redis(settings) as redis:
        store = HistoryStore(redis, settings.history_long)
        found = {}
        for request in catalogue.requests:
            history = (await store.read(key_of(request["user_id"]))).history
            events = [catalogue.truth[names[key]][1] for key in history["key"].tolist()]
            found[request["user_id"]] = Asker(history, [msgspec.convert(event, ItemUpserted) for event in events])
        return found


async def truth_of(catalogue: Catalogue, users: Mapping[str, Asker], models: Iterable[ModelVersion]) -> Truth:
    """The joint forward over every state of every asked item. Minutes of one core when many states were sent."""
    scores: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    items = {
        name: [msgspec.convert(state.event, ItemUpserted) for state in states]
        for name, states in catalogue.states.items()
    }
    for model in models:
        for request in catalogue.requests:
            user = request["user_id"]
            flat = [item for name in request["candidates"] for item in items[name]]
            joint = await asyncio.to_thread(_joint, model, users[user], flat)
            ends = np.cumsum([len(items[name]) for name in request["candidates"]])
            parts = np.split(joint, ends[:-1])
            scores[model.name, user] = dict(zip(request["candidates"], parts, strict=True))
    return Truth(scores, {name: [state.sent_ms for state in states] for name, states in catalogue.states.items()})


def _joint(model: ModelVersion, asker: Asker, items: list[ItemUpserted]) -> NDArray[np.float64]:
    parts = [
        model.joint(None, asker.history, asker.history_items, items[at : at + 1000])
        for at in range(0, len(items), 1000)
    ]
    return np.concatenate(parts).astype(np.float64)


def judge(truth: Truth, heard: Heard, version: str, items: Iterable[tuple[str, float]]) -> tuple[str, float, str]:
    """Verdict on one answer's items under ``version``, the largest distance of an accepted score, and the first
    problem."""
    verdict, worst, problem = OK, 0.0, ""
    known = truth.scores.get((version, heard.user), {})
    for name, score in items:
        joint = known.get(name, np.empty(0))
        away = np.abs(joint - score)
        if not (away <= TOLERANCE).any():
            return (
                MIXED,
                worst,
                f"{heard.user} {name} {score} under {version}; nearest joint score {away.min(initial=9)}",
            )
        times = truth.times[name]
        first = max(0, bisect_right(times, heard.due_ms - WINDOW_MS) - 1)
        last = bisect_right(times, heard.done_ms)
        seen = away[first:last]
        if (seen <= TOLERANCE).any():
            worst = max(worst, float(seen.min()))
        elif verdict == OK:
            verdict, problem = STALE, f"{heard.user} {name} {score} under {version}: a state older than {WINDOW_MS} ms"
    return verdict, worst, problem


def judge_all(truth: Truth, path: Path) -> Verdicts:
    """Every answer that the client heard."""
    found = Verdicts()
    for heard in read_heard(path):
        found.statuses[heard.status] += 1
        if heard.status != 200:
            found.examples.append(f"{heard.status}: {bytes(heard.answer)[:200]!r}")
            continue
        answer = _ANSWER.decode(heard.answer)
        found.versions[answer.model_version] += 1
        found.degraded.update(answer.degraded)
        found.scores += len(answer.items)
        pairs = [(item.item_id, item.score) for item in answer.items]
        verdict, worst, problem = judge(truth, heard, answer.model_version, pairs)
        found.answers[verdict] += 1
        found.worst = max(found.worst, worst)
        if problem:
            found.examples.append(problem)
    return found


def planted(
    catalogue: Catalogue, users: Mapping[str, Asker], truth: Truth, models: list[ModelVersion], path: Path
) -> dict[str, Any]:
    """Would the judge notice? The last answers again, their scores made from two versions on purpose."""
    made: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    items = {name: msgspec.convert(states[-1].event, ItemUpserted) for name, states in catalogue.states.items()}
    candidates = {request["user_id"]: request["candidates"] for request in catalogue.requests}
    for heard in [heard for heard in read_heard(path) if heard.status == 200][-40:]:
        names = candidates[heard.user]
        for own, other in (models, models[::-1]):
            for kind, named, scores in _mixed(own, other, users[heard.user], [items[name] for name in names]):
                made[kind] += 1
                noticed[kind] += judge(truth, heard, named, zip(names, scores.tolist(), strict=True))[0] == MIXED
    return {kind: {"made": made[kind], "noticed": noticed[kind]} for kind in made}


def _mixed(
    own: ModelVersion, other: ModelVersion, asker: Asker, items: list[ItemUpserted]
) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Kind, the version that is named, and scores of an answer that no version gives."""
    seen = _rows(own, asker.history_items)
    user = own.user_side(None, asker.history, seen, np.ones(len(seen), np.bool_))
    rows, foreign = _rows(own, items), _rows(other, items)
    yield "user side of one version, rows of the other", own.name, own.score(user, foreign)
    one = rows.copy()
    one[0] = foreign[0]
    yield "one row of the other version", own.name, own.score(user, one)
    yield "the other version's name", other.name, own.score(user, rows)


def _rows(model: ModelVersion, items: list[ItemUpserted]) -> Rows:
    zeros = np.zeros(len(items), np.uint64)
    return model.item_rows(items, zeros, zeros, 0).rows
