"""CPU and time of one request's own work: COLD the classic way, COLD split as AIF is, and AIF with all parts.

    python benchmarks/peers/cold.py [--items 30000] [--candidates 10000] [--history 1000] [--requests 1000] [--json]

Same items, histories, candidates and Redis, one process, ways in random turns; no HTTP and no retrieval, which all of
them have alike. CPU is this process's; Redis' own, which the first way needs more of, is not in it. About 5 minutes.

- cold, features from Redis: everything after retrieval, one step after the other: features of the candidates and of the
  history's items from Redis, decode, encode, item tower, user side, scores (model/sequential.py).
- cold, features in memory: the same, but that features were read and encoded long before: the classic way at its best.
- cold, split: rows from the mirror, user side beside retrieval (its CPU is counted, its time not), the compiled scorer.
- aif: the same with all parts.

Goal: the paper says that AIF takes less than 15 % more than COLD; its COLD is sequential.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np

from aif_stream.bench.material import lines, model
from aif_stream.bench.statement import beside, goal
from aif_stream.clock import now_ms
from aif_stream.domain.events import BehaviorKind, decode_item
from aif_stream.domain.history import History, entry_bytes
from aif_stream.domain.ids import Keys
from aif_stream.domain.order import Order
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.model.config import Kind
from aif_stream.model.sequential import Sequential
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

STEP = 2_000
USERS = 16
MORE_THAN_COLD = 0.15


class Way:
    """Times of one way's stages, ms by stage and request."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self.cpu_ms: list[float] = []

    def note(self, stage: str, since_s: float) -> float:
        now_s = time.perf_counter()
        self.stages.setdefault(stage, []).append((now_s - since_s) * 1e3)
        return now_s

    def report(self) -> dict[str, Any]:
        stages = {name: quantiles(times) for name, times in self.stages.items()}
        return {"stages_ms": stages, "cpu_ms_per_request": quantiles(self.cpu_ms), "requests": len(self.cpu_ms)}


def quantiles(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times[len(times) // 20 :], [50, 99])  # the first twentieth warms up
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


class World:
    """Items, rows of both models and histories in Redis, rows in mirrors, features in memory."""

    def __init__(self, content: int, store: N2OStore, histories: HistoryStore) -> None:
        aif = model(content)
        self.aif = aif
        cold = msgspec.structs.replace(aif.config, kind=Kind.COLD)
        self.cold = ModelVersion.init(cold, seed=1, name="cold")
        self.store = store
        self.histories = histories
        self.mirrors = {v.name: Mirror(v.layout, v.name, memory_mb=4096) for v in (self.aif, self.cold)}

    async def fill(self, options: argparse.Namespace) -> None:
        made = lines(options.items, options.content)
        for version in (self.aif, self.cold):
            await self.store.add_version(version.name)
        everything = [decode_item(value) for _, value in made]
        self.in_memory = Sequential(self.cold, everything)
        for first in range(0, len(made), STEP):
            part = range(first, min(first + STEP, len(made)))
            items = everything[part.start : part.stop]
            orders = np.array([[now_ms(), n + 1] for n in part], dtype=np.uint64)
            rows = {
                version.name: version.item_rows(items, orders[:, 0], orders[:, 1], now_ms()).rows
                for version in (self.aif, self.cold)
            }
            writes = [
                ItemWrite(n, str(n), Order(int(time_ms), int(offset)), made[n][1])
                for n, (time_ms, offset) in zip(part, orders, strict=True)
            ]
            await self.store.write_live(writes, rows)
        random = np.random.default_rng(2)
        for user in range(USERS):
            start = now_ms() - 60_000 * options.history
            touched = random.integers(0, options.items, options.history).tolist()
            packed = b"".join(entry_bytes(k, BehaviorKind.CLICK, start + 60_000 * i) for i, k in enumerate(touched))
            await self.histories.append({user: packed})
        for mirror in self.mirrors.values():
            await mirror.load(self.store)

    async def history(self, user: int) -> History:
        return (await self.histories.read(user)).history

    async def from_redis(self, user: int, keys: Keys, way: Way) -> None:
        at_s = time.perf_counter()
        history = await self.history(user)
        at_s = way.note("history", at_s)
        seen = history["key"].tolist()
        stored = await self.store.read_items([*seen, *keys.tolist()])
        at_s = way.note("features from Redis", at_s)
        items = [decode_item(item.payload) for item in stored if item is not None]
        at_s = way.note("decode", at_s)
        sequential = Sequential(self.cold, items)
        at_s = way.note("encode", at_s)
        places = np.arange(len(items), dtype=np.int64)
        top(sequential.scores(history, places[: len(seen)], places[len(seen) :]))
        way.note("towers and score", at_s)

    async def from_memory(self, user: int, keys: Keys, way: Way) -> None:
        at_s = time.perf_counter()
        history = await self.history(user)
        at_s = way.note("history", at_s)
        top(self.in_memory.scores(history, history["key"].astype(np.int64), keys.astype(np.int64)))
        way.note("towers and score", at_s)

    async def split(self, version: ModelVersion, user: int, keys: Keys, way: Way) -> None:
        at_s, mirror = time.perf_counter(), self.mirrors[version.name]
        history = await self.history(user)
        with mirror.reading() as view:
            rows, found = view.join(np.ascontiguousarray(history["key"]))
        side = version.user_side(None, history, rows, found)
        at_s = way.note("user side (beside retrieval)", at_s)
        with mirror.reading() as view:
            rows, found = view.join(keys)
        at_s = way.note("join", at_s)
        assert found.all()
        top(version.score(side, rows))
        way.note("score", at_s)


def top(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    best = np.argpartition(-scores, 500)[:500]
    return best[np.argsort(-scores[best])]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    around = beside()
    random = np.random.default_rng(3)
    async with EmbeddedRedis() as server, open_redis(Settings(redis_url=server.url)) as redis:
        store = N2OStore(redis, Buckets(Settings().index_buckets))
        world = World(options.content, store, HistoryStore(redis, options.history))
        await world.fill(options)
        calls: dict[str, Callable[[int, Keys, Way], Awaitable[None]]] = {
            "cold, features from Redis": world.from_redis,
            "cold, features in memory": world.from_memory,
            "cold, split": lambda user, keys, way: world.split(world.cold, user, keys, way),
            "aif": lambda user, keys, way: world.split(world.aif, user, keys, way),
        }
        ways = {name: Way() for name in calls}
        for request in range(options.requests):
            keys = random.choice(options.items, options.candidates, replace=False).astype(np.uint64)
            # In another order each time: whoever follows the first way finds the caches full of its features.
            for name in random.permutation(list(calls)).tolist():
                cpu_s = time.process_time()
                await calls[name](request % USERS, keys, ways[name])
                ways[name].cpu_ms.append((time.process_time() - cpu_s) * 1e3)
    found = {name: way.report() for name, way in ways.items()}
    more = {
        name: round(found["aif"]["cpu_ms_per_request"]["p50"] / way["cpu_ms_per_request"]["p50"] - 1, 3)
        for name, way in found.items()
        if name != "aif"
    }
    return {
        "ways": found,
        "aif_cpu_more_than": more,
        "goals": [goal(f"CPU more than {n}", MORE_THAN_COLD, share, at_least=False) for n, share in more.items()],
        "beside": around,
        "set_up": {
            **{name: getattr(options, name) for name in ("items", "candidates", "history", "content")},
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("items", 30_000), ("candidates", 10_000), ("history", 1_000), ("content", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options)), indent=None if options.json else 2))


if __name__ == "__main__":
    main()
