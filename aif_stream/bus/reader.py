"""``LogReader``: a topic read whole, without a group (change logs, model versions, rebuilding from a topic)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from aiokafka import TopicPartition

from aif_stream.bus.connection import kafka_errors, require_topics
from aif_stream.bus.consumer import ConsumerBase, Lost, OnLost, Partition, Record, Unparseable
from aif_stream.bus.topics import topic_name
from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.settings import Settings

# How often the reader looks whether the topic has got more partitions (from metadata that is there anyway).
_GROWTH_CHECK_MS = 5_000


class LogReader(ConsumerBase):
    """All partitions of one topic; starts at the beginning; commits nothing.

    Partitions added later are read from their beginning. ``lost_records`` counts what the broker dropped unread.
    """

    def __init__(self, settings: Settings, topic: str, *, on_lost: OnLost | None = None, client_id: str = "") -> None:
        super().__init__(settings, on_lost=on_lost)
        self.topic = topic
        self._name = topic_name(settings, topic)
        self._client_id = client_id or settings.worker_id or "aif-reader"
        self._checked_s = 0.0

    async def __aenter__(self) -> Self:
        """Raises ``BusUnavailable``, ``TopicError``."""
        await require_topics(self._settings, [self.topic])
        self._open_inner = self._create(client_id=self._client_id)
        try:
            with kafka_errors(self._settings, f"reading {self.topic}"):
                await self._start(self._inner)
                # Metadata of the topic arrives with this first question; partitions_for_topic then answers from memory.
                await self._inner._client._wait_on_metadata(self._name)
            self._assign({})
            await self.seek_to_beginning()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    def partitions(self) -> list[int]:
        """Numbers of the partitions that are read."""
        return sorted(tp.partition for tp in self._inner.assignment())

    async def end_offsets(self) -> dict[int, int]:
        """Per partition, the offset after the last record."""
        found = await self._ask("reading ends", self._inner.end_offsets(self._tps()))
        return {tp.partition: offset for tp, offset in found.items()}

    async def beginning_offsets(self) -> dict[int, int]:
        """Per partition, the oldest offset that the broker still has."""
        found = await self._ask("reading beginnings", self._inner.beginning_offsets(self._tps()))
        return {tp.partition: offset for tp, offset in found.items()}

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets next."""
        for number, offset in offsets.items():
            self._inner.seek(TopicPartition(self._name, number), offset)

    async def offsets_at(self, time_ms: int) -> dict[int, int]:
        """Per partition, the first offset appended at ``time_ms`` or later (the end when there is none).

        A broker that does not look up times (the embedded one) gives the beginnings: readers filter by time anyway.
        """
        tps = self._tps()
        found = await self._ask("looking up a time", self._inner.offsets_for_times(dict.fromkeys(tps, time_ms)))
        if all(at is None for at in found.values()):
            known = await self._ask("looking up a time", self._inner.offsets_for_times(dict.fromkeys(tps, 0)))
            if all(at is None for at in known.values()):
                return await self.beginning_offsets()
        ends = await self.end_offsets()
        return {tp.partition: ends[tp.partition] if at is None else at.offset for tp, at in found.items()}

    async def seek_to_beginning(self) -> None:
        self.seek(await self.beginning_offsets())

    async def positions(self) -> dict[int, int]:
        """Per partition, the offset that the next poll would begin with (gaps of compaction are passed)."""
        return {tp.partition: await self._ask("reading a position", self._inner.position(tp)) for tp in self._tps()}

    async def poll(self, max_records: int = 5_000, timeout_ms: int = 100) -> list[Record]:
        """Records that are there, in offset order within a partition; waits up to ``timeout_ms`` for the first."""
        if elapsed_ms(self._checked_s) > _GROWTH_CHECK_MS:
            await self._grow()
        found = await self._getmany((), timeout_ms, max_records)
        return [record for records in found.values() for record in records if not self._is_lost(record)]

    def _is_lost(self, record: Record) -> bool:
        """What cannot be parsed is lost to a reader without a group: told, counted, passed over."""
        if not isinstance(record, Unparseable):
            return False
        first, beginning = record.first_offset, record.offset + 1
        lost = Lost(partition_of(self, record), first, beginning, beginning - first)
        self._tell_lost(lost, "records.unparseable", problem=record.problem)
        return True

    async def caught_up(self, ends: Mapping[int, int]) -> bool:
        """Whether everything below ``ends`` (of ``end_offsets``) has been polled."""
        positions = await self.positions()
        return all(positions.get(number, 0) >= end for number, end in ends.items())

    def _tps(self) -> list[TopicPartition]:
        return sorted(self._inner.assignment())

    def _assign(self, positions: Mapping[int, int]) -> None:
        numbers = self._inner.partitions_for_topic(self._name) or {0}
        self._inner.assign([TopicPartition(self._name, number) for number in sorted(numbers)])
        self.seek(positions)
        self._checked_s = monotonic_s()

    async def _grow(self) -> None:
        self._checked_s = monotonic_s()
        known = set(self.partitions())
        if (self._inner.partitions_for_topic(self._name) or set()) <= known:
            return
        self._assign(await self.positions())  # the new ones have no position: the first poll begins them


def partition_of(reader: LogReader, record: Record) -> Partition:
    """The partition that a record came from."""
    return Partition(reader.topic, record.partition)
