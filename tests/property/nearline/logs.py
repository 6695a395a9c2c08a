"""Kafka as the protocol sees it: logs, a group's commits and owners, a producer and a consumer at a gate."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from aif_stream.bus.consumer import Partition
from aif_stream.bus.producer import Headers, RecordPosition
from aif_stream.bus.salvage import Plain
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES, MODEL_UPDATES, N2O_ROWS, REBUILD_TASKS
from aif_stream.clock import now_ms
from tests.property.nearline.stepping import Gate

PARTITIONS: Final = {ITEM_UPDATES: 2, REBUILD_TASKS: 2, MODEL_UPDATES: 1, N2O_ROWS: 1, DEAD_LETTERS: 1}
OnPartitions = Callable[[frozenset[Partition]], Awaitable[None]]


LogRecord = Plain


@dataclass(slots=True)
class Topics:
    """Every partition's records, in order."""

    logs: dict[Partition, list[LogRecord]] = field(
        default_factory=lambda: {Partition(name, n): [] for name, count in PARTITIONS.items() for n in range(count)}
    )

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None = None
    ) -> RecordPosition:
        number = partition if partition is not None else zlib.crc32(key or b"") % PARTITIONS[topic]
        log = self.logs[Partition(topic, number)]
        log.append(LogRecord(topic, number, len(log), now_ms(), 1, key, value, tuple(headers)))
        return RecordPosition(topic, number, len(log) - 1)

    def of(self, topic: str) -> list[list[LogRecord]]:
        return [self.logs[Partition(topic, number)] for number in range(PARTITIONS[topic])]


class Group:
    """Who owns which partition of one topic, and what is committed."""

    def __init__(self, topic: str) -> None:
        self.owner: dict[Partition, str] = {Partition(topic, n): "" for n in range(PARTITIONS[topic])}
        self.commits: dict[Partition, int] = {}
        self._given = dict.fromkeys(self.owner, 0)

    def give(self, partition: Partition, member: str) -> None:
        """A rebalance, unless the member has it already."""
        if self.owner[partition] != member:
            self.owner[partition] = member
            self._given[partition] += 1

    def owned_by(self, member: str) -> dict[Partition, int]:
        """Partition -> which giving made it the member's: one that went and came back is another's in between."""
        return {partition: self._given[partition] for partition, owner in self.owner.items() if owner == member}


class Acknowledged:
    """An acknowledgement that has come."""

    def __init__(self, position: RecordPosition) -> None:
        self._position = position

    def __await__(self) -> Generator[None, None, RecordPosition]:
        return self._position
        yield


class LogProducer:
    """Sends at a gate. Has what lanes and roll-outs use of ``bus.producer.Producer``."""

    def __init__(self, topics: Topics, gate: Gate) -> None:
        self._topics = topics
        self._gate = gate

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def republishable_bytes(self, topic: str) -> int:
        return 1 << 20

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, partition: int | None = None
    ) -> Acknowledged:
        await self._gate.step(f"send {topic}")
        return Acknowledged(self._topics.append(topic, key, value, headers, partition))


class LogConsumer:
    """A member of a group at a gate; learns of a rebalance when it is told (until then it may be a zombie)."""

    def __init__(
        self, topics: Topics, group: Group, member: str, gate: Gate, revoked: OnPartitions, assigned: OnPartitions
    ) -> None:
        self._topics = topics
        self._group = group
        self._member = member
        self._gate = gate
        self._revoked = revoked
        self._assigned = assigned
        self._mine = group.owned_by(member)
        self._at: dict[Partition, int] = {}
        self.told = False
        self.empty = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A crash tells nobody; the group's owners are changed by the machine."""

    @property
    def is_zombie(self) -> bool:
        """Whether it holds a partition that is another's by now."""
        return not self._mine.items() <= self._group.owned_by(self._member).items()

    async def poll(self, max_records: int, timeout_ms: int) -> dict[Partition, list[LogRecord]]:
        await self._gate.step("poll")
        now = self._group.owned_by(self._member)
        told, self.told = self.told, False
        if told and now != self._mine:
            await self._revoked(self.assignment())
            self._mine = now
            await self._assigned(self.assignment())
            return {}
        found: dict[Partition, list[LogRecord]] = {}
        for partition in sorted(self._mine):
            at = self._at.get(partition)
            records = self._topics.logs[partition][at : at + max_records] if at is not None else []
            if records:
                found[partition] = records
                self._at[partition] = records[-1].offset + 1
                break
        self.empty = not found
        return found

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        await self._gate.step("commit")
        now = self._group.owned_by(self._member)
        ours = {p: offset for p, offset in offsets.items() if p in self._mine and now.get(p) == self._mine[p]}
        self._group.commits.update(ours)
        return ours.keys() == offsets.keys()

    async def committed(self, partition: Partition) -> int | None:
        await self._gate.step("committed")
        return self._group.commits.get(partition)

    async def beginning(self, partition: Partition) -> int:
        return 0

    def seek(self, partition: Partition, offset: int) -> None:
        self._at[partition] = offset

    def assignment(self) -> frozenset[Partition]:
        return frozenset(self._mine)

    def join(self) -> None:
        """The first assignment."""
        self._mine = self._group.owned_by(self._member)


class LogReader:
    """The whole of one topic, as a server reads the change log (bus.LogReader)."""

    def __init__(self, topics: Topics, topic: str) -> None:
        self._logs = topics.of(topic)
        self._at = dict.fromkeys(range(len(self._logs)), 0)

    async def end_offsets(self) -> dict[int, int]:
        return {number: len(log) for number, log in enumerate(self._logs)}

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._at = dict(offsets)

    async def poll(self, max_records: int, timeout_ms: int) -> Iterable[LogRecord]:
        await asyncio.sleep(0)
        found = [record for number, log in enumerate(self._logs) for record in log[self._at[number] :]]
        self._at = await self.end_offsets()
        return found

    async def caught_up(self, ends: Mapping[int, int]) -> bool:
        return all(self._at[number] >= end for number, end in ends.items())
