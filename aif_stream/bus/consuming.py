"""What every reader of Kafka shares: the words, the life cycle, and hearing of records that are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from aif_stream.bus.connection import REQUEST_DEADLINE_S, kafka_errors, kafka_kwargs
from aif_stream.bus.decompression import bound
from aif_stream.bus.salvage import Broken, Buffers, StoredBatch, fetch_batch, is_at, watch
from aif_stream.bus.topics import topic_name
from aif_stream.errors import BusUnavailable
from aif_stream.settings import Settings
from aif_stream.telemetry import RECORDS_LOST, kv

log = logging.getLogger(__name__)
T = TypeVar("T")

# How long a broker holds an empty fetch: it bounds the idle lag on a broker that is not woken by new records, and how
# long other questions wait behind a fetch (design §6: 20 ms is good).
FETCH_MAX_WAIT_MS: Final = 20
CLOSE_DEADLINE_S: Final = 3.0


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

    ``position`` below ``beginning``: ``records`` were dropped unread (retention, the embedded broker's bound), or, for
    a ``LogReader``, cannot be parsed.
    ``position`` above the end: the log is another one or was cut; ``records`` is 0. Reading goes on at ``beginning``.
    """

    partition: Partition
    position: int
    beginning: int
    records: int


OnPartitions = Callable[[frozenset[Partition]], Awaitable[None]]
OnLost = Callable[[Lost], None]


class ConsumerBase:
    """What both readers share: life cycle, positions, lost records, and records that aiokafka cannot parse."""

    def __init__(self, settings: Settings, *, on_lost: OnLost | None) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._open_inner: AIOKafkaConsumer | None = None
        self._broken: dict[TopicPartition, Broken] = {}
        self._batch_bytes = settings.kafka_batch_mb * 2**20
        self._buffers: Buffers | None = None

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

    async def _start(self, inner: AIOKafkaConsumer) -> None:
        bound(self._batch_bytes)
        await inner.start()
        self._buffers = watch(inner, self._broken, self._batch_bytes)

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
        """One poll; repairs positions that the broker does not know and returns {} then.

        Where aiokafka could not parse a batch, that batch is the answer, read by hand (``salvage``): whole records
        and ``Unparseable`` ones.
        """
        with kafka_errors(self._settings, "polling"):
            for tp in [tp for tp in self._broken if not tps or tp in tps]:
                if records := await self._pass_over(tp, max_records):
                    return {tp: records}
            if self._buffers is not None:
                self._buffers.begin_poll()
            try:
                found: dict[Any, Any] = await self._inner.getmany(*tps, timeout_ms=timeout_ms, max_records=max_records)
                return found
            except OffsetOutOfRangeError as error:
                await self._recover(error.args[0])
            except NoOffsetForPartitionError as error:
                await self._begin(error.args[0])
        return {}

    async def _pass_over(self, tp: TopicPartition, max_records: int) -> list[Any]:
        """The next records of a batch that is read by hand; behind the last one aiokafka goes on."""
        broken = self._broken[tp]
        if broken.batch is None and is_at(self._inner, tp, broken.position):
            fetched = await self._ask("reading a broken batch", fetch_batch(self._inner, tp, broken.position))
            broken.batch = StoredBatch(tp, broken.position, fetched)
            where = {"topic": tp.topic, "partition": tp.partition, "offset": broken.position}
            log.warning(kv("batch.read_by_hand", **where, problem=broken.problem))
        if broken.batch is None or not is_at(self._inner, tp, broken.position):
            self._broken.pop(tp, None)  # sought elsewhere or lost to another member, perhaps while we asked
            return []
        records, ended = broken.batch.take(max_records)
        broken.position = broken.batch.position
        self._inner.seek(tp, broken.position)
        if ended:
            self._broken.pop(tp, None)
        return records

    async def _recover(self, positions: Mapping[TopicPartition, int]) -> None:
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets(list(positions)))
        for tp, position in positions.items():
            if tp not in self._inner.assignment():
                continue  # it left while we asked: its next owner will find out
            beginning = beginnings[tp]
            lost = Lost(self._partition(tp), position, beginning, max(0, beginning - position))
            self._inner.seek(tp, beginning)
            self._tell_lost(lost, "records.lost" if lost.records else "log.replaced")

    def _tell_lost(self, lost: Lost, what: str, **why: str) -> None:
        (topic, partition), position, beginning, records = lost
        where = {"topic": topic_name(self._settings, topic), "partition": partition, "position": position}
        RECORDS_LOST.labels(topic=topic).inc(records)
        log.error(kv(what, **where, beginning=beginning, records=records, **why))
        if self._on_lost is not None:
            self._on_lost(lost)

    async def _begin(self, tp: TopicPartition) -> None:
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets([tp]))
        if tp in self._inner.assignment():
            self._inner.seek(tp, beginnings[tp])
