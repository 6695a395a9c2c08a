"""Who stands still, and why: real workers on Apache Kafka, stopped, killed, missing; a producer with a wrong clock.

Each must be named within 15 s, and no longer once it is mended; ``python -m drills.standstill`` tells the seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aif_stream.domain.freshness import Status
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.freshness.report import LagReport
from drills.standstill import AHEAD_MS, WITHIN_S, is_said, is_well
from drills.watched import SOURCE, Watched, lags, skewed, statuses, watching
from tests.nearline_builders import kafka_settings
from tests.stack import eventually


@pytest.fixture
async def redis() -> AsyncIterator[EmbeddedRedis]:
    """The test's own: one of them kills it."""
    async with EmbeddedRedis() as server:
        yield server


@pytest.fixture
async def watched(
    kafka_cluster: KafkaCluster, redis: EmbeddedRedis, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Watched]:
    settings = await kafka_settings(kafka_cluster, redis.url, tmp_path, topic_prefix, most_partitions=4)
    async with watching(tmp_path, settings) as made:
        yield made


async def test_a_topic_without_a_consumer_is_a_stop_that_says_so_until_one_comes(watched: Watched) -> None:
    nobody = is_said(Status.STOP, "no consumer, and there never was one")
    report, _ = await watched.until(lambda r: all(lags(r)) and nobody(r), within_s=WITHIN_S)
    assert report.watermark_age_s is not None
    assert report.watermark_age_s > 0
    watched.start_worker()
    await watched.all_well()


async def test_a_worker_that_is_there_but_does_not_answer_is_a_stall_until_it_does(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well()
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        silent = is_said(Status.STALL, "the consumer's process is there but does not answer")
        await watched.until(silent, within_s=WITHIN_S)
        # Long after the broker has put it out of its group it is still not gone.
        end_s = time.monotonic() + 8
        while time.monotonic() < end_s:
            assert silent(await watched.look())
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    await watched.all_well()


async def test_a_worker_that_was_killed_is_a_stop_until_another_takes_over(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well()
    await worker.kill9()
    await watched.until(is_said(Status.STOP, "no consumer"), within_s=WITHIN_S)
    watched.start_worker()
    await watched.all_well()


async def test_a_worker_that_ended_cleanly_is_a_stop_as_well(watched: Watched) -> None:
    worker = watched.start_worker()
    await watched.all_well()
    await worker.stop(30)
    await watched.until(is_said(Status.STOP, "no consumer"), within_s=WITHIN_S)


async def test_a_worker_that_lives_but_cannot_write_is_a_stall_without_progress(
    watched: Watched, redis: EmbeddedRedis
) -> None:
    watched.start_worker()
    await watched.all_well()
    await redis.kill9()
    await watched.until(is_said(Status.STALL, "no progress for"), within_s=WITHIN_S)
    await redis.start()
    await watched.all_well()


async def test_a_producer_whose_clock_is_5_s_ahead_is_named_and_does_not_touch_the_ages(watched: Watched) -> None:
    watched.start_worker()
    await watched.all_well()
    watched.ahead_ms = AHEAD_MS

    def named(report: LagReport) -> bool:
        return skewed(report) == [SOURCE]

    report, _ = await watched.until(named, within_s=WITHIN_S)
    (source,) = report.sources
    assert 4.5 < source.ahead_s < 5.5

    def is_fresh(report: LagReport) -> bool:
        age_s = report.watermark_age_s
        return named(report) and statuses(report) == {Status.OK} and age_s is not None and age_s < 2

    await watched.until(is_fresh)
    watched.ahead_ms = 0
    await watched.until(is_well)


async def test_a_quiet_system_has_no_lag_in_records_or_seconds(watched: Watched) -> None:
    watched.start_worker()
    await watched.all_well()

    async def quiet() -> bool:
        report = await watched.watcher.look()
        return report.watermark_age_s == 0 and {part.lag_s for part in report.partitions} == {0}

    await eventually(quiet, what="everything is done")
    for _ in range(10):
        assert await quiet()
        await asyncio.sleep(0.2)
