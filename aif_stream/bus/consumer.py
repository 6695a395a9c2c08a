"""Reading from Kafka: ``GroupConsumer`` shares partitions over a group, ``reader.LogReader`` reads a topic whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from aif_stream.bus.connection import (
    REQUEST_DEADLINE_S,
    cluster_identity,
    kafka_errors,
    kafka_kwargs,
    require_topics,
)
from aif_stream.bus.topics import topic_name
from aif_stream.errors import BusUnavailable
from aif_stream.settings import Settings
from aif_stream.telemetry import RECORDS_LOST, kv

__all__ = ["GroupConsumer", "Lost", "Partition", "Record", "cluster_identity"]

log = logging.getLogger(__name__)
T = TypeVar("T")

# How long a broker holds an empty fetch: it bounds the idle lag on a broker that is not woken by new records, and how
# long other questions wait behind a fetch (design §6: 20 ms is good).
FETCH_MAX_WAIT_MS: Final = 20
# A worker that backs off (Redis down) stays a member of its group this long without polling.
MAX_POLL_INTERVAL_MS: Final = 30 * 60 * 1000
CLOSE_DEADLINE_S: Final = 15.0


class Partition(NamedTuple):
    """One partition; ``topic`` is the base name."""

    topic: str
    number: int


class Record(Protocol):
    """aiokafka's ConsumerRecord. ``timestamp`` is the append time in ms; ``topic`` the broker's (prefixed) name."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Lost(NamedTuple):
    """The log no longer has what the reader wanted next.

    ``position`` below ``beginning``: ``records`` were dropped unread (retention, the embedded broker's bound).
    ``position`` above the end: the log is another one or was cut; ``records`` is 0. Reading goes on at ``beginning``.
    """

    partition: Partition
    position: int
    beginning: int
    records: int


OnPartitions = Callable[[frozenset[Partition]], Awaitable[None]]
OnLost = Callable[[Lost], None]


async def _nothing(_partitions: frozenset[Partition]) -> None:
    """The callback of a lane that keeps no state per partition."""


class ConsumerBase:
    """What both readers share: life cycle, positions, and the detection of lost records."""

    def __init__(self, settings: Settings, *, on_lost: OnLost | None) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._open_inner: AIOKafkaConsumer | None = None

    @property
    def _inner(self) -> AIOKafkaConsumer:
        if self._open_inner is None:
            raise BusUnavailable("the consumer is closed", mend="use it inside its `async with`")
        return self._open_inner

    def _create(self, **kwargs: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            enable_auto_commit=False,
            # "none": aiokafka would skip lost records silently; we want to hear of it (``_recover``).
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            **kwargs,
            **kafka_kwargs(self._settings),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inner, self._open_inner = self._open_inner, None
        if inner is None:
            return
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await inner.stop()
        except (TimeoutError, KafkaError) as problem:
            log.warning(kv("consumer.close_failed", error=repr(problem)))

    def _tp(self, partition: Partition) -> TopicPartition:
        return TopicPartition(topic_name(self._settings, partition.topic), partition.number)

    def _partition(self, tp: TopicPartition) -> Partition:
        return Partition(tp.topic.removeprefix(self._settings.topic_prefix), tp.partition)

    async def _ask(self, doing: str, answer: Awaitable[T]) -> T:
        with kafka_errors(self._settings, doing):
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                return await answer

    async def _getmany(self, tps: Collection[TopicPartition], timeout_ms: int, max_records: int) -> dict[Any, Any]:
        """One poll; repairs positions that the broker does not know and returns {} then."""
        try:
            with kafka_errors(self._settings, "polling"):
                try:
                    found: dict[Any, Any] = await self._inner.getmany(
                        *tps, timeout_ms=timeout_ms, max_records=max_records
                    )
                    return found
                except OffsetOutOfRangeError as error:
                    await self._recover(error.args[0])
                except NoOffsetForPartitionError as error:
                    await self._begin(error.args[0])
        except IllegalStateError:
            log.debug("a partition left while its position was being repaired")
        return {}

    async def _recover(self, positions: Mapping[TopicPartition, int]) -> None:
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets(list(positions)))
        for tp, position in positions.items():
            beginning = beginnings[tp]
            lost = Lost(self._partition(tp), position, beginning, max(0, beginning - position))
            RECORDS_LOST.labels(topic=lost.partition.topic).inc(lost.records)
            log.error(
                kv(
                    "records.lost" if lost.records else "log.replaced",
                    topic=tp.topic,
                    partition=tp.partition,
                    position=position,
                    beginning=beginning,
                    records=lost.records,
                )
            )
            self._inner.seek(tp, beginning)
            if self._on_lost is not None:
                self._on_lost(lost)

    async def _begin(self, tp: TopicPartition) -> None:
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets([tp]))
        self._inner.seek(tp, beginnings[tp])


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
                await inner.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def poll(self, max_records: int, timeout_ms: int) -> dict[Partition, list[Record]]:
        """Records that are there, at most ``max_records``; waits up to ``timeout_ms`` when there are none.

        Paused partitions give none. Raises ``BusUnavailable``, and what a rebalance callback raised.
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
