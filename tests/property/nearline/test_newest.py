from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.order import Order
from aif_stream.nearline.newest import coalesce
from aif_stream.nearline.work import Taken


class Event(NamedTuple):
    id_text: str
    order: Order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30))
def test_the_newest_event_of_each_id_stays_and_the_last_record_is_known(events: list[tuple[str, int]]) -> None:
    batch = [
        Taken(SimpleNamespace(offset=offset), Event(name, Order(time, offset)))
        for offset, (name, time) in enumerate(events)
    ]
    found = {held.taken.event.id_text: held for held in coalesce(batch)}
    assert set(found) == {name for name, _ in events}
    for name, held in found.items():
        own = [taken.event.order for taken in batch if taken.event.id_text == name]
        assert held.taken.event.order == max(own)
        assert held.last.event.order == own[-1]
        assert held.came_after(max(own)) == (own[-1] < max(own))
