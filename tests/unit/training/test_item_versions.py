"""States of items over time: the one that held at a moment is found, for any items and times."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.events import ItemUpserted
from aif_stream.training.dataset import ItemVersions

TIMES = st.lists(st.integers(0, 2_000_000_000_000), min_size=1, max_size=5, unique=True).map(sorted)


@given(st.lists(TIMES, min_size=1, max_size=6), st.lists(st.integers(0, 2_000_000_000_000), min_size=1, max_size=8))
def test_the_state_at_a_time_is_the_newest_that_is_not_later(times: list[list[int]], asked: list[int]) -> None:
    states = [ItemUpserted(item_id=i, category="c") for i, own in enumerate(times) for _ in own]
    start = np.concatenate([[0], np.cumsum([len(own) for own in times])])
    versions = ItemVersions(states, np.concatenate([np.array(own) for own in times]), start)
    items = np.arange(len(asked)) % len(times)
    found = versions.at(items, np.array(asked))
    for item, time, state in zip(items.tolist(), asked, found.tolist(), strict=True):
        right = max((n for n, own in enumerate(times[item]) if own <= time), default=0)
        assert state == start[item] + right
