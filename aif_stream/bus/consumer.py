"""``GroupConsumer``: partitions shared over a consumer group. ``reader.LogReader`` reads a topic whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Mapping
from typing import Final, Self

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from aif_stream.bus.connection import cluster_identity, kafka_errors, require_topics
from aif_stream.bus.consuming import ConsumerBase, Lost, OnLost, OnPartitions, Partition, Record
from aif_stream.bus.salvage import UNPARSEABLE, Unparseable
from aif_stream.bus.topics import topic_name
from aif_stream.errors import BusUnavailable
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

__all__ = [
    "UNPARSEABLE",
    "ConsumerBase",
    "GroupConsumer",
    "Lost",
    "OnLost",
    "OnPartitions",
    "Partition",
    "Record",
    "Unparseable",
    "cluster_identity",
]

log = logging.getLogger(__name__)

# A worker that backs off (Redis down) stays a member of its group this long without polling.
MAX_POLL_INTERVAL_MS: Final = 30 * 60 * 1000


async def _nothing(_partitions: frozenset[Partition]) -> None:
    """The callback of a lane that keeps no state per partition."""


class GroupConsumer(ConsumerBase):
    """A member of a consumer group with manual commits; delivery is at-least-once.

    ``on_assigned`` and ``on_revoked`` are awaited inside the rebalance, before any record of the new assignment is
    delivered; what they raise comes out of the next ``poll``. A partition without a committed offset starts at its
    beginning unless ``on_assigned`` seeks elsewhere. Leaving the context leaves the group at once; what was polled
    but not committed goes to the next member. One member per group on the embedded broker.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Iterable[str],
        *,
        on_revoked: OnPartitions = _nothing,
        on_assigned: OnPartitions = _nothing,
        on_lost: OnLost | None = None,
        client_id: str = "",
    ) -> None:
        super().__init__(settings, on_lost=on_lost)
        self.group = topic_name(settings, group)
        self._topics = tuple(topics)
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._client_id = client_id or settings.worker_id or f"aif-{group}"
        self._failed: BaseException | None = None
        self._paused: frozenset[TopicPartition] = frozenset()

    async def __aenter__(self) -> Self:
        """Join the group and wait for the first assignment. Raises ``BusUnavailable``, ``TopicError``."""
        await require_topics(self._settings, self._topics)
        session_ms = self._settings.kafka_session_timeout_ms
        inner = self._create(
            client_id=self._client_id,
            group_id=self.group,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 5,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        )
        names = [topic_name(self._settings, topic) for topic in self._topics]
        inner.subscribe(names, listener=_Listener(self))
        self._open_inner = inner
        try:
            with kafka_errors(self._settings, f"joining group {self.group}"):
                await self._start(inner)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def poll(self, max_records: int, timeout_ms: int) -> dict[Partition, list[Record]]:
        """Records that are there, at most ``max_records``; waits up to ``timeout_ms`` when there are none.

        Paused partitions give none. What cannot be parsed is an ``Unparseable`` among the records: the caller puts it
        aside (dead letters) and commits behind it. Raises ``BusUnavailable``, and what a rebalance callback raised.
        """
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        tps: Collection[TopicPartition] = ()
        if self._paused:
            # aiokafka stops fetching paused partitions but would still hand out what it has fetched before.
            tps = self._inner.assignment() - self._paused
            if not tps:
                await asyncio.sleep(timeout_ms / 1000)
                return {}
        found = await self._getmany(tps, timeout_ms, max_records)
        return {self._partition(tp): records for tp, records in found.items()}

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit next offsets. False when the group has moved on and a partition is no longer ours (its next owner
        repeats the work; the store is the fence). Raises ``BusUnavailable`` when nobody answers in time."""
        if not offsets:
            return True
        try:
            await self._ask(
                f"committing group {self.group}",
                _plain(self._inner.commit({self._tp(p): offset for p, offset in offsets.items()})),
            )
        except BusUnavailable as error:
            if isinstance(error.__cause__, (CommitFailedError, IllegalStateError)):
                log.info(kv("commit.refused", group=self.group, partitions=len(offsets)))
                return False
            raise
        return True

    async def committed(self, partition: Partition) -> int | None:
        """The group's committed next offset, or None."""
        found: int | None = await self._ask("reading commits", self._inner.committed(self._tp(partition)))
        return found

    def seek(self, partition: Partition, offset: int) -> None:
        """Read this partition from ``offset`` next; records fetched before are dropped."""
        self._inner.seek(self._tp(partition), offset)

    async def position(self, partition: Partition) -> int:
        """The offset that the next poll would begin with."""
        found: int = await self._ask("reading a position", self._inner.position(self._tp(partition)))
        return found

    async def beginning(self, partition: Partition) -> int:
        """The oldest offset that the broker still has."""
        tp = self._tp(partition)
        return int((await self._ask("reading beginnings", self._inner.beginning_offsets([tp])))[tp])

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offsets after the last record."""
        found = await self._ask("reading ends", self._inner.end_offsets([self._tp(p) for p in partitions]))
        return {self._partition(tp): offset for tp, offset in found.items()}

    def assignment(self) -> frozenset[Partition]:
        """The partitions that are ours now."""
        return frozenset(self._partition(tp) for tp in self._inner.assignment())

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing of these until ``resume``; a rebalance ends a pause."""
        tps = frozenset(self._tp(p) for p in partitions) & self._inner.assignment()
        self._inner.pause(*tps)
        self._paused |= tps

    def resume(self, partitions: Iterable[Partition]) -> None:
        tps = frozenset(self._tp(p) for p in partitions) & self._inner.assignment()
        self._inner.resume(*tps)
        self._paused -= tps

    async def rebalanced(self, callback: OnPartitions, tps: Iterable[TopicPartition]) -> None:
        """Run a rebalance callback; aiokafka would log and swallow what it raises."""
        self._paused = frozenset()
        partitions = frozenset(self._partition(tp) for tp in tps)
        try:
            await callback(partitions)
        except Exception as error:  # noqa: BLE001  # kept for the next poll, which raises it
            self._failed = error

    async def revoked(self, tps: Iterable[TopicPartition]) -> None:
        await self.rebalanced(self._on_revoked, tps)

    async def assigned(self, tps: Iterable[TopicPartition]) -> None:
        log.info(kv("partitions.assigned", group=self.group, partitions=_numbers(tps)))
        await self.rebalanced(self._on_assigned, tps)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's rebalance hooks → the consumer's."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if revoked:
            await self._consumer.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._consumer.assigned(assigned)


async def _plain(answer: Awaitable[None]) -> None:
    await answer


def _numbers(tps: Iterable[TopicPartition]) -> str:
    return ",".join(f"{tp.topic}/{tp.partition}" for tp in sorted(tps)) or "none"
