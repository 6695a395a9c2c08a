"""10,000 rows by key: the mirror's join, one batched read of Redis, and redis-py's MGET of the same bytes.

    python benchmarks/join.py [--items 100000] [--candidates 10000] [--requests 1000] [--json]

An embedded Redis on this machine; every request asks for other candidates, so that none is in a cache for it. The
mirror's join ends with a block of rows; so do the reads of Redis. ``mget`` reads strings of the row's size, in one
command, and puts them into one array. Feast on the same rows: benchmarks/peers/feast_join.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as version_of
from typing import Any, Final, cast

import numpy as np
import redis.asyncio as redis_py

from aif_stream.bench.statement import beside, goal
from aif_stream.clock import now_ms
from aif_stream.domain.ids import Keys
from aif_stream.domain.order import Order
from aif_stream.domain.row import VALID, RowLayout, Rows, empty_rows
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import AifError
from aif_stream.index.connection import open_redis
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings

LAYOUT: Final = RowLayout(hidden=64, width=32, bridges=16, signature_bits=256)
VERSION: Final = "bench"
GOALS: Final = {
    "redis_py_mget": ("redis-py MGET", 15.0),
    "feast_row": ("Feast, the row as one feature", 200.0),
    "feast_numbers": ("Feast, its numbers as three features", 200.0),
}
_STEP: Final = 2_000


async def fill(store: N2OStore, url: str, items: int) -> None:
    """Rows of items 1 … ``items``, in the index and as plain strings ``row:<id>``."""
    random = np.random.default_rng(7)
    await store.add_version(VERSION)
    async with redis_py.from_url(url) as client:
        for first in range(1, items + 1, _STEP):
            ids = range(first, min(first + _STEP, items + 1))
            rows = empty_rows(LAYOUT, len(ids))
            rows["event_time_ms"], rows["offset"] = now_ms(), np.array(ids)
            rows["flags"], rows["h"] = VALID, random.normal(size=(len(ids), LAYOUT.hidden))
            writes = [
                ItemWrite(i, str(i), Order(int(row["event_time_ms"]), i), b"{}")
                for i, row in zip(ids, rows, strict=True)
            ]
            await store.write_live(writes, {VERSION: rows})
            await client.mset({f"row:{i}": row.tobytes() for i, row in zip(ids, rows, strict=True)})


async def timed(call: Callable[[Keys], Awaitable[int]], wanted: list[Keys]) -> dict[str, Any]:
    """p50, p99 in ms over the requests; each must give every row."""
    took = []
    for keys in wanted:
        start = time.perf_counter()
        found = await call(keys)
        took.append((time.perf_counter() - start) * 1e3)
        if found != len(keys):
            raise AifError(f"{found} rows of {len(keys)} were found")
    p50, p99 = np.percentile(took[len(took) // 20 :], [50, 99])  # the first twentieth warms up
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "requests": len(took)}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    around = beside()
    random = np.random.default_rng(5)
    wanted = [
        random.choice(options.items, options.candidates, replace=False).astype(np.uint64) + np.uint64(1)
        for _ in range(options.requests)
    ]
    async with EmbeddedRedis() as server, open_redis(Settings(redis_url=server.url)) as connection:
        store = N2OStore(connection, Buckets(Settings().index_buckets))
        await fill(store, server.url, options.items)
        mirror = Mirror(LAYOUT, VERSION, memory_mb=4096)
        await mirror.load(store)

        async def joined(keys: Keys) -> int:
            with mirror.reading() as view:
                _, found = view.join(keys)
            return int(found.sum())

        async def batched(keys: Keys) -> int:
            _, found = await store.read_rows(VERSION, LAYOUT, keys)
            return int(found.sum())

        async with redis_py.from_url(server.url) as client:

            async def mget(keys: Keys) -> int:
                values = await client.mget([f"row:{key}" for key in keys.tolist()])
                rows: Rows = np.frombuffer(b"".join(cast("list[bytes]", values)), dtype=LAYOUT.dtype)
                return len(rows)

            ways = {
                "mirror": await timed(joined, wanted),
                "redis_one_read": await timed(batched, wanted),
                "redis_py_mget": await timed(mget, wanted),
            }
        if options.beside is not None:
            ways |= await options.beside(server.url, options)
    for way in ways.values():
        way["times_the_mirror"] = round(way["p50_ms"] / ways["mirror"]["p50_ms"], 1)
    goals = [
        goal(f"{GOALS[name][0]}: times the mirror", GOALS[name][1], way["times_the_mirror"], at_least=True)
        for name, way in ways.items()
        if name in GOALS
    ]
    return {"ways": ways, "goals": goals, "beside": around, "set_up": set_up(options)}


def set_up(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "items": options.items,
        "candidates": options.candidates,
        "row_bytes": LAYOUT.dtype.itemsize,
        "redis_py": version_of("redis"),
        "hiredis": version_of("hiredis"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(beside=None)
    return parser


QUICK: Final = ["--items", "20000", "--requests", "40"]


def result_of(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    return asyncio.run(measure(options))


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    print(json.dumps(result_of(options), indent=None if options.json else 2))


if __name__ == "__main__":
    main()
