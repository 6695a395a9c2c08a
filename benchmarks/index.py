"""The N2O index alone, against an embedded Redis (AOF everysec): writes, reads, bulk load, histories.

    python benchmarks/index.py [--buckets 64,256,1024,4096] [--items 200000] [--batch 512] [--json]

Prints per bucket count, for the embedded Redis on this machine's other core: item writes/s one batch at a time and
with a second one under way, CPU of client and Redis per write (compared with redis-py's pipeline for the same
script calls), p50/p99 of reading 10,000 rows, bulk load, boot and join of a mirror, memory per item, histories.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import redis.asyncio as redis_py

from aif_stream.clock import cpu_ms, cpu_s, now_ms
from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.order import Order
from aif_stream.domain.row import VALID, RowLayout, empty_rows
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index import packing
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite, pack_write
from aif_stream.index.keys import Buckets, items_key, rows_key, versions_key
from aif_stream.index.mirror import Mirror
from aif_stream.index.scripts import script
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings

LAYOUT = RowLayout(hidden=64, width=32, bridges=16, signature_bits=256)  # 288-byte rows, as in design §12
PAYLOAD = (
    b'{"item_id":%d,"category":"c7","attributes":{"brand":"b1","price":3.5,"tags":["a","b"]},'
    b'"content_vector":null,"pad":"%s"}'
)
VERSION = "v1"


def batch_of(keys: np.ndarray[Any, Any], offset: int) -> tuple[list[ItemWrite], dict[str, Any]]:
    """One micro-batch of new events for ``keys``."""
    event_time_ms = now_ms()
    rows = empty_rows(LAYOUT, len(keys))
    rows["event_time_ms"], rows["offset"] = event_time_ms, np.arange(offset, offset + len(keys))
    rows["computed_ms"], rows["flags"] = event_time_ms, VALID
    items = [
        ItemWrite(key, str(key), Order(event_time_ms, offset + i), PAYLOAD % (key, b"x" * 40))
        for i, key in enumerate(keys.tolist())
    ]
    return items, {VERSION: rows}


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]}


async def writes(store: N2OStore, server: EmbeddedRedis, options: argparse.Namespace, lanes: int) -> dict[str, Any]:
    """Every item once new, then once again: batches of random distinct items, ``lanes`` batches under way."""
    rng = np.random.default_rng(1)
    keys = np.concatenate([rng.permutation(options.items).astype(np.uint64) + 1 for _ in range(2)])
    batches = [batch_of(keys[at : at + options.batch], at) for at in range(0, len(keys), options.batch)]
    times: list[float] = []
    before = cpu_ms(), cpu_s(server.pid), time.perf_counter()
    waiting = iter(batches)

    async def lane() -> None:
        for items, rows in waiting:
            start = time.perf_counter()
            await store.write_live(items, rows)
            times.append((time.perf_counter() - start) * 1e3)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    client_ms, server_s, wall = (
        now - then for now, then in zip((cpu_ms(), cpu_s(server.pid), time.perf_counter()), before, strict=True)
    )
    count = len(keys)
    return {
        "writes_per_s": count / wall,
        "client_us": client_ms / count * 1e3,
        "redis_us": server_s / count * 1e6,
        "batch_ms": quantiles(times),
    }


async def redis_py_writes(store: N2OStore, url: str, options: argparse.Namespace) -> dict[str, float]:
    """The same script calls with the same packed arguments through redis-py's pipeline."""
    keys = np.random.default_rng(2).permutation(min(options.items, 20_000)).astype(np.uint64) + 1
    batches = [batch_of(keys[at : at + options.batch], 10_000_000 + at) for at in range(0, len(keys), options.batch)]
    before_ms, before = cpu_ms(), time.perf_counter()
    async with redis_py.from_url(url) as client:
        for items, rows in batches:
            buckets = store.buckets.of_many(np.array([item.key for item in items], dtype=np.uint64))
            groups = packing.grouped(buckets)
            pipeline = client.pipeline(transaction=False)
            for bucket, start, end in zip(groups.buckets, groups.starts, groups.ends, strict=True):
                chosen = groups.order[start:end]
                packed = b"".join(pack_write(items[i], 0) for i in chosen.tolist())
                names = (items_key(bucket), versions_key(bucket), rows_key(bucket, VERSION))
                sha = script("write_batch").sha.decode()
                pipeline.evalsha(sha, 3, *names, packed, VERSION, rows[VERSION][chosen].tobytes())
            await pipeline.execute()
    count = len(keys)
    return {
        "writes_per_s": count / (time.perf_counter() - before),
        "client_us": (cpu_ms() - before_ms) / count * 1e3,
    }


