"""The mirror that a server feeds equals Redis after any interleaving of writes, change log, load and loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.bus.consumer import Lost, OnLost, Partition
from aif_stream.bus.reader import LogReader
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.index.changelog import Stamps, encode_rows
from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import ItemWrite, WriteStatus
from aif_stream.index.keys import Buckets
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.online import mirror_feed
from aif_stream.online.mirror_feed import MirrorFeed
from aif_stream.settings import Settings
from tests.index_builders import LAYOUT, NOW_MS, item, read_index, rows_for


@dataclass(frozen=True)
class Logged:
    offset: int
    headers: list[tuple[str, bytes]]
    value: bytes
    partition: int = 0


@dataclass
class Log:
    """One partition of the change log, in memory; its reader tells the world each time it is asked something."""

    world: World
    records: list[Logged] = field(default_factory=list)
    position: int = 0

    on_lost: OnLost | None = None
    lost: bool = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    async def end_offsets(self) -> dict[int, int]:
        await self.world.goes_on()
        return {0: len(self.records)}

    def seek(self, offsets: Mapping[int, int]) -> None:
        self.position = offsets[0]

    async def poll(self, max_records: int, timeout_ms: int) -> list[Logged]:
        await self.world.goes_on()
        await asyncio.sleep(0)
        if self.lost and self.on_lost is not None:
            self.lost = False
            self.on_lost(Lost(Partition("aif.n2o-rows", 0), 0, 1, 1))
        found = self.records[self.position : self.position + 1]
        self.position += len(found)
        return found

    async def caught_up(self, ends: Mapping[int, int]) -> bool:
        return self.position >= ends[0]


class WatchedStore(N2OStore):
    """Real reads; between buckets and between parts the writers go on."""

    world: World

    async def scan_rows(self, bucket: int, version: str, layout: RowLayout) -> AsyncIterator[tuple[Keys, Rows]]:
        await self.world.goes_on()
        async for part in super().scan_rows(bucket, version, layout):
            await self.world.goes_on()
            yield part


class World:
    """Writers that do ``steps``: ("write", batch) and, any time after it, ("log", number of that batch)."""

    def __init__(self, store: WatchedStore, steps: list[tuple[str, int]], batches: list[list[ItemWrite]]) -> None:
        self.store = store
        self.log = Log(self)
        self._steps = iter(steps)
        self._batches = batches
        self._acknowledged: dict[int, tuple[Keys, Rows]] = {}
        self._turn = asyncio.Lock()  # the feed's tasks all push the world on
        store.world = self

    async def goes_on(self, count: int = 1) -> None:
        for _ in range(count):
            async with self._turn:
                step = next(self._steps, None)
                if step is not None:
                    await self._do(*step)

    async def _do(self, kind: str, number: int) -> None:
        if kind == "write":
            batch = self._batches[number]
            # Two workers never compute the same event in the same millisecond with other numbers: same bytes then.
            rows = rows_for(batch, computed_ms=number + 1)
            results = await self.store.write_live(batch, {"v1": rows})
            kept = [i for i, r in enumerate(results) if r.status in (WriteStatus.WRITTEN, WriteStatus.EQUAL)]
            keys = np.array([batch[i].key for i in kept], dtype=np.uint64)
            self._acknowledged[number] = (keys, rows[kept])
        else:
            keys, rows = self._acknowledged[number]
            headers, value = encode_rows("v1", LAYOUT, keys, rows, Stamps(NOW_MS, NOW_MS))
            self.log.records.append(Logged(len(self.log.records), headers, value))


EVENT = st.builds(
    lambda name, time_ms, offset, gone: item(name, time_ms, offset, payload=None if gone else b"{}"),
    st.sampled_from(["1", "2", "3", "4", "ada"]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([False, False, True]),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[ItemWrite]], list[tuple[str, int]], int]:
    """Batches, an order of their two effects (write before its log), and how many happen before the boot."""
    events = draw(st.lists(EVENT, min_size=1, max_size=20, unique_by=lambda e: (e.key, e.order)))
    batches: list[list[ItemWrite]] = []
    while events:
        size = draw(st.integers(1, 4))
        batches.append(events[:size])
        events = events[size:]
    batches += [draw(st.sampled_from(batches)) for _ in range(draw(st.integers(0, 3)))]
    steps: list[tuple[str, int]] = [("write", number) for number in range(len(batches))]
    for number in range(len(batches)):
        at = draw(st.integers(steps.index(("write", number)) + 1, len(steps)))
        steps.insert(at, ("log", number))
    return batches, steps, draw(st.integers(0, len(steps)))


@settings(max_examples=100, deadline=None)
@given(case=histories(), loses=st.booleans())
async def test_the_mirror_that_a_server_feeds_equals_redis(
    redis: Redis, case: tuple[list[list[ItemWrite]], list[tuple[str, int]], int], loses: bool
) -> None:
    batches, steps, before = case
    await redis.everywhere("FLUSHALL")
    store = WatchedStore(redis, Buckets(3), clock=lambda: NOW_MS)
    await store.add_version("v1")
    world = World(store, steps, batches)
    await world.goes_on(before)
    mirror = Mirror(LAYOUT, "v1", memory_mb=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror_feed, "_RETRY_S", 0.0)
        async with feeding(world) as feed:
            fed = feed.add(mirror)
            await fed.ready.wait()
            assert mirror.caught_up
            if loses:  # while the world goes on: everything is loaded anew
                fed.ready.clear()
                world.log.lost = True
                await fed.ready.wait()
            await world.goes_on(len(steps))
            while feed.positions != {0: len(world.log.records)}:  # noqa: ASYNC110
                await asyncio.sleep(0)

    _, rows = await read_index(store, ["v1"])
    keys = np.array(sorted(rows["v1"]), dtype=np.uint64)
    with mirror.reading() as view:
        mirrored, _ = view.join(keys)
    assert len(mirror) == len(keys)
    assert {int(key): row.tobytes() for key, row in zip(keys, mirrored, strict=True)} == rows["v1"]


@asynccontextmanager
async def feeding(world: World) -> AsyncIterator[MirrorFeed]:
    """The feed of a server, running on the world's log."""

    def open_log(_: Settings, on_lost: OnLost) -> LogReader:
        world.log.on_lost = on_lost
        return cast("LogReader", world.log)

    feed = MirrorFeed(Settings(), world.store, open_log)
    running = asyncio.create_task(feed.run())
    try:
        async with asyncio.timeout(60):
            yield feed
    finally:
        running.cancel()
        await asyncio.wait([running])
