"""What is stored: order headers, rows, history entries."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import ENTRY, ENTRY_BYTES, enters_history, entry_bytes, kinds, times_ms, unpack_history
from aif_stream.domain.order import HEADER_BYTES, Order
from aif_stream.domain.row import PREFIX, TOMBSTONE, VALID, RowLayout, empty_rows, from_stored, to_stored
from aif_stream.errors import ArtefactError

U64 = st.integers(0, 2**64 - 1)
TIMES = st.integers(0, 253_402_300_799_999)
LAYOUTS = st.builds(
    RowLayout,
    hidden=st.integers(1, 70),
    width=st.integers(1, 70),
    bridges=st.integers(1, 20),
    signature_bits=st.sampled_from([16, 24, 64, 128, 256]),
    second_key=st.booleans(),
    coded=st.booleans(),
)


@given(U64, U64)
def test_an_order_is_sixteen_little_endian_bytes_and_comes_back(time_ms: int, offset: int) -> None:
    packed = Order(time_ms, offset).pack()
    assert packed == struct.pack("<QQ", time_ms, offset)
    assert len(packed) == HEADER_BYTES
    assert Order.unpack(packed + b"payload") == Order(time_ms, offset)


@given(st.tuples(TIMES, U64), st.tuples(TIMES, U64))
def test_orders_compare_by_time_and_then_by_offset_as_numbers(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (Order(*a) < Order(*b)) == (a < b)


@given(LAYOUTS)
def test_rows_are_a_multiple_of_eight_bytes_and_begin_with_the_prefix(layout: RowLayout) -> None:
    dtype = layout.dtype
    assert dtype.itemsize % 8 == 0
    assert PREFIX.itemsize == 32
    for name in ("event_time_ms", "offset", "computed_ms", "category", "flags"):
        assert dtype.fields is not None
        assert PREFIX.fields is not None
        assert dtype.fields[name] == PREFIX.fields[name]
    assert layout.record["row"] == dtype


@given(LAYOUTS, st.data())
def test_a_row_comes_back_as_it_was_stored(layout: RowLayout, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=layout.dtype.itemsize, max_size=layout.dtype.itemsize))
    row = np.frombuffer(raw, dtype=layout.dtype).copy()
    row["flags"] = VALID
    assert from_stored(layout, to_stored(row[0])).tobytes() == row.tobytes()


@given(LAYOUTS, TIMES, U64)
def test_a_tombstone_is_stored_as_its_prefix_and_keeps_its_order(layout: RowLayout, time_ms: int, offset: int) -> None:
    rows = empty_rows(layout, 1)
    rows["event_time_ms"], rows["offset"], rows["flags"] = time_ms, offset, TOMBSTONE
    rows["h"] = 1.0
    stored = to_stored(rows[0])
    assert len(stored) == PREFIX.itemsize
    back = from_stored(layout, stored)
    assert (int(back["event_time_ms"]), int(back["offset"])) == (time_ms, offset)
    assert not back["h"].any()


def test_a_row_of_another_layout_is_refused() -> None:
    stored = to_stored(empty_rows(RowLayout(8, 8, 2, 64), 1)[0])
    with pytest.raises(ArtefactError, match="layout says"):
        from_stored(RowLayout(16, 8, 2, 64), stored)


@pytest.mark.parametrize("widths", [(0, 8, 2, 64), (8, 8, 2, 65), (8, -1, 2, 64), (8, 8, 2, 0)])
def test_a_layout_with_impossible_widths_is_refused(widths: tuple[int, int, int, int]) -> None:
    with pytest.raises(ArtefactError):
        RowLayout(*widths)


@given(st.lists(st.tuples(U64, st.sampled_from(list(BehaviorKind)), TIMES), max_size=20))
def test_a_history_comes_back_as_it_was_packed(entries: list[tuple[int, BehaviorKind, int]]) -> None:
    packed = b"".join(entry_bytes(key, kind, time_ms) for key, kind, time_ms in entries)
    assert len(packed) == ENTRY_BYTES * len(entries)
    history = unpack_history(packed)
    assert history.dtype == ENTRY
    assert history["key"].tolist() == [key for key, _, _ in entries]
    assert times_ms(history).tolist() == [time_ms for _, _, time_ms in entries]
    assert kinds(history).tolist() == [kind.code for _, kind, _ in entries]


@given(TIMES, TIMES)
def test_entries_sort_by_time_as_numbers_that_lua_can_hold(a: int, b: int) -> None:
    first, second = ((t << 3) | 4 for t in (a, b))
    assert (first < second) == (a < b)
    assert first < 2**53  # a Lua number is a double


def test_an_exposure_never_enters_a_history() -> None:
    assert [kind for kind in BehaviorKind if not enters_history(kind)] == [BehaviorKind.EXPOSURE]