async def mirror(store: N2OStore, options: argparse.Namespace) -> dict[str, Any]:
    """Boot from Redis, then joins of 10,000 random rows."""
    loaded = Mirror(LAYOUT, VERSION, memory_mb=8192)
    start = time.perf_counter()
    await loaded.load(store)
    seconds = time.perf_counter() - start
    wanted = np.random.default_rng(5).choice(options.items, min(10_000, options.items), replace=False)
    times = []
    for _ in range(100):
        begun = time.perf_counter()
        with loaded.reading() as view:
            _, found = view.join(wanted.astype(np.uint64) + 1)
        times.append((time.perf_counter() - begun) * 1e3)
    assert found.all()
    return {"boot_s": seconds, "bytes_per_item": loaded.nbytes / len(loaded), "join_10k_ms": quantiles(times)}


async def timed(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        await call()
        times.append((time.perf_counter() - start) * 1e3)
    return quantiles(times)


async def reads(store: N2OStore, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    wanted = rng.choice(options.items, size=min(10_000, options.items), replace=False).astype(np.uint64) + 1
    read_ms = await timed(lambda: store.read_rows(VERSION, LAYOUT, wanted), 20)
    loaded, start = 0, time.perf_counter()
    for bucket in range(store.buckets.count):
        async for keys, _ in store.scan_rows(bucket, VERSION, LAYOUT):
            loaded += len(keys)
    return {
        "read_10k_ms": read_ms,
        "scan_rows_per_s": loaded / (time.perf_counter() - start),
    }


async def histories(redis: Redis) -> dict[str, Any]:
    """Batches of 512 behaviors of 2,000 users, in order; then reads of full histories."""
    store = HistoryStore(redis, 10_000)
    rng = np.random.default_rng(4)
    base = now_ms()
    full = {7: b"".join(entry_bytes(i, BehaviorKind.CLICK, base + i) for i in range(10_000))}
    await store.append(full)
    start = time.perf_counter()
    for step in range(40):
        users = rng.permutation(2_000)[:512] + 100
        await store.append({u: entry_bytes(step, BehaviorKind.CLICK, base + step) for u in users.tolist()})
    return {
        "appends_per_s": 40 * 512 / (time.perf_counter() - start),
        "read_full_ms": await timed(lambda: store.read(7), 50),
    }


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    for count in map(int, options.buckets.split(",")):
        async with EmbeddedRedis() as server, open_redis(Settings(redis_url=server.url)) as redis:
            store = N2OStore(redis, Buckets(count))
            await store.add_version(VERSION)
            found = {
                "buckets": count,
                "serial": await writes(store, server, options, 1),
                "overlapped": await writes(store, server, options, 2),
                "redis_py": await redis_py_writes(store, server.url, options),
                **await reads(store, options),
                "mirror": await mirror(store, options),
            }
            info = (await redis.everywhere("INFO", "memory")).popitem()[1].decode()
            used = int(info.split("used_memory:")[1].split("\r")[0])
            found["redis_bytes_per_item"] = used / options.items
            found["histories"] = await histories(redis)
            results.append(found)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buckets", default="64,256,1024,4096")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = asyncio.run(measure(options))
    if options.json:
        print(json.dumps({"python": platform.python_version(), "row_bytes": LAYOUT.dtype.itemsize, "results": results}))
        return
    for found in results:
        print(json.dumps(found, indent=None, default=str))


if __name__ == "__main__":
    main()
