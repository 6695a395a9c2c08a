"""Who stands still, and why: real workers on Apache Kafka, stopped, killed, missing; a producer with a wrong clock.

Each must be named within 15 s, and no longer once it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aif_stream.bus import admin
from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.topics import load_topics
from aif_stream.clock import now_ms
from aif_stream.domain.freshness import Status
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.freshness.peers import Peers
from aif_stream.freshness.report import LagReport
from aif_stream.freshness.watch import Watcher
from aif_stream.settings import Settings, variable
from tests.nearline_builders import Events, events, nearline_settings
from tests.stack import eventually

WITHIN_S = 15.0
LOOK_S = 0.5
SHARED = ("kafka_bootstrap", "redis_url", "topic_prefix", "models_dir", "index_buckets", "metrics_port")


@dataclass(slots=True)
class Watched:
    """A broker's topics, a Redis of the test's own, the watch, and a trickle of item updates."""

    directory: Path
    settings: Settings
    watcher: Watcher
    put: Events
    redis: EmbeddedRedis
    workers: list[ServerProcess] = field(default_factory=list)
    ahead_ms: int = 0
    count: int = 0

    def start_worker(self) -> ServerProcess:
        own = {variable(name): str(getattr(self.settings, name)) for name in SHARED}
        own |= {"AIF_KAFKA_SESSION_TIMEOUT_MS": "6000", "AIF_HOME": str(self.directory), "OMP_NUM_THREADS": "1"}
        number = len(self.workers)
        process = ServerProcess(
            f"worker {number}",
            [sys.executable, "-m", "aif_stream", "nearline"],
            directory=self.directory,
            log=self.directory / f"worker-{number}.log",
            environ={**os.environ, **own},
        )
        process.spawn()
        self.workers.append(process)
        return process

    async def look(self) -> LagReport:
        """An update for every partition, then a look."""
        for _ in range(8):
            self.count += 1
            await self.put.item(str(self.count % 64), now_ms() + self.ahead_ms)
        await asyncio.sleep(LOOK_S)  # the pace of the looks, not a wait for something
        return await self.watcher.look()

    async def until(
        self, holds: Callable[[LagReport], bool], *, what: str, within_s: float = WITHIN_S
    ) -> tuple[LagReport, float]:
        """The first look of which it holds, and how long that took."""
        seen: list[LagReport] = []
        began_s = time.monotonic()

        async def probe() -> LagReport | None:
            seen.append(await self.look())
            return seen[-1] if holds(seen[-1]) else None

        report = await eventually(probe, what=what, within_s=within_s)
        return report, time.monotonic() - began_s

    async def all_well(self, within_s: float = WITHIN_S) -> None:
        await self.until(lambda r: statuses(r) == {Status.OK}, what="everybody is well", within_s=within_s)


def statuses(report: LagReport, group: str = ITEMS_GROUP) -> set[Status]:
    return {part.status for part in report.partitions if part.group == group}


def reasons(report: LagReport, group: str = ITEMS_GROUP) -> set[str]:
    return {part.reason for part in report.partitions if part.group == group}


def lags(report: LagReport) -> list[int]:
    return [part.lag_records for part in report.partitions if part.group == ITEMS_GROUP]


@pytest.fixture
async def watched(kafka_cluster: KafkaCluster, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Watched]:
    async with EmbeddedRedis() as redis:
        settings = nearline_settings(kafka_cluster.bootstrap, redis.url, tmp_path, prefix=topic_prefix)
        settings = dataclasses.replace(settings, kafka_session_timeout_ms=6000)
        specs = {
            name: dataclasses.replace(spec, replication=1, partitions=min(spec.partitions, 4))
            for name, spec in load_topics().items()
        }
        await admin.apply(settings, specs)
        async with Peers(settings) as peers, Watcher(settings, peers) as watcher, events(settings) as put:
            made = Watched(tmp_path, settings, watcher, put, redis)
            try:
                yield made
            finally:
                with contextlib.suppress(asyncio.CancelledError, ProcessLookupError):
                    await asyncio.gather(*(process.kill9() for process in made.workers if process.running))


async def test_a_topic_without_a_consumer_is_a_stop_that_says_so_until_one_comes(watched: Watched) -> None:
    report, _ = await watched.until(lambda r: all(lags(r)), what="updates that nobody reads")
    assert statuses(report) == {Status.STOP}
    assert reasons(report) == {"no consumer, and there never was one"}
    assert report.watermark_age_s is not None
    assert report.watermark_age_s > 0
    watched.start_worker()
    await watched.all_well(within_s=60)


async def test_a_worker_that_is_there_but_does_not_answer_is_a_stall_until_it_does(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well(within_s=60)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        report, took_s = await watched.until(lambda r: statuses(r) == {Status.STALL}, what="a stall is seen")
        assert took_s < WITHIN_S
        assert reasons(report) == {"the consumer's process is there but does not answer"}
        # Long after the broker has put it out of its group it is still not gone.
        end_s = time.monotonic() + 8
        while time.monotonic() < end_s:
            assert statuses(await watched.look()) == {Status.STALL}
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    await watched.all_well()


async def test_a_worker_that_was_killed_is_a_stop_until_another_takes_over(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well(within_s=60)
    await worker.kill9()
    report, _ = await watched.until(lambda r: statuses(r) == {Status.STOP}, what="a stop is seen")
    assert reasons(report) == {"no consumer"}
    watched.start_worker()
    await watched.all_well(within_s=60)


async def test_a_worker_that_ended_cleanly_is_a_stop_as_well(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well(within_s=60)
    await worker.stop(30)
    await watched.until(lambda r: statuses(r) == {Status.STOP}, what="a stop is seen")


async def test_a_worker_that_lives_but_cannot_write_is_a_stall_without_progress(watched: Watched) -> None:
    watched.start_worker()
    await watched.all_well(within_s=60)
    await watched.redis.kill9()
    report, _ = await watched.until(lambda r: Status.STALL in statuses(r), what="a stall is seen")
    assert all(reason.startswith("no progress for") for reason in reasons(report) - {""})
    await watched.redis.start()
    await watched.all_well(within_s=30)


async def test_a_producer_whose_clock_is_5_s_ahead_is_named_and_does_not_touch_the_ages(watched: Watched) -> None:
    watched.start_worker()
    await watched.all_well(within_s=60)
    watched.ahead_ms = 5_000

    def named(report: LagReport) -> bool:
        return [source.source for source in report.sources if source.skewed] == ["test"]

    report, _ = await watched.until(named, what="the clock is seen")
    (source,) = report.sources
    assert 4.5 < source.ahead_s < 5.5
    assert statuses(report) == {Status.OK}
    assert report.watermark_age_s is not None
    assert report.watermark_age_s < 2
    watched.ahead_ms = 0
    await watched.until(lambda r: not any(s.skewed for s in r.sources), what="the mended clock is forgotten")


async def test_a_quiet_system_has_no_lag_in_records_or_seconds(watched: Watched) -> None:
    watched.start_worker()
    await watched.all_well(within_s=60)

    async def quiet() -> bool:
        report = await watched.watcher.look()
        return report.watermark_age_s == 0 and {part.lag_s for part in report.partitions} == {0}

    await eventually(quiet, what="everything is done", within_s=WITHIN_S)
    assert await quiet()
