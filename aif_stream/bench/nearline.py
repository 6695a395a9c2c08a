"""One `aif nearline` worker on one core: item updates from Apache Kafka to committed rows in Redis.

    python benchmarks/nearline.py [--updates 400000] [--items 200000] [--content 16] [--rate 2000] [--json]

Backlog: the updates lie in the topic when the worker starts; the rate counts from its first mark to its last (a mark
stands in Redis after the rows and the change log's acknowledgement). Steady: updates at a fixed rate; lag from event
time to Redis' acknowledgement (stamped by the worker), and to a consumer of the change log (as a mirror is one).
The worker is pinned to core 0; Kafka, Redis, producer and consumer share core 1. Parts: what one batch costs stage by
stage, in this process, with nothing else in it; the sum is less than the worker's CPU, whose caches are colder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_stream.bench import parts
from aif_stream.bench.material import CONTENT, lines, model
from aif_stream.bus import admin
from aif_stream.bus.connection import cluster_identity
from aif_stream.bus.events import event_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES, N2O_ROWS, load_topics
from aif_stream.clock import cpu_s, now_ms
from aif_stream.domain.events import EventType
from aif_stream.embedded.jars import KafkaJars
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import AifError
from aif_stream.index.changelog import decode_head, decode_rows
from aif_stream.index.connection import open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import save
from aif_stream.nearline import rollout
from aif_stream.runtime.roles import spawn_role
from aif_stream.settings import Settings, variables

SHARED = (
    "log_level",
    "kafka_bootstrap",
    "redis_url",
    "models_dir",
    "index_buckets",
    "batch_events",
    "metrics_port",
    "host",
)


@contextlib.asynccontextmanager
async def servers(directory: Path, batch: int) -> AsyncIterator[Settings]:
    jars = await KafkaJars.fetch()
    async with KafkaCluster(1, jars, directory / "kafka") as kafka, EmbeddedRedis(directory / "redis") as redis:
        settings = dataclasses.replace(
            Settings(),
            home=directory,
            models_dir=directory / "models",
            kafka_bootstrap=kafka.bootstrap,
            redis_url=redis.url,
            batch_events=batch,
            metrics_port=0,
        )
        await admin.apply(settings, load_topics())
        yield settings


def worker(settings: Settings, directory: Path, number: int, *, pinned: bool = True) -> ServerProcess:
    """``aif nearline``, on the first core alone when it is ``pinned``."""
    under = ("taskset", "-c", str(min(os.sched_getaffinity(0) | {0}))) if pinned else ()
    return spawn_role("nearline", directory / f"worker-{number}.log", variables(settings, SHARED), under=under)


async def publish(settings: Settings, made: list[tuple[bytes, bytes]], updates: int) -> None:
    async with Producer(settings, "bench", linger_ms=5) as producer:
        for n in range(updates):
            key, value = made[n % len(made)]
            headers = event_headers(EventType.ITEM_UPSERTED, str(n), "bench", now_ms())
            await producer.send(ITEM_UPDATES, key, value, headers)
        await producer.flush()


async def backlog(settings: Settings, updates: int, process: ServerProcess) -> dict[str, Any]:
    """Watch the marks until every update is committed."""
    async with open_redis(settings) as redis, LogReader(settings, ITEM_UPDATES) as reader:
        marks = MarkBook(redis, await cluster_identity(settings, ITEM_UPDATES))
        end = sum((await reader.end_offsets()).values())
        begin_s, begin, begin_cpu = 0.0, 0, 0.0
        while True:
            done = sum([await marks.read(partition) or 0 for partition in reader.partitions()])
            now_s = time.perf_counter()
            if not begin_s and done > end - updates:
                begin_s, begin, begin_cpu = now_s, done, cpu_s(process.pid)
            if done >= end:
                break
            if not process.running:
                raise AifError(f"the worker ended:\n{process.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)  # every look is 16 commands of the Redis that is measured
        took_s, count = now_s - begin_s, end - begin
        return {
            "updates_per_s": round(count / took_s),
            "worker_cpu_us_per_update": round((cpu_s(process.pid) - begin_cpu) / count * 1e6, 1),
            "seconds": round(took_s, 2),
        }


async def steady(
    settings: Settings, made: list[tuple[bytes, bytes]], content: int, rate: int, seconds: int
) -> dict[str, Any]:
    to_redis: list[int] = []
    to_log: list[int] = []
    to_mirror: list[int] = []
    layout = model(content).layout
    mirror = Mirror(layout, "bench", memory_mb=2048)
    stop = asyncio.Event()

    async def listen(reader: LogReader) -> None:
        while not stop.is_set():
            for record in await reader.poll(timeout_ms=50):
                seen_ms, head = now_ms(), decode_head(record.headers)
                keys, rows = decode_rows(head, layout, record.value or b"")
                mirror.apply(keys, rows)
                applied_ms = now_ms()
                to_redis.extend((head.stamps.committed_ms - rows["event_time_ms"].astype(np.int64)).tolist())
                to_log.extend((seen_ms - rows["event_time_ms"].astype(np.int64)).tolist())
                to_mirror.extend((applied_ms - rows["event_time_ms"].astype(np.int64)).tolist())

    async with LogReader(settings, N2O_ROWS) as reader, Producer(settings, "bench") as producer:
        reader.seek(await reader.end_offsets())  # before the load: what that misses comes by the log
        async with open_redis(settings) as redis:
            await mirror.load(N2OStore(redis, Buckets(settings.index_buckets)))
        listening = asyncio.create_task(listen(reader))
        tick_s, due, sent = 0.005, time.perf_counter(), 0
        while sent < rate * seconds:
            for _ in range(int(rate * tick_s)):
                key, value = made[(sent * 7919) % len(made)]
                headers = event_headers(EventType.ITEM_UPSERTED, str(uuid.uuid4()), "bench", now_ms())
                await producer.send(ITEM_UPDATES, key, value, headers)
                sent += 1
            due += tick_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await producer.flush()
        await asyncio.sleep(1)
        stop.set()
        await listening
    half = len(to_redis) // 10  # the first tenth warms up
    return {
        "rate": rate,
        "seen": len(to_redis),
        "event_to_redis_ms": quantiles(to_redis[half:]),
        "event_to_change_log_ms": quantiles(to_log[half:]),
        "event_to_mirror_ms": quantiles(to_mirror[half:]),
    }


def quantiles(values: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(max(values))}


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    save(directory / "artefact", model(options.content))
    made = lines(options.items, options.content)
    async with servers(directory, options.batch) as settings:
        process = worker(settings, directory, 1)
        await rollout.publish_version(settings, directory / "artefact", activate=True)
        await process.stop(30)
        await publish(settings, made, options.updates)
        process = worker(settings, directory, 2)
        try:
            result = {"backlog": await backlog(settings, options.updates, process)}
            result["steady"] = await steady(settings, made, options.content, options.rate, options.seconds)
        finally:
            await process.stop(30)
        async with open_redis(settings) as redis:
            rows = await N2OStore(redis, Buckets(settings.index_buckets)).count_rows("bench")
        if rows != min(options.items, options.updates):
            raise AifError(f"{rows} rows of {min(options.items, options.updates)} items are in Redis")
        result["set_up"] = {
            "items": rows,
            "line_bytes": len(made[-1][1]),
            "row_bytes": model(options.content).layout.dtype.itemsize,
            "batch_events": options.batch,
            "buckets": settings.index_buckets,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        return result


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=400_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--content", type=int, default=CONTENT, help="numbers of a content vector")
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=Settings().batch_events)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


QUICK = ["--updates", "40000", "--items", "20000", "--seconds", "3"]


def result_of(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement; this process stays on the second core meanwhile."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        result: dict[str, Any] = {"parts_us_per_update": parts.measure(options.content, options.batch)}
        with tempfile.TemporaryDirectory(prefix="aif-bench-") as directory:
            return asyncio.run(measure(options, Path(directory))) | result
    finally:
        os.sched_setaffinity(0, cores)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    result = result_of(options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
