"""First occurrences of keys that come in parts, whatever the table held before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.kernels.distinct import DistinctKeys
from aif_stream.kernels.native import Level, best_level

LEVELS = sorted({Level.NUMPY, best_level()})
KEYS = st.lists(st.integers(0, 30) | st.integers(0, 2**64 - 1), max_size=60)


@pytest.mark.parametrize("level", LEVELS)
@given(
    requests=st.lists(st.lists(st.tuples(KEYS, st.integers(0, 70)), max_size=3), max_size=4),
    but=st.integers(0, 30) | st.none(),
)
def test_keys_come_once_in_order_until_the_room_is_used_and_clearing_forgets_them(
    level: Level, requests: list[list[tuple[list[int], int]]], but: int | None
) -> None:
    distinct = DistinctKeys(200, level=level)
    for parts in requests:
        distinct.clear()
        seen: set[int] = set()
        for keys, room in parts:
            taken, looked = distinct.take(np.array(keys, np.uint64), room, but)
            wanted: list[int] = []
            for at, key in enumerate(keys):
                if len(wanted) == room:
                    assert looked == at
                    break
                if key not in seen and key != but:
                    seen.add(key)
                    wanted.append(key)
            else:
                assert looked == len(keys)
            assert taken.tolist() == wanted
