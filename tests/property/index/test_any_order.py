"""Whatever the order, grouping and repetition of events, the index ends with the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.row import TOMBSTONE
from aif_stream.index.connection import Redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from tests.index_builders import LAYOUT, NOW_MS, item, read_index, rows_for

# Few ids, times and offsets, so that events meet; big ones, so that bytes and numbers disagree.
IDS = st.sampled_from(["1", "2", "255", "ada", "bob"])
TIMES = st.sampled_from([1, 2, 255, 256, 65_536, 1_700_000_000_000])
OFFSETS = st.sampled_from([0, 1, 255, 256, 1 << 40])


@st.composite
def events(draw: st.DrawFn) -> list[ItemWrite]:
    """Distinct events: one order belongs to one content."""
    orders = draw(st.lists(st.tuples(IDS, TIMES, OFFSETS), unique=True, min_size=1, max_size=12))
    writes = []
    for name, time_ms, offset in orders:
        payload = None if draw(st.integers(0, 3)) == 0 else b'{"at":%d}' % (time_ms + offset)
        writes.append(item(name, time_ms, offset, payload=payload))
    return writes


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[ItemWrite], list[list[tuple[ItemWrite, int]]]]:
    """Events, and a way to deliver them: each at least once, shuffled, in batches, with compute times."""
    made = draw(events())
    again = draw(st.lists(st.sampled_from(made), max_size=8))
    order = draw(st.permutations(made + again))
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(order), max_size=len(order)))
    batches = []
    at = 0
    for size in sizes:
        if at < len(order):
            computed_ms = draw(st.integers(1, 3))
            batches.append([(write, computed_ms) for write in order[at : at + size]])
            at += size
    return made, batches


async def deliver(store: N2OStore, batch: Sequence[tuple[ItemWrite, int]]) -> None:
    writes = [write for write, _ in batch]
    rows = rows_for(writes, computed_ms=batch[0][1])
    await store.write_live(writes, {"v1": rows})


@settings(max_examples=60, deadline=None)
@given(case=deliveries())
async def test_the_index_depends_on_the_events_alone(
    redis: Redis, case: tuple[list[ItemWrite], list[list[tuple[ItemWrite, int]]]]
) -> None:
    made, batches = case
    await redis.everywhere("FLUSHALL")
    store = N2OStore(redis, Buckets(2), clock=lambda: NOW_MS)
    await store.add_version("v1")
    for batch in batches:
        await deliver(store, batch)
    items, rows = await read_index(store, ["v1"])

    winners = {write.key: write for write in sorted(made, key=lambda write: write.order)}
    latest = {
        key: max(computed for batch in batches for other, computed in batch if other is write)
        for key, write in winners.items()
    }
    assert {key: (found.order, found.removed, found.payload) for key, found in items.items()} == {
        key: (write.order, write.payload is None, write.payload or b"") for key, write in winners.items()
    }
    expected = {}
    for key, write in winners.items():
        row = rows_for([write], computed_ms=latest[key])
        if write.payload is None:
            blank = np.zeros(1, dtype=LAYOUT.dtype)
            blank["event_time_ms"], blank["offset"] = write.order
            blank["computed_ms"], blank["category"], blank["flags"] = latest[key], -1, TOMBSTONE
            row = blank
        expected[key] = row.tobytes()
    assert rows["v1"] == expected


ENTRIES = st.lists(
    st.builds(
        entry_bytes,
        st.sampled_from([0, 1, 255, 256, (1 << 53) + 1, 1 << 53, (1 << 63) + 1, 1 << 63]),
        st.sampled_from([BehaviorKind.CLICK, BehaviorKind.BUY]),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=60,
)


def number(entry: bytes) -> tuple[int, int]:
    return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")


@settings(max_examples=100, deadline=None)
@given(entries=ENTRIES, data=st.data(), long=st.integers(1, 30))
async def test_a_history_is_the_newest_of_all_entries_in_canonical_order(
    redis: Redis, entries: list[bytes], data: st.DataObject, long: int
) -> None:
    await redis.everywhere("FLUSHALL")
    store = HistoryStore(redis, long)
    order = data.draw(st.permutations(entries + data.draw(st.lists(st.sampled_from(entries), max_size=20))))
    at = 0
    while at < len(order):
        size = data.draw(st.integers(1, 25))
        await store.append({7: b"".join(order[at : at + size])})
        at += size
    history = (await store.read(7)).history
    assert history.tobytes() == b"".join(sorted(set(entries), key=number)[-long:])
