"""How a turn of `lanes.py` is timed, the worker's and a peer's alike, and what it left in Redis.

The clock runs from the first event in hand until 95 % of the updates are acknowledged by Redis (what is left may wait
for a batch that does not fill). A peer says when that was; of the worker it is the moment at which its first rows were
computed, read from the change log: a millisecond or two later.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from work import BEGAN, DONE

from aif_stream.bench import nearline
from aif_stream.bus.connection import cluster_identity
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES, N2O_ROWS
from aif_stream.clock import cpu_s, now_ms
from aif_stream.domain.row import RowLayout
from aif_stream.embedded.process import ServerProcess
from aif_stream.index.changelog import decode_head, decode_rows
from aif_stream.index.connection import open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings

COUNTED = 0.95
LOOK_S = 0.02
STARTS_S, STANDS_S = 90.0, 60.0


class _Patience:
    """Ends the benchmark when a process ends, does not begin, or stands still."""

    def __init__(self, process: ServerProcess, updates: int) -> None:
        self._process, self._updates = process, updates
        self._done, self._last_s = 0, time.time()

    def look(self, done: int) -> float:
        """The time of this look."""
        now_s = time.time()
        if done > self._done:
            self._done, self._last_s = done, now_s
        if not self._process.running or now_s - self._last_s > (STANDS_S if done else STARTS_S):
            log = self._process.log.read_text()[-3000:]
            sys.exit(f"{self._process.name} stands at {done} of {self._updates}:\n{log}")
        return now_s


async def peer(settings: Settings, updates: int, way: str, process: ServerProcess) -> dict[str, Any]:
    """Follow the peer's own count; to the end where rows are compared."""
    until = updates if way != "plain" else round(updates * COUNTED)
    result: dict[str, Any] = {}
    patience, done = _Patience(process, updates), 0
    async with open_redis(settings) as redis:
        while done < until:
            await asyncio.sleep(LOOK_S)
            done = int(await redis.call("GET", DONE) or 0)
            now_s = patience.look(done)
            if not result and done >= updates * COUNTED:
                spent_s = cpu_s(process.pid)
                began_s, began_cpu_s = map(float, bytes(await redis.call("GET", BEGAN)).split())
                result = figures(done, now_s - began_s, spent_s - began_cpu_s)
    return result


async def worker(
    settings: Settings, updates: int, directory: Path, number: int, layout: RowLayout
) -> tuple[ServerProcess, dict[str, Any]]:
    """Run `aif nearline` and follow its marks to the end."""
    samples: list[tuple[float, float]] = []
    counted: tuple[int, float, float] | None = None
    async with (
        open_redis(settings) as redis,
        LogReader(settings, ITEM_UPDATES) as reader,
        LogReader(settings, N2O_ROWS) as changes,
    ):
        changes.seek(await changes.end_offsets())
        marks = MarkBook(redis, await cluster_identity(settings, ITEM_UPDATES))
        process = nearline.worker(settings, directory, number)
        patience, done = _Patience(process, updates), 0
        while done < updates:
            await asyncio.sleep(LOOK_S if not done else 2 * LOOK_S)  # a look is 32 commands of the measured Redis
            done = sum([await marks.read(partition) or 0 for partition in reader.partitions()])
            now_s = patience.look(done)
            samples.append((now_s, cpu_s(process.pid)))
            if counted is None and done >= updates * COUNTED:
                counted = (done, *samples[-1])
        began_s = await _first_computed_s(changes, layout)
    assert counted is not None
    began_cpu_s = max((cpu for at, cpu in samples if at <= began_s), default=0.0)
    return process, figures(counted[0], counted[1] - began_s, counted[2] - began_cpu_s)


async def _first_computed_s(changes: LogReader, layout: RowLayout) -> float:
    """When the oldest row that this reader has not read yet was computed."""
    ends, first_ms = await changes.end_offsets(), now_ms()
    while not await changes.caught_up(ends):
        for record in await changes.poll():
            _, rows = decode_rows(decode_head(record.headers), layout, record.value or b"")
            first_ms = min(first_ms, int(rows["computed_ms"].min()))
    return first_ms / 1000


def figures(updates: int, took_s: float, spent_s: float) -> dict[str, Any]:
    return {
        "updates_per_s": round(updates / took_s),
        "worker_cpu_us_per_update": round(spent_s / updates * 1e6, 1),
        "seconds": round(took_s, 2),
    }


async def digest(settings: Settings, layout: RowLayout) -> str:
    """All rows (without the moment of their computation) and all features that Redis holds, as one hash."""
    async with open_redis(settings) as redis:
        store, found = N2OStore(redis, Buckets(settings.index_buckets)), hashlib.sha256()
        for bucket in range(settings.index_buckets):
            rows: dict[int, bytes] = {}
            async for keys, some in store.scan_rows(bucket, "bench", layout):
                kept = some.copy()
                kept["computed_ms"] = 0
                rows |= {key: row.tobytes() for key, row in zip(keys.tolist(), kept, strict=True)}
            items = {item.key: item async for some_items in store.scan_items(bucket) for item in some_items}
            if rows.keys() != items.keys():
                sys.exit(f"bucket {bucket} has {len(rows)} rows and {len(items)} items")
            for key in sorted(rows):
                found.update(repr(items[key]).encode() + rows[key])
        return found.hexdigest()
