"""Raw access to a single-node broker: fetch and append record batches without decoding, read and write group commits.

Used to persist the embedded broker, which keeps everything in memory (embedded/journal.py). Names of topics and groups
are base names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest

from aif_stream.bus.batches import MOST_SKIPPED, Batch, framed, skip
from aif_stream.bus.connection import kafka_errors, kafka_kwargs, open_client
from aif_stream.bus.consuming import Partition
from aif_stream.bus.topics import topic_name
from aif_stream.errors import EmbeddedError
from aif_stream.settings import Settings

_FETCH_BYTES = 64 * 1024 * 1024
_PARTITION_BYTES = 8 * 1024 * 1024
_APPEND_DEADLINE_MS = 20_000
_ALL_REPLICAS = -1
_LATEST, _EARLIEST = -1, -2


class Stored(NamedTuple):
    """The result of a fetch for one partition. ``end``: the offset after the partition's last record. ``lost``: the
    requested position is out of range."""

    partition: Partition
    batches: Sequence[Batch]
    end: int
    lost: bool


class RawLog:
    """``async with RawLog(settings) as log``. Every method raises ``BusUnavailable``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._open_client: AIOKafkaClient | None = None
        self._open_admin: AIOKafkaAdminClient | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            client: Any = await stack.enter_async_context(open_client(self._settings))
            self._open_client = client
            with kafka_errors(self._settings, "opening the raw log"):
                await client.force_metadata_update()
                self._open_admin = AIOKafkaAdminClient(client_id="aif-journal", **kafka_kwargs(self._settings))
                stack.push_async_callback(self._open_admin.close)
                await self._open_admin.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def fetch(self, positions: Mapping[Partition, int], wait_ms: int) -> list[Stored]:
        """Batches from these positions. Waits up to ``wait_ms`` if there are none."""
        wanted = self._by_topic((p, (p.number, position, _PARTITION_BYTES)) for p, position in positions.items())
        response = await self._send("reading batches", FetchRequest(wait_ms, 1, _FETCH_BYTES, 0, wanted, rack_id=""))
        return [
            self._stored(topic, number, code, end, bytes(data or b""))
            for topic, parts in response.topics
            for number, code, end, *_, data in parts
        ]

    async def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset after the last record of each partition."""
        return await self._offsets(partitions, _LATEST)

    async def beginnings(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The oldest offset that each partition still has."""
        return await self._offsets(partitions, _EARLIEST)

    async def append(self, batches: Mapping[Partition, bytes]) -> dict[Partition, int]:
        """Append one batch to each partition. Returns the acknowledged base offsets."""
        wanted = self._by_topic((p, (p.number, data)) for p, data in batches.items())
        request = ProduceRequest(
            transactional_id=None, required_acks=_ALL_REPLICAS, timeout=_APPEND_DEADLINE_MS, topics=wanted
        )
        response = await self._send("appending batches", request)
        found: dict[Partition, int] = {}
        for topic, parts in response.topics:
            for number, code, offset, *_ in parts:
                with kafka_errors(self._settings, f"appending to {topic}/{number}"):
                    if code:
                        raise for_code(code)(f"code {code}")
                found[self._partition(topic, number)] = offset
        return found

    async def skip_to(self, offsets: Mapping[Partition, int]) -> None:
        """Advance each partition so that its next record gets this offset. Raises ``EmbeddedError`` if the broker does
        not number as expected."""
        ends = await self.ends(offsets)
        while left := {p: offset - ends[p] for p, offset in offsets.items() if offset > ends[p]}:
            await self.append({p: skip(min(count, MOST_SKIPPED)) for p, count in left.items()})
            before, ends = ends, await self.ends(offsets)
            if stuck := [p for p in left if ends[p] <= before[p]]:
                raise EmbeddedError(f"the broker does not take offsets up to {offsets[stuck[0]]} of {stuck[0]}")
        if wrong := [p for p, offset in offsets.items() if ends[p] != offset]:
            raise EmbeddedError(f"{wrong[0]} ends at {ends[wrong[0]]} on the broker, not at {offsets[wrong[0]]}")

    async def commits(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The group's committed offsets. Partitions without a commit are omitted."""
        tps = [self._tp(partition) for partition in partitions]
        assert self._open_admin is not None  # noqa: S101 - used inside its `async with`
        with kafka_errors(self._settings, f"reading commits of {group}"):
            found = await self._open_admin.list_consumer_group_offsets(topic_name(self._settings, group), None, tps)
        return {self._partition(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}

    async def commit(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Commit on behalf of a group without members."""
        if not offsets:
            return
        consumer = AIOKafkaConsumer(
            group_id=topic_name(self._settings, group), enable_auto_commit=False, **kafka_kwargs(self._settings)
        )
        with kafka_errors(self._settings, f"committing group {group}"):
            try:
                await consumer.start()
                consumer.assign([self._tp(partition) for partition in offsets])
                await consumer.commit({self._tp(partition): offset for partition, offset in offsets.items()})
            finally:
                await consumer.stop()

    async def _offsets(self, partitions: Iterable[Partition], when: int) -> dict[Partition, int]:
        wanted = self._by_topic((p, (p.number, when)) for p in partitions)
        response = await self._send("reading offsets", OffsetRequest(-1, 0, wanted))
        found: dict[Partition, int] = {}
        for topic, parts in response.topics:
            for number, code, *_, offset in parts:
                with kafka_errors(self._settings, f"reading offsets of {topic}/{number}"):
                    if code:
                        raise for_code(code)(f"code {code}")
                found[self._partition(topic, number)] = offset
        return found

    async def _send(self, doing: str, request: Any) -> Any:
        client = self._open_client
        assert client is not None  # noqa: S101 - used inside its `async with`
        with kafka_errors(self._settings, doing):
            return await client.send(client.get_random_node(), request)

    def _stored(self, topic: str, number: int, code: int, end: int, data: bytes) -> Stored:
        partition = self._partition(topic, number)
        lost = code == 1  # OffsetOutOfRange
        with kafka_errors(self._settings, f"reading {partition}"):
            if code and not lost:
                raise for_code(code)(f"code {code}")
        return Stored(partition, tuple(framed(data)), end, lost)

    def _by_topic(self, parts: Iterable[tuple[Partition, tuple[Any, ...]]]) -> list[tuple[str, list[tuple[Any, ...]]]]:
        found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for partition, part in parts:
            found[topic_name(self._settings, partition.topic)].append(part)
        return list(found.items())

    def _tp(self, partition: Partition) -> TopicPartition:
        return TopicPartition(topic_name(self._settings, partition.topic), partition.number)

    def _partition(self, topic: str, number: int) -> Partition:
        return Partition(topic.removeprefix(self._settings.topic_prefix), number)
