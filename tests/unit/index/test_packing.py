"""A micro-batch as script calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.errors import BadInput
from aif_stream.index import packing
from aif_stream.index.item_codec import ORDER_LIMIT, ItemWrite, pack_write
from aif_stream.index.keys import Buckets
from aif_stream.index.writes import Writes
from aif_stream.kernels.native import Level, best_level
from tests.index_builders import rows_for

writes = st.lists(
    st.builds(
        lambda text, time, offset, payload: ItemWrite(key_of(text), text, Order(time, offset), payload),
        st.sampled_from(["7", "0", "007", "Ärger", "\ud800", "x" * 200]),
        st.integers(0, ORDER_LIMIT - 1),
        st.integers(0, ORDER_LIMIT - 1),
        st.none() | st.binary(max_size=40),
    ),
    max_size=12,
)


def _packed(batch: list[ItemWrite], versions: int, level: Level | None) -> Any:
    columns = Writes.of(batch)
    rows = {f"v{n}": rows_for(batch, computed_ms=n + 1) for n in range(versions)}
    groups = packing.grouped(Buckets(3).of_many(columns.keys))
    return packing.pack_batch(columns, rows, groups, packing.WriteHeads(), 77, level=level)


@pytest.mark.skipif(best_level() is Level.NUMPY, reason="no compiled kernels")
@given(batch=writes, versions=st.integers(0, 2))
def test_the_compiled_way_packs_the_same_bytes(batch: list[ItemWrite], versions: int) -> None:
    assert _packed(batch, versions, Level.PORTABLE) == _packed(batch, versions, Level.NUMPY)


@given(batch=writes)
def test_every_entry_is_that_of_a_single_write(batch: list[ItemWrite]) -> None:
    columns = Writes.of(batch)
    assert [columns.one(i) for i in range(len(batch))] == batch
    commands, places = _packed(batch, 0, None)
    assert len(commands) == len(places) == len(set(Buckets(3).of_many(columns.keys).tolist()))
    for write in batch:
        assert any(pack_write(write, 77) in command for command in commands)


def test_an_order_beyond_what_the_script_compares_is_refused() -> None:
    with pytest.raises(BadInput, match="2\\*\\*53"):
        _packed([ItemWrite(7, "7", Order(ORDER_LIMIT, 1), b"{}")], 0, None)
