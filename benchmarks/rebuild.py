"""How fast a new version's rows are rebuilt, and what that costs the live updates beside it.

    python benchmarks/rebuild.py [--items 200000] [--rate 1000] [--seconds 15] [--json]

Real Apache Kafka, Redis with AOF, `aif nearline` as one and as two processes, no pinning: the rebuild's own processes
run at nice 19 on what the machine has left. Items are in the index before; each run publishes the same weights under
another name and counts from the first finished bucket to the last. Lag: event time to Redis' acknowledgement, as the
worker stamps it into the change log, of live rows alone. The bound beside it: item rows that one core computes with
nothing around (`item_rows` on decoded items).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from aif_stream.bench.material import CONTENT, lines, model
from aif_stream.bench.nearline import backlog, publish, quantiles, servers, worker
from aif_stream.bus.events import event_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES, N2O_ROWS
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType, decode_item
from aif_stream.index.changelog import LIVE, decode_head, decode_rows
from aif_stream.index.connection import open_redis
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.model.artefact import save
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.nearline.retirement import retire_version
from aif_stream.settings import Settings

LIMIT_S = 600.0


class Live:
    """Updates at a fixed rate, and the lag of each, until it is stopped."""

    def __init__(self, settings: Settings, made: list[tuple[bytes, bytes]], rate: int) -> None:
        self._settings = settings
        self._made = made
        self._rate = rate
        self._stop = asyncio.Event()
        self._lags: list[int] = []

    async def run(self) -> dict[str, Any]:
        layout = model(CONTENT).layout
        async with LogReader(self._settings, N2O_ROWS) as reader, Producer(self._settings, "bench") as producer:
            reader.seek(await reader.end_offsets())
            sending = asyncio.create_task(self._send(producer))
            while not self._stop.is_set():
                for record in await reader.poll(timeout_ms=50):
                    head = decode_head(record.headers)
                    if head.lane == LIVE and head.version == "bench":
                        _, rows = decode_rows(head, layout, record.value or b"")
                        self._lags += (head.stamps.committed_ms - rows["event_time_ms"].astype(np.int64)).tolist()
            await sending
        return {"updates_per_s": self._rate, "seen": len(self._lags), "event_to_redis_ms": quantiles(self._lags)}

    async def _send(self, producer: Producer) -> None:
        tick_s, due, sent = 0.01, time.perf_counter(), 0
        while not self._stop.is_set():
            for _ in range(int(self._rate * tick_s)):
                key, value = self._made[(sent * 7919) % len(self._made)]
                headers = event_headers(EventType.ITEM_UPSERTED, str(uuid.uuid4()), "bench", now_ms())
                await producer.send(ITEM_UPDATES, key, value, headers)
                sent += 1
            due += tick_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    def stop(self) -> None:
        self._stop.set()


async def rebuild(settings: Settings, directory: Path, name: str) -> dict[str, Any]:
    """Publish the same weights as ``name`` and watch its tally."""
    save(directory / name, ModelVersion(name, model(CONTENT).net))
    publishing = asyncio.create_task(rollout.publish_version(settings, directory / name))
    async with open_redis(settings) as redis:
        tally = RebuildTally(redis, settings.index_buckets)
        first_s, first_items = 0.0, 0
        began_s = time.perf_counter()
        while True:
            found = await tally.read(name)
            now_s = time.perf_counter()
            if not first_s and found.done:
                first_s, first_items = now_s, found.items
            if not found.missing:
                break
            assert now_s - began_s < LIMIT_S, f"{len(found.done)} buckets after {LIMIT_S:.0f} s"
            await asyncio.sleep(0.02)
    await publishing
    await retire_version(settings, name)  # or each run's live writes would carry one version more
    return {
        "items_per_s": round((found.items - first_items) / (now_s - first_s)),
        "seconds": round(now_s - began_s, 2),
        "items": found.items,
    }


async def beside(live: Live, seconds: float, work: Any = None) -> tuple[dict[str, Any], Any]:
    """Live updates for as long as ``work`` takes, ``seconds`` without one."""
    running = asyncio.create_task(live.run())
    await asyncio.sleep(2)
    result = await work if work is not None else await asyncio.sleep(seconds)
    live.stop()
    return await running, result


def bound(made: list[tuple[bytes, bytes]]) -> int:
    """Item rows per second of one core, 1,000 at a time, from the bytes of the store."""
    version, began_s, done = model(CONTENT), time.perf_counter(), 0
    zeros = np.zeros(1000, np.uint64)
    while time.perf_counter() - began_s < 2:
        version.item_rows([decode_item(value) for _, value in made[:1000]], zeros, zeros, 0)
        done += 1000
    return round(done / (time.perf_counter() - began_s))


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    save(directory / "artefact", model(CONTENT))
    made = lines(options.items, CONTENT)
    result: dict[str, Any] = {"bound_items_per_s": bound(made)}
    async with servers(directory, Settings().batch_events) as settings:
        workers = [worker(settings, directory, 1, pinned=False)]
        try:
            record = await rollout.publish_version(settings, directory / "artefact", wait=True)
            assert record.version == "bench"
            await publish(settings, made, options.items)
            await backlog(settings, options.items, workers[0])
            result["lag_without_rebuild"], _ = await beside(Live(settings, made, options.rate), options.seconds)
            for count in (1, 2):
                if count > len(workers):
                    workers.append(worker(settings, directory, count, pinned=False))
                    await asyncio.sleep(8)  # it joins its groups: measured beside, not in
                alone = await rebuild(settings, directory, f"alone-{count}")
                lag, found = await beside(
                    Live(settings, made, options.rate), 0, rebuild(settings, directory, f"beside-{count}")
                )
                name = f"{count} worker{'s' * (count > 1)}"
                result[name] = {"alone": alone, "beside_live_updates": {**found, "lag": lag}}
                print(f"{name}: {result[name]}", file=sys.stderr)
        finally:
            await asyncio.gather(*(worker.stop(30) for worker in workers))
    result["set_up"] = {
        "items": options.items,
        "row_bytes": model(CONTENT).layout.dtype.itemsize,
        "buckets": settings.index_buckets,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aif-bench-") as directory:
        result = asyncio.run(measure(options, Path(directory)))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
