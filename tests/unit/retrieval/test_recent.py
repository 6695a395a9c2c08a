from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.retrieval.recent import KEPT, RecentItems


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=3 * KEPT),
        max_size=6,
    )
)
def test_a_users_newest_entries_come_back_newest_first_each_once(batches: list[list[tuple[int, int]]]) -> None:
    recent = RecentItems()
    seen: dict[int, list[int]] = {}
    for batch in batches:
        users = np.array([user for user, _ in batch], np.uint64)
        recent.append(users, np.array([position for _, position in batch], np.int32))
        for user, position in batch:
            seen.setdefault(user, []).append(position)
    for user in range(5):
        newest = seen.get(user, [])[-KEPT:][::-1]
        assert recent.of(user).tolist() == list(dict.fromkeys(newest))
    assert recent.users == len(seen)


def test_many_users_fit() -> None:
    recent = RecentItems()
    users = np.arange(10_000, dtype=np.uint64)
    recent.append(users, np.arange(10_000, dtype=np.int32))
    assert recent.of(9_999).tolist() == [9_999]
