"""How often do the caches of explanations answer on a replayed log, and how far is the near one off?

    OMP_NUM_THREADS=1 python experiments/explain_cache.py [--sessions 40] [--out FILE] [--models build/faithfulness]

The log: sessions of synthetic users (100, Zipf, some come back), 6 requests each: retrieval names the user's 200 of the
catalogue, of which 20 change from request to request; after a request the user reloads (20 %: the same answer again),
clicks the best item that is not in the history (40 %), or goes on (40 %). Of each answer the first two are explained:
whatever comes is asked of the exact cache, then of the near one, in an embedded Redis, by the classes of the worker;
and all is computed besides, so that the disagreement is known of every hit and not only of the compared ones.

``planted``: the same log with the effects that are kept turned round: when does it switch itself off?
``steps``: what other steps of the user's signature would have done. About 1 minute of CPU after the model is there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import orjson

from aif_stream.clock import now_ms
from aif_stream.domain.explanations import ExplanationTask, Method, Priority
from aif_stream.domain.facts import Facts
from aif_stream.domain.history import KIND_BITS
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.explain.case import open_case
from aif_stream.explain.digest import facts_digest
from aif_stream.explain.near import OFF_S, STEP, WINDOW, Near, disagreement, near_digest
from aif_stream.explain.shapley import Game, shapley, shapley_stage
from aif_stream.index.connection import open_redis
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.near_cache import NearStore
from aif_stream.settings import Settings
from aif_stream.training.evaluate import Served
from aif_stream.training.report import about
from aif_stream.training.sources import open_data

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.explain_cases import answer
from experiments.explain_faithfulness import SPEC, served_of

STEPS: Final = (0.025, STEP, 0.1, 0.2)
USERS: Final = 100
REQUESTS: Final = 6
SHOWN: Final = 200
EXPLAINED: Final = 2


def replayed(served: Served, sessions: int) -> Iterator[Facts]:
    """The answers to the log, one after the other."""
    data, random = open_data(SPEC), np.random.default_rng(4)
    weights = 1.0 / np.arange(1, USERS + 1)
    histories: dict[int, Any] = {}
    for _ in range(sessions):
        user = int(random.choice(USERS, p=weights / weights.sum()))
        request = int(np.flatnonzero(data.requests.user == user)[0])
        history, seen = histories.get(user) or data.history(request)
        retrieved = np.random.default_rng(user).permutation(len(data.items))[:SHOWN]
        for _ in range(REQUESTS):
            changed = random.permutation(SHOWN)[: SHOWN // 10]
            retrieved[changed] = random.integers(0, len(data.items), len(changed))
            candidates = np.unique(retrieved)
            facts = answer(served, data.profiles[user], history, seen, candidates, k=10)
            yield facts
            does = random.random()
            if does < 0.2:
                yield facts
            elif does < 0.6:
                clicked = next((int(i.item_id) for i in facts.head.items if int(i.item_id) not in seen), None)
                if clicked is not None:
                    entry = history[-1:].copy()
                    entry["key"], entry["time_kind"] = clicked + 1, entry["time_kind"] + np.uint64(60_000 << KIND_BITS)
                    history, seen = np.concatenate([history, entry]), np.append(seen, clicked)
        histories[user] = (history, seen)


async def replay(served: Served, answers: list[Facts], computed: dict[str, dict[str, Any]], *, plant: bool) -> Any:
    """One pass through both caches; ``computed``: stages by exact digest, shared between passes."""
    counts = dict.fromkeys(("exact", "near", "compared", "computed"), 0)
    apart, residuals, switched, asked = [], [], None, 0
    steps: dict[float, dict[str, dict[str, Any]]] = {step: {} for step in STEPS}
    stepped: dict[float, list[float]] = {step: [] for step in STEPS}
    async with EmbeddedRedis() as embedded, open_redis(Settings(redis_url=embedded.url)) as redis:
        exact = ExplanationStore(redis, keep_s=3600, facts_s=3600)
        store = NearStore(redis, keep_s=3600, off_s=OFF_S, window=WINDOW)
        near = Near(store, bound=Settings().explain_near_bound, check=Settings().explain_near_check)
        for facts in answers:
            for item in facts.head.items[:EXPLAINED]:
                asked += 1
                digest = facts_digest(facts, _task(item.item_id))
                if await exact.cached(digest) is not None:
                    counts["exact"] += 1
                    continue
                case = open_case(served.version, facts, item.item_id)
                game = Game(case)
                name = near_digest(game)
                hit = await near.look("v", name, case.recomputed)
                if digest not in computed:
                    *_, last = shapley(game)
                    computed[digest] = shapley_stage(last)
                stage = computed[digest]
                for step in STEPS:
                    key = near_digest(game, step)
                    if key in steps[step]:
                        stepped[step].append(disagreement(steps[step][key], stage))
                    steps[step].setdefault(key, stage)
                if hit.tell and hit.stage is not None:
                    counts["near"] += 1
                    apart.append(disagreement(hit.stage, stage))
                    residuals.append(hit.stage["residual"])
                    continue
                counts["compared" if hit.stage is not None else "computed"] += 1
                await near.computed("v", hit, stage)
                if plant:
                    await store.keep("v", name, orjson.dumps(turned(stage)))
                await exact.cache(digest, orjson.dumps(stage))
                if switched is None and (await store.look("v", name)).off:
                    switched = {"explanations": asked, "compared": counts["compared"], "told": counts["near"]}
    told = {"explanations": asked, **{f"{kind}_rate": round(count / asked, 4) for kind, count in counts.items()}}
    told |= {"near_disagreement": spread(apart), "near_residual": spread(residuals), "switched_off_after": switched}
    if not plant:
        told["steps"] = {
            str(step): {"of_those_not_exact": round(len(found) / (asked - counts["exact"]), 4), **spread(found)}
            for step, found in stepped.items()
        }
    return told


def turned(stage: dict[str, Any]) -> dict[str, Any]:
    """Every effect with the other sign: the planted disagreement."""
    return {**stage, "groups": [{**group, "effect": -group["effect"]} for group in stage["groups"]]}


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "mean": round(float(np.mean(values)), 4),
        **{name: round(float(np.quantile(values, q)), 4) for name, q in (("p50", 0.5), ("p95", 0.95))},
    }


def _task(item_id: str) -> ExplanationTask:
    return ExplanationTask(
        explanation_id="x",
        run=1,
        request_id="r",
        item_id=item_id,
        method=Method.SHAPLEY,
        priority=Priority.LOW,
        asked_ms=now_ms(),
        answered_ms=0,
        deadline_ms=0,
    )


@click.command()
@click.option("--sessions", default=40, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/explain_cache.json"))
@click.option("--models", type=click.Path(path_type=Path), default=Path("build/faithfulness"), show_default=True)
def main(sessions: int, out: Path, models: Path) -> None:
    served = served_of(SPEC, models)
    answers = list(replayed(served, sessions))
    computed: dict[str, dict[str, Any]] = {}
    machine = {key: value for key, value in about().items() if key in {"commit", "machine", "load_average"}}
    result = {
        "model": SPEC,
        **machine,
        "sessions": sessions,
        "answers": len(answers),
        "step": STEP,
        "replayed": asyncio.run(replay(served, answers, computed, plant=False)),
        "planted": asyncio.run(replay(served, answers, computed, plant=True)),
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
