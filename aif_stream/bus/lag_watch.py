"""Several groups seen from outside, in few requests: positions, ends, the age of what is next, members."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest

from aif_stream.bus.connection import REQUEST_DEADLINE_S, kafka_errors, kafka_kwargs, require_topics
from aif_stream.bus.consumer import ConsumerBase, Partition
from aif_stream.bus.topics import topic_name
from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.settings import Settings

T = TypeVar("T")
_COORDINATOR_S: Final = 0.2
# The next records of all partitions that lag; loopback takes 5 ms, a broker across the ocean a tenth of this.
_NEXT_DEADLINE_S: Final = 2.0
_FETCH_BYTES: Final = 16_384  # of each partition; a broker sends at least one batch
_POLL_MS: Final = 200


class Place(NamedTuple):
    """A group in one partition. ``position``: where it reads next (the beginning before its first commit).

    ``next_ms``: append time of the first record at or after ``position``; None when there is none, or it did not come.
    """

    group: str
    partition: Partition
    position: int
    committed: bool
    end: int
    next_ms: int | None


class LagWatch(ConsumerBase):
    """``async with LagWatch(settings, {"aif.nearline": ITEM_UPDATES}) as watch: await watch.look()``.

    Joins no group and commits nothing. Group and topic names are base names. Raises ``BusUnavailable``, ``TopicError``.
    """

    def __init__(self, settings: Settings, groups: Mapping[str, str]) -> None:
        super().__init__(settings, on_lost=None)
        self._groups = dict(groups)
        self._open_admin: AIOKafkaAdminClient | None = None
        self._stack = AsyncExitStack()
        self._next: dict[tuple[TopicPartition, int], int] = {}  # (partition, position) -> append time; never changes
        self._coordinators: dict[str, int] = {}
        self._can_describe = True

    async def __aenter__(self) -> Self:
        await require_topics(self._settings, set(self._groups.values()))
        self._open_inner = self._create(client_id="aif-lag", max_partition_fetch_bytes=_FETCH_BYTES)
        try:
            with kafka_errors(self._settings, "opening the lag watch"):
                await self._start(self._open_inner)
                admin = AIOKafkaAdminClient(client_id="aif-lag", **kafka_kwargs(self._settings))
                self._stack.push_async_callback(admin.close)
                await admin.start()
                self._open_admin = admin
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        await super().__aexit__(kind, error, trace)

    async def look(self, group: str | None = None) -> list[Place]:
        """Every partition of the groups' topics, now; positions are asked before ends, so no lag is negative."""
        tps = {name: await self._tps(topic) for name, topic in self._groups.items() if group in (None, name)}
        committed = dict(zip(tps, await asyncio.gather(*map(self._committed, tps, tps.values())), strict=True))
        every = sorted({tp for some in tps.values() for tp in some})
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets(every))
        ends = await self._ask("reading ends", self._inner.end_offsets(every))
        places: list[tuple[str, TopicPartition, int, bool]] = []
        for name, some in tps.items():
            for tp in some:
                found = committed[name].get(tp)
                places.append((name, tp, max(found or 0, beginnings[tp]), found is not None))
        waiting = {(tp, position) for _, tp, position, _ in places if position < ends[tp]}
        await self._read_next(waiting)
        return [
            Place(name, self._partition(tp), position, known, max(ends[tp], position), self._next.get((tp, position)))
            for name, tp, position, known in places
        ]

    async def ends(self, topic: str) -> dict[int, int]:
        """End offsets of one more topic, by partition number."""
        found = await self._ask("reading ends", self._inner.end_offsets(await self._tps(topic)))
        return {tp.partition: end for tp, end in found.items()}

    async def appended_ms(self, topic: str, positions: Mapping[int, int]) -> dict[int, int]:
        """Append times of the records at (or first after) these offsets; partitions without one are left out."""
        wanted = {(TopicPartition(topic_name(self._settings, topic), p), offset) for p, offset in positions.items()}
        await self._read_next(wanted, keep=self._next)
        return {tp.partition: self._next[tp, offset] for tp, offset in wanted if (tp, offset) in self._next}

    async def members(self) -> dict[str, int | None]:
        """Members of each group; None where the broker does not tell (the embedded one)."""
        if not self._can_describe:
            return dict.fromkeys(self._groups)
        return dict(zip(self._groups, await asyncio.gather(*map(self._count_members, self._groups)), strict=True))

    async def _tps(self, topic: str) -> list[TopicPartition]:
        name = topic_name(self._settings, topic)
        numbers = await self._ask("reading partitions", self._inner._client._wait_on_metadata(name))
        return [TopicPartition(name, number) for number in sorted(numbers)]

    @property
    def _admin(self) -> AIOKafkaAdminClient:
        assert self._open_admin is not None  # noqa: S101 - used inside its `async with`
        return self._open_admin

    async def _committed(self, group: str, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        async def ask(name: str, coordinator: int) -> dict[TopicPartition, int]:
            found = await self._admin.list_consumer_group_offsets(name, coordinator, tps)
            return {tp: place.offset for tp, place in found.items() if place.offset >= 0}

        return await self._of_group(group, "reading commits", ask)

    async def _count_members(self, group: str) -> int | None:
        async def ask(name: str, coordinator: int) -> int | None:
            try:
                response = await self._admin._send_request(DescribeGroupsRequest([name], False), coordinator)
            except IncompatibleBrokerVersion:
                self._can_describe = False
                return None
            (described, *_) = response.groups
            problem = for_code(described[0])
            if problem.errno:
                raise problem
            return len(described[5])

        return await self._of_group(group, "reading members", ask)

    async def _of_group(self, group: str, doing: str, ask: Callable[[str, int], Awaitable[T]]) -> T:
        """Ask the group's coordinator; it may be another one by now, or only being made (a cluster's first group)."""
        name = topic_name(self._settings, group)
        with kafka_errors(self._settings, doing):
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                while True:
                    try:
                        if name not in self._coordinators:
                            self._coordinators[name] = await self._admin.find_coordinator(name)
                        return await ask(name, self._coordinators[name])
                    except (
                        GroupCoordinatorNotAvailableError,
                        GroupLoadInProgressError,
                        NotCoordinatorForGroupError,
                        NodeNotReadyError,
                        KafkaConnectionError,
                    ):
                        self._coordinators.pop(name, None)
                        await asyncio.sleep(_COORDINATOR_S)

    async def _read_next(
        self, wanted: set[tuple[TopicPartition, int]], keep: Mapping[tuple[TopicPartition, int], int] | None = None
    ) -> None:
        """Read the append times that are not known yet; forget those that nobody asks for any more."""
        kept = self._next if keep is not None else {at: ms for at, ms in self._next.items() if at in wanted}
        self._next = dict(kept)
        missing = sorted(wanted - self._next.keys())
        since_s = monotonic_s()
        # One offset of a partition at a time; two groups of one topic are rare.
        while missing and elapsed_ms(since_s) < _NEXT_DEADLINE_S * 1000:
            turn = dict(missing)
            self._inner.assign(list(turn))
            for tp, offset in turn.items():
                self._inner.seek(tp, offset)
            left = set(turn)
            while left and elapsed_ms(since_s) < _NEXT_DEADLINE_S * 1000:
                for tp, records in (await self._getmany(sorted(left), _POLL_MS, 1)).items():
                    self._next[tp, turn[tp]] = records[0].timestamp
                    left.discard(tp)
                    self._inner.pause(tp)  # or it would fetch on and on
            missing = [at for at in missing if at not in self._next and at[0] not in left]
        self._inner.unsubscribe()
