"""``aif explain``: tasks of three topics, by priority; one that cannot be done is put aside; a clean stop hands back.

    poll (one consumer per priority) → queues → a lane for high, a lane for all → Desk.do → committed

Two lanes, so that a high one need not wait for the end of a low one; they share the one computing thread (bench.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aif_stream.bus.consumer import UNPARSEABLE, GroupConsumer, Partition, Record, Unparseable
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.groups import EXPLAIN_GROUPS
from aif_stream.bus.producer import ROLE_CLOSE_S, Producer
from aif_stream.bus.topics import DEAD_LETTERS, EXPLANATION_REQUESTS, EXPLANATIONS, topic_name
from aif_stream.bus.versions import VersionFollower
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.decoding import fault_of
from aif_stream.domain.explanations import ExplanationTask, Priority, decode_task
from aif_stream.domain.versions import VersionBook, VersionRecord
from aif_stream.errors import (
    AifError,
    BadEvent,
    BusUnavailable,
    IndexDenied,
    IndexRefused,
    IndexUnavailable,
    PublishError,
)
from aif_stream.explain.attempt import LEASE_MS
from aif_stream.explain.bench import Bench
from aif_stream.explain.gate import Gate
from aif_stream.explain.job import Desk, End
from aif_stream.explain.near import OFF_S, WINDOW, Near
from aif_stream.explain.offsets import Offsets
from aif_stream.explain.pace import Pace
from aif_stream.explain.queues import Queues, Waiting
from aif_stream.explain.versions import Versions
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.keys import Buckets
from aif_stream.index.leases import LeaseBook
from aif_stream.index.near_cache import NearStore
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings
from aif_stream.telemetry import DEAD_LETTERS as PUT_ASIDE
from aif_stream.telemetry import EVENTS_CONSUMED, counts, kv

log = logging.getLogger(__name__)

_POLL_MS: Final = 200
_IDLE_S: Final = 0.02
_COMMIT_S: Final = 0.5
# Redis or Kafka away: tried again for as long as it takes. A method that raises: a few times, then it is put aside.
_BACK_OFF_S: Final = (0.2, 5.0)
ATTEMPTS: Final = 3
_MOST_TRIES: Final = 30


@dataclass(slots=True)
class _Work:
    """A record on its way. ``failures`` of methods, ``tries`` for any reason."""

    record: Record
    partition: Partition
    task: ExplanationTask
    failures: int = 0
    tries: int = 0


class ExplainWorker:
    """Put together by ``open_worker``; ``run`` until ``stop``."""

    def __init__(
        self,
        consumers: dict[Priority, GroupConsumer],
        offsets: dict[Priority, Offsets],
        desk: Desk,
        letters: DeadLetters,
        pace: Pace,
        redis: Redis,
    ) -> None:
        self._consumers = consumers
        self._offsets = offsets
        self._desk = desk
        self._letters = letters
        self._queues: Queues[_Work] = Queues()
        self._arrived = asyncio.Condition()
        self._redis = redis
        self.pace = pace

    def groups(self) -> dict[str, list[int]]:
        """Which partitions of which groups are read here."""
        return {
            group: sorted(partition.number for partition in consumer.assignment())
            for group, consumer in zip(EXPLAIN_GROUPS, self._consumers.values(), strict=True)
        }

    def reasons(self) -> list[str]:
        """Why no explanation can be worked out now."""
        return [self._redis.problem] if self._redis.problem else []

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``; what is not done by then is handed back. Raises what a consumer dies of."""
        async with asyncio.TaskGroup() as group:
            lanes = [
                group.create_task(self._lane(Priority.HIGH), name="lane-high"),
                group.create_task(self._lane(None), name="lane-all"),
            ]
            polls = [group.create_task(self._poll(priority), name=f"poll-{priority}") for priority in Priority]
            await stop.wait()
            for task in (*polls, *lanes):
                task.cancel()
        for priority in Priority:
            try:
                await self._commit(priority)
            except BusUnavailable as error:  # what has ended comes again, and is found to have ended
                log.warning(kv("explain.not_committed", priority=priority, problem=error))
        log.info(kv("explain.stopped", done=self.pace.done, handed_back=len(self._queues)))

    async def _poll(self, priority: Priority) -> None:
        """Records of one priority into its queue, as far as there is room; commits what has ended."""
        consumer, committed_s = self._consumers[priority], monotonic_s()
        while True:
            try:
                room = self._queues.room(priority)
                if room > 0:
                    for partition, records in (await consumer.poll(room, _POLL_MS)).items():
                        for record in records:
                            await self._take(priority, partition, record)
                else:
                    await asyncio.sleep(_IDLE_S)
                if monotonic_s() - committed_s > _COMMIT_S:
                    await self._commit(priority)
                    committed_s = monotonic_s()
            except BusUnavailable as error:
                log.warning(kv("explain.kafka_away", priority=priority, problem=error))
                await asyncio.sleep(_BACK_OFF_S[0])

    async def _take(self, priority: Priority, partition: Partition, record: Record) -> None:
        self._offsets[priority].take(partition, record.offset)
        EVENTS_CONSUMED.labels(lane=f"explain-{priority}").inc()
        try:
            task = _task_of(record)
        except Exception as error:  # noqa: BLE001  # the edge of one record
            await self._unreadable(record, fault_of(error))
            self._offsets[priority].end(partition, record.offset)
            return
        ago_s = max(0.0, (now_ms() - task.asked_ms) / 1000.0)
        await self._push(Waiting(_Work(record, partition, task), priority, monotonic_s() - ago_s))

    async def _unreadable(self, record: Record, error: BadEvent) -> None:
        while True:
            try:
                await self._letters.put(record, reason=error.reason, problem=str(error))
                return
            except (PublishError, BusUnavailable) as problem:
                log.warning(kv("explain.not_put_aside", offset=record.offset, problem=problem))
                await asyncio.sleep(_BACK_OFF_S[1])

    async def _push(self, waiting: Waiting[_Work]) -> None:
        async with self._arrived:
            self._queues.push(waiting)
            self._arrived.notify_all()

    async def _lane(self, only: Priority | None) -> None:
        async with asyncio.TaskGroup() as later:
            while True:
                async with self._arrived:
                    while (waiting := self._queues.pop(only=only)) is None:
                        await self._arrived.wait()
                with self.pace.working():
                    again_s = await self._one(waiting)
                if again_s is None:
                    self._offsets[waiting.priority].end(waiting.work.partition, waiting.work.record.offset)
                    self.pace.done += 1
                else:
                    later.create_task(self._again(waiting, again_s))

    async def _again(self, waiting: Waiting[_Work], after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._push(waiting)

    async def _one(self, waiting: Waiting[_Work]) -> float | None:
        """Do it; None when it has ended, else after how many seconds it is to be tried again."""
        work = waiting.work
        work.tries += 1
        try:
            return None if await self._desk.do(work.task) is End.DONE else LEASE_MS / 4000.0
        except (IndexUnavailable, IndexDenied, BusUnavailable, PublishError) as error:
            log.warning(kv("explanation.again", explanation=work.task.explanation_id, problem=error))
        except Exception as error:
            work.failures += 1
            log.exception(kv("explanation.raised", explanation=work.task.explanation_id, failures=work.failures))
            if work.failures >= ATTEMPTS or isinstance(error, IndexRefused):
                return await self._put_aside(work, error)
        return _pause_s(work.tries)

    async def _put_aside(self, work: _Work, error: Exception) -> float | None:
        """It cannot be done: failed in its state, the record among the dead letters."""
        problem = f"{type(error).__name__}: {error}"
        try:
            await self._letters.put(work.record, reason="explanation", problem=problem, attempts=work.failures)
            await self._desk.give_up(work.task, None, f"it could not be worked out ({type(error).__name__})")
        except AifError as again:
            log.warning(kv("explanation.not_put_aside", explanation=work.task.explanation_id, problem=again))
            return _pause_s(work.tries) if work.tries < _MOST_TRIES else None
        return None

    async def _commit(self, priority: Priority) -> None:
        due = self._offsets[priority].due()
        if due and await self._consumers[priority].commit(due):
            self._offsets[priority].committed(due)


def _task_of(record: Record) -> ExplanationTask:
    """Raises ``BadEvent``."""
    if isinstance(record, Unparseable):
        raise BadEvent(UNPARSEABLE, record.problem)
    return decode_task(record.value)


def _pause_s(tries: int) -> float:
    low, high = _BACK_OFF_S
    return min(high, low * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[tuple[ExplainWorker, Gate]]:
    """Everything connected and the groups joined. Raises ``IndexUnavailable``, ``BusUnavailable``, ``TopicError``."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        topics = [*EXPLANATION_REQUESTS.values(), EXPLANATIONS, DEAD_LETTERS]
        producer = await stack.enter_async_context(
            Producer(settings, "aif-explain", topics=topics, close_deadline_s=ROLE_CLOSE_S)
        )
        follower = await stack.enter_async_context(VersionFollower(settings, _heard))
        gate = Gate(LeaseBook(redis))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        watching = tasks.create_task(gate.watch(), name="gate")
        stack.callback(watching.cancel)
        bench, pace = await stack.enter_async_context(Bench(gate)), Pace()
        desk = Desk(
            settings,
            store=ExplanationStore(redis, keep_s=settings.explain_keep_s, facts_s=settings.explain_facts_s),
            items=N2OStore(redis, Buckets(settings.index_buckets)),
            versions=Versions(follower.book),
            bench=bench,
            producer=producer,
            pace=pace,
            near=Near(
                NearStore(redis, keep_s=settings.explain_facts_s, off_s=OFF_S, window=WINDOW),
                bound=settings.explain_near_bound,
                check=settings.explain_near_check,
            ),
        )
        consumers, offsets = {}, {}
        for priority, (group, topic) in zip(Priority, EXPLAIN_GROUPS.items(), strict=True):
            offsets[priority] = book = Offsets()
            consumers[priority] = await stack.enter_async_context(_consumer(settings, group, topic, book))
        yield ExplainWorker(consumers, offsets, desk, DeadLetters(settings, producer), pace, redis), gate


def _consumer(settings: Settings, group: str, topic: str, book: Offsets) -> GroupConsumer:
    async def forget(partitions: frozenset[Partition]) -> None:
        # What runs or waits here goes on: the claim in Redis decides who does it.
        book.forget(partitions)

    log.debug(kv("explain.joins", group=group, topic=topic_name(settings, topic)))
    return GroupConsumer(settings, group, [topic], on_assigned=forget, on_revoked=forget)


async def _heard(_book: VersionBook, _record: VersionRecord) -> None:
    """The book is all that is wanted."""


def facts_of(worker: ExplainWorker, gate: Gate, url: str) -> dict[str, Any]:
    """What the lease of a worker says."""
    return {
        "url": url,
        "groups": worker.groups(),
        "servers_busy": round(gate.busy, 3),
        "dead_letters": counts(PUT_ASIDE),
        **worker.pace.facts(),
    }
