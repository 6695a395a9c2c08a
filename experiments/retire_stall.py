"""Does freeing a version, or counting its coverage, keep Redis from others? Pings every millisecond meanwhile.

    python experiments/retire_stall.py [--items 200000] [--out experiments/results/retire_stall.json]

Starts an embedded Redis, fills it with items and rows of one version (512 bytes each), then pings it from another
connection while nothing happens, while the gate counts coverage, and while the version is removed. Milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.order import Order
from aif_stream.domain.row import VALID, RowLayout, empty_rows
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.coverage import count_coverage
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings

LAYOUT = RowLayout(hidden=128, width=64, bridges=16, signature_bits=256)
BATCH = 2_000


async def fill(store: N2OStore, items: int) -> None:
    await store.add_version("v1")
    for first in range(0, items, BATCH):
        keys = range(first, min(first + BATCH, items))
        rows = empty_rows(LAYOUT, len(keys))
        rows["event_time_ms"], rows["computed_ms"], rows["flags"] = 1, 1, VALID
        await store.write_live([ItemWrite(key, str(key), Order(1, 0), bytes(160)) for key in keys], {"v1": rows})


async def pinged(redis: Redis, work: Awaitable[Any]) -> dict[str, float]:
    """Round trips of pings while ``work`` goes on."""
    task, times = asyncio.ensure_future(work), []
    start_s = monotonic_s()
    while not task.done():
        sent_s = monotonic_s()
        await redis.call("PING")
        times.append(elapsed_ms(sent_s))
        await asyncio.sleep(0.001)
    await task
    p50, p99 = np.percentile(times, (50, 99)).tolist()
    return {
        "seconds": round(elapsed_ms(start_s) / 1000, 3),
        "pings": len(times),
        "p50": round(p50, 3),
        "p99": round(p99, 3),
        "max": round(max(times), 3),
    }


async def measure(items: int) -> dict[str, Any]:
    async with EmbeddedRedis() as server:
        settings = replace(Settings(), redis_url=server.url)
        async with open_redis(settings) as redis, open_redis(settings) as other:
            store = N2OStore(redis, Buckets(settings.index_buckets))
            await fill(store, items)
            return {
                "items": items,
                "row_bytes": LAYOUT.dtype.itemsize,
                "buckets": settings.index_buckets,
                "idle": await pinged(other, asyncio.sleep(2)),
                "coverage": await pinged(other, count_coverage(redis, "v1", range(settings.index_buckets))),
                "remove_version": await pinged(other, store.remove_version("v1")),
            }


@click.command()
@click.option("--items", default=200_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/retire_stall.json"))
def main(items: int, out: Path) -> None:
    """Fill, ping, write."""
    found = asyncio.run(measure(items))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
