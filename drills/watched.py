"""Workers, a trickle of updates and the watch: what a standstill is seen on, by the drill and by the tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aif_stream.bus.events import event_headers
from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.events import EventType
from aif_stream.domain.freshness import Status
from aif_stream.embedded.process import ServerProcess
from aif_stream.freshness.peers import Peers
from aif_stream.freshness.report import LagReport
from aif_stream.freshness.watch import Watcher
from aif_stream.settings import Settings
from drills.stack import start_worker

LOOK_S = 0.5
SOURCE = "drill"


@dataclass(slots=True)
class Watched:
    """``ahead_ms``: how far the producer's clock is ahead."""

    directory: Path
    settings: Settings
    watcher: Watcher
    producer: Producer
    workers: list[ServerProcess] = field(default_factory=list)
    ahead_ms: int = 0
    count: int = 0

    def start_worker(self) -> ServerProcess:
        """One more ``aif nearline``."""
        process = start_worker(self.settings, self.directory / f"worker-{len(self.workers)}.log")
        self.workers.append(process)
        return process

    async def look(self) -> LagReport:
        """Updates for every partition, then a look."""
        for _ in range(8):
            self.count += 1
            name, time_ms = str(self.count % 64), now_ms() + self.ahead_ms
            line = b'{"item_id": "%s", "category": "tea"}' % name.encode()
            headers = event_headers(EventType.ITEM_UPSERTED, f"{SOURCE}-{self.count}", SOURCE, time_ms)
            await (await self.producer.send(ITEM_UPDATES, name.encode(), line, headers))
        await asyncio.sleep(LOOK_S)  # the pace of the looks, not a wait for something
        return await self.watcher.look()

    async def until(self, holds: Callable[[LagReport], bool], *, within_s: float = 60.0) -> tuple[LagReport, float]:
        """The first look of which it holds, and how many seconds that took. Raises ``TimeoutError`` with the last."""
        began_s = monotonic_s()
        while True:
            report = await self.look()
            if holds(report):
                return report, monotonic_s() - began_s
            if monotonic_s() - began_s > within_s:
                raise TimeoutError(f"not within {within_s:g} s; last seen: {report.partitions} {report.sources}")

    async def all_well(self) -> float:
        """Wait until every partition is OK; the seconds that took."""
        return (await self.until(lambda report: statuses(report) == {Status.OK}))[1]


def statuses(report: LagReport) -> set[Status]:
    """Of the items' partitions."""
    return {part.status for part in report.partitions if part.group == ITEMS_GROUP}


def reasons(report: LagReport) -> set[str]:
    return {part.reason for part in report.partitions if part.group == ITEMS_GROUP}


def lags(report: LagReport) -> list[int]:
    return [part.lag_records for part in report.partitions if part.group == ITEMS_GROUP]


def skewed(report: LagReport) -> list[str]:
    """Producers whose clock is named as wrong."""
    return [source.source for source in report.sources if source.skewed]


@asynccontextmanager
async def watching(directory: Path, settings: Settings) -> AsyncIterator[Watched]:
    """A watch on the topics of ``settings``, which are there; workers that were started are killed at the end."""
    async with (
        Peers(settings) as peers,
        Watcher(settings, peers) as watcher,
        Producer(settings, SOURCE, topics=[ITEM_UPDATES]) as producer,
    ):
        made = Watched(directory, settings, watcher, producer)
        try:
            yield made
        finally:
            with contextlib.suppress(asyncio.CancelledError, ProcessLookupError):
                await asyncio.gather(*(process.kill9() for process in made.workers if process.running))
