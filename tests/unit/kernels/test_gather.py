"""Rows by slot: negative slots give zeros, and both ways give the same bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.kernels.gather import gather_rows
from aif_stream.kernels.native import Level, best_level

WAYS = [Level.NUMPY, *([Level.PORTABLE] if best_level() > Level.NUMPY else [])]


@pytest.mark.parametrize("level", WAYS, ids=lambda way: way.name)
@given(n_rows=st.integers(1, 50), width=st.integers(1, 300), n=st.integers(0, 80), lowest=st.sampled_from([0, -1, -9]))
@settings(deadline=None)
def test_rows_come_in_the_slots_order_and_negative_ones_are_zero(
    level: Level, n_rows: int, width: int, n: int, lowest: int
) -> None:
    rng = np.random.default_rng(n_rows * width + n)
    arena = rng.integers(0, 256, (n_rows, width), dtype=np.uint8)
    slots = rng.integers(lowest, n_rows, n).astype(np.int32)
    got = gather_rows(arena, slots, np.full((n, width), 7, np.uint8), level=level)
    expected = [arena[slot].tolist() if slot >= 0 else [0] * width for slot in slots]
    assert got.tolist() == expected


@pytest.mark.parametrize("level", WAYS, ids=lambda way: way.name)
def test_a_slot_beyond_the_arena_is_an_error_never_a_read(level: Level) -> None:
    arena = np.ones((3, 4), np.uint8)
    with pytest.raises(IndexError, match="2 of 4 slots"):
        gather_rows(arena, np.array([0, 3, -1, 2**31 - 1], np.int32), level=level)


@pytest.mark.parametrize("level", WAYS, ids=lambda way: way.name)
def test_a_structured_arena_is_gathered_as_bytes(level: Level) -> None:
    record = np.dtype([("a", "<u4"), ("b", "<f2", (3,))])
    arena = np.zeros(5, record)
    arena["a"], arena["b"][:, 1] = np.arange(5), np.arange(5) / 2
    rows = gather_rows(arena.view(np.uint8).reshape(5, record.itemsize), np.array([4, 1], np.int32), level=level)
    assert (rows.view(record)[:, 0] == arena[[4, 1]]).all()


def test_wrong_arrays_are_refused() -> None:
    arena, slots = np.zeros((4, 4), np.uint8), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="contiguous"):
        gather_rows(arena[:, ::2], slots)
    with pytest.raises(ValueError, match="out must be"):
        gather_rows(arena, slots, np.empty((3, 4), np.uint8))
    with pytest.raises(ValueError, match="int32"):
        gather_rows(arena, slots.astype(np.int64))
