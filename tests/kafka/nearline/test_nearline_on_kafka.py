"""Workers as processes on Apache Kafka: killed, stopped, joined by another; Redis killed and emptied."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.settings import Settings
from drills.stack import start_worker
from tests.kafka.nearline.verify import Latest, compare_index
from tests.model_builders import small_config, small_version
from tests.nearline_builders import T0_MS, artefact, events, item_line, kafka_settings
from tests.stack import eventually

ITEMS = 300


@dataclass(slots=True)
class Stack:
    """A broker's topics, a Redis of the test's own, workers, and the truth about every item."""

    directory: Path
    settings: Settings
    redis: EmbeddedRedis
    model: ModelVersion
    workers: list[ServerProcess] = field(default_factory=list)
    latest: dict[str, Latest] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def start_worker(self, **more: str) -> ServerProcess:
        process = start_worker(self.settings, self.directory / f"worker-{next(self._numbers)}.log", **more)
        self.workers.append(process)
        return process

    async def load(self, count: int, seed: int) -> None:
        """Updates and removals of random items, one in ten late."""
        chance = random.Random(seed)
        async with events(self.settings) as put:
            sends = []
            for _ in range(count):
                name = str(chance.randrange(ITEMS))
                known = self.latest.get(name)
                time_ms = known.event_time_ms + chance.randrange(1, 50) if known else T0_MS
                if known and chance.random() < 0.1:
                    time_ms = known.event_time_ms - chance.randrange(1, 1_000) * 64 - 63
                payload = None if chance.random() < 0.05 else item_line(name, attributes={"price": chance.random() * 9})
                if not known or time_ms > known.event_time_ms:
                    self.latest[name] = Latest(time_ms, payload)
                sends.append(put.removal(name, time_ms) if payload is None else put.item(name, time_ms, payload))
                if len(sends) == 50:
                    for send in sends:
                        await send
                    sends.clear()
            for send in sends:
                await send

    async def load_until(self, done: asyncio.Event, seed: int) -> None:
        """Load without a pause, in parts of 100."""
        while not done.is_set():
            await self.load(100, seed)
            seed += 1000

    async def agrees(self) -> None:
        """Wait until the index is exactly what the latest events say."""
        problems: list[str] = []

        async def same() -> bool:
            for process in self.workers:
                assert process.running, process.log.read_text()[-3000:]
            problems[:] = await compare_index(self.settings, self.model, self.latest)
            return not problems

        try:
            await eventually(same, what="the index agrees with the latest events", within_s=90)
        except BaseException:
            print(problems[:5], *(process.log.read_text()[-3000:] for process in self.workers), sep="\n")  # noqa: T201
            raise


@pytest.fixture
async def stack(kafka_cluster: KafkaCluster, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with EmbeddedRedis() as redis:
        settings = await kafka_settings(kafka_cluster, redis.url, tmp_path, topic_prefix, most_partitions=4)
        made = Stack(tmp_path, settings, redis, small_version())
        try:
            made.start_worker()
            await rollout.publish_version(settings, artefact(tmp_path / "artefact", made.model), activate=True)
            yield made
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*(process.kill9() for process in made.workers))


async def test_nothing_is_lost_when_workers_are_killed_under_load_and_others_take_over(stack: Stack) -> None:
    done = asyncio.Event()
    loading = asyncio.create_task(stack.load_until(done, seed=1))
    for _ in range(2):
        other = stack.start_worker()
        await eventually(lambda other=other: _said(other, "placed"), what="the other worker has partitions")
        victim = stack.workers.pop(0)
        await victim.kill9()
    await eventually(lambda: _said(stack.workers[0], "lane=items partition=3"), what="it has all the partitions")
    done.set()
    await loading
    await stack.agrees()


async def test_a_killed_workers_rebuild_tasks_go_to_another_and_its_row_process_ends(
    stack: Stack, tmp_path: Path
) -> None:
    await stack.load(600, seed=7)
    await stack.agrees()
    slow = {"AIF_REBUILD_RATE": "100"}
    victim = stack.start_worker(**slow)
    await eventually(lambda: _said(victim, "placed lane=rebuild"), what="the victim shares the rebuild")
    second = ModelVersion.init(small_config(), 5, name="second")
    publishing = asyncio.create_task(
        rollout.publish_version(stack.settings, artefact(tmp_path / "second", second), activate=True)
    )
    children = await eventually(
        lambda: asyncio.to_thread(_children, victim), what="the victim computes rows of the rebuild"
    )
    stack.workers.remove(victim)
    await victim.kill9()
    await eventually(lambda: asyncio.to_thread(_gone, children), what="its row process has ended")
    await publishing
    stack.model = second
    await stack.agrees()


async def test_a_stopped_worker_commits_leaves_its_group_and_exits_0(stack: Stack) -> None:
    await stack.load(500, seed=2)
    await stack.agrees()
    worker = stack.workers.pop()
    await worker.stop(30)
    log = worker.log.read_text()
    assert "nearline.stopped" in log
    assert "Traceback" not in log
    stack.start_worker()
    await stack.load(500, seed=3)
    await stack.agrees()


async def test_a_redis_killed_under_load_is_brought_up_to_date_by_its_marks(stack: Stack) -> None:
    loading = asyncio.create_task(stack.load(3000, seed=4))
    await eventually(lambda: _some(stack), what="some items are there")
    await stack.redis.kill9()
    await stack.redis.start()
    await loading
    await stack.agrees()


async def test_an_emptied_redis_is_filled_again_from_the_topics(stack: Stack) -> None:
    await stack.load(1000, seed=5)
    await stack.agrees()
    async with open_redis(stack.settings) as redis:
        await redis.everywhere("FLUSHALL")
    await stack.load(200, seed=6)
    await stack.agrees()


async def _said(process: ServerProcess, what: str) -> bool:
    return what in process.log.read_text()


async def _some(stack: Stack) -> bool:
    return len(await compare_index(stack.settings, stack.model, dict(list(stack.latest.items())[:50]))) < 40


def _children(process: ServerProcess) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
