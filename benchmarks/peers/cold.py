"""One request the COLD way, and AIF's way, with the same model, candidates and Redis, in one process.

    python benchmarks/peers/cold.py [--items 30000] [--candidates 10000] [--history 1000] [--requests 200] [--json]

COLD: everything after retrieval, one step after the other: features of the candidates from Redis, decode, item tower
for all of them, user side, score. AIF: the user side has run beside retrieval (its CPU is counted, its time not), then
join and score. Both read the user's history from Redis and take the rows of its items from the mirror, which flatters
COLD. Retrieval itself is in neither. CPU is this process's; Redis' own, which COLD needs more of, is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from typing import Any

import numpy as np

from aif_stream.bench.material import lines, model
from aif_stream.clock import now_ms
from aif_stream.domain.events import BehaviorKind, ItemUpserted, decode_item
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.ids import Keys
from aif_stream.domain.order import Order
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

STEP = 2_000
USERS = 16


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
        return {"stages_ms": stages, "cpu_ms_per_request": round(float(np.median(self.cpu_ms)), 2)}


def quantiles(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times[len(times) // 20 :], [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


class World:
    """Items, rows and histories in Redis, rows in a mirror."""

    def __init__(self, version: ModelVersion, store: N2OStore, histories: HistoryStore) -> None:
        self.version = version
        self.store = store
        self.histories = histories
        self.mirror = Mirror(version.layout, version.name, memory_mb=4096)

    async def fill(self, options: argparse.Namespace) -> None:
        made = lines(options.items, options.content)
        await self.store.add_version(self.version.name)
        for first in range(0, len(made), STEP):
            part = range(first, min(first + STEP, len(made)))
            items = [decode_item(made[n][1]) for n in part]
            orders = np.array([[now_ms(), n + 1] for n in part], dtype=np.uint64)
            rows = self.version.item_rows(items, orders[:, 0], orders[:, 1], now_ms()).rows
            writes = [
                ItemWrite(n, str(n), Order(int(time_ms), int(offset)), made[n][1])
                for n, (time_ms, offset) in zip(part, orders, strict=True)
            ]
            await self.store.write_live(writes, {self.version.name: rows})
        random = np.random.default_rng(2)
        for user in range(USERS):
            start = now_ms() - 60_000 * options.history
            touched = random.integers(0, options.items, options.history).tolist()
            packed = b"".join(entry_bytes(k, BehaviorKind.CLICK, start + 60_000 * i) for i, k in enumerate(touched))
            await self.histories.append({user: packed})
        await self.mirror.load(self.store)

    async def user_side(self, user: int) -> Any:
        history = (await self.histories.read(user)).history
        with self.mirror.reading() as view:
            rows, found = view.join(np.ascontiguousarray(history["key"]))
        return self.version.user_side(None, history, rows, found)

    async def cold(self, user: int, keys: Keys, way: Way) -> None:
        cpu_s, began_s = time.process_time(), time.perf_counter()
        stored = await self.store.read_items(keys.tolist())
        at_s = way.note("features from Redis", began_s)
        items: list[ItemUpserted] = [decode_item(item.payload) for item in stored if item is not None]
        at_s = way.note("decode", at_s)
        zeros = np.zeros(len(items), dtype=np.uint64)
        rows = self.version.item_rows(items, zeros, zeros, 0).rows
        at_s = way.note("item tower", at_s)
        side = await self.user_side(user)
        at_s = way.note("user side", at_s)
        top(self.version.score(side, rows))
        way.note("score", at_s)
        way.note("after retrieval", began_s)
        way.cpu_ms.append((time.process_time() - cpu_s) * 1e3)

    async def aif(self, user: int, keys: Keys, way: Way) -> None:
        cpu_s, began_s = time.process_time(), time.perf_counter()
        side = await self.user_side(user)
        joined_s = way.note("user side (beside retrieval)", began_s)
        with self.mirror.reading() as view:
            rows, found = view.join(keys)
        at_s = way.note("join", joined_s)
        assert found.all()
        top(self.version.score(side, rows))
        way.note("score", at_s)
        way.note("after retrieval", joined_s)
        way.cpu_ms.append((time.process_time() - cpu_s) * 1e3)


def top(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    best = np.argpartition(-scores, 500)[:500]
    return best[np.argsort(-scores[best])]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    random = np.random.default_rng(3)
    cold, aif = Way(), Way()
    async with EmbeddedRedis() as server, open_redis(Settings(redis_url=server.url)) as redis:
        store = N2OStore(redis, Buckets(Settings().index_buckets))
        world = World(model(options.content), store, HistoryStore(redis, options.history))
        await world.fill(options)
        for request in range(options.requests):
            keys = random.choice(options.items, options.candidates, replace=False).astype(np.uint64)
            await world.cold(request % USERS, keys, cold)
            await world.aif(request % USERS, keys, aif)
    found = {"cold": cold.report(), "aif": aif.report()}
    times = [way["stages_ms"]["after retrieval"]["p50"] for way in (found["cold"], found["aif"])]
    return {
        "ways": found,
        "cold_over_aif_after_retrieval": round(times[0] / times[1], 1),
        "set_up": {
            **{name: getattr(options, name) for name in ("items", "candidates", "history", "content", "requests")},
            "load_1min": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("items", 30_000), ("candidates", 10_000), ("history", 1_000), ("content", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options)), indent=None if options.json else 2))


if __name__ == "__main__":
    main()
