"""The mirror equals Redis after any interleaving of writes, change log and boot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.index.changelog import Stamps, encode_rows
from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import ItemWrite, WriteStatus
from aif_stream.index.keys import Buckets
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from tests.index_builders import LAYOUT, NOW_MS, item, read_index, rows_for


@dataclass(frozen=True)
class Logged:
    headers: list[tuple[str, bytes]]
    value: bytes


@dataclass
class Log:
    """One partition of the change log, in memory; its reader tells the world each time it is asked something."""

    world: World
    records: list[Logged] = field(default_factory=list)
    position: int = 0

    async def end_offsets(self) -> dict[int, int]:
        await self.world.goes_on()
        return {0: len(self.records)}

    def seek(self, offsets: Mapping[int, int]) -> None:
        self.position = offsets[0]

    async def poll(self, max_records: int, timeout_ms: int) -> list[Logged]:
        await self.world.goes_on()
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
        store.world = self

    async def goes_on(self, count: int = 1) -> None:
        for _ in range(count):
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
            self.log.records.append(Logged(headers, value))


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
@given(case=histories(), again=st.booleans())
async def test_the_mirror_equals_redis(
    redis: Redis, case: tuple[list[list[ItemWrite]], list[tuple[str, int]], int], again: bool
) -> None:
    batches, steps, before = case
    await redis.everywhere("FLUSHALL")
    store = WatchedStore(redis, Buckets(3), clock=lambda: NOW_MS)
    await store.add_version("v1")
    world = World(store, steps, batches)
    await world.goes_on(before)
    mirror = Mirror(LAYOUT, "v1", memory_mb=1)
    await mirror.boot(store, world.log)
    assert mirror.caught_up
    await world.goes_on(len(steps))
    if again:
        await mirror.boot(store, world.log)
    else:
        await mirror.catch_up(world.log)

    _, rows = await read_index(store, ["v1"])
    keys = np.array(sorted(rows["v1"]), dtype=np.uint64)
    with mirror.reading() as view:
        mirrored, _ = view.join(keys)
    assert len(mirror) == len(keys)
    assert {int(key): row.tobytes() for key, row in zip(keys, mirrored, strict=True)} == rows["v1"]
