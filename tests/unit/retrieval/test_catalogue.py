from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.bus.events import ItemEvent
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.retrieval.catalogue import NO_CATEGORY, Catalogue
from tests.precision import assert_close, sum_bound


def event(
    item_id: str, time_ms: int, offset: int, *, category: str = "c", vector: list[float] | None = None
) -> ItemEvent:
    item = ItemUpserted(item_id=item_id, category=category, content_vector=vector)
    return ItemEvent(key_of(item_id), item_id, Order(time_ms, offset), item, b"")


def removal(item_id: str, time_ms: int, offset: int) -> ItemEvent:
    return ItemEvent(key_of(item_id), item_id, Order(time_ms, offset), None, None)


def unit(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


def state(catalogue: Catalogue) -> dict[int, tuple[int, list[float]]]:
    """Living items: key -> (category code, vector)."""
    living, _ = catalogue.popular()
    return {
        int(key): (int(code), vector.tolist())
        for key, code, vector in zip(
            catalogue.keys_of(living), catalogue.categories_of(living), catalogue.vectors_of(living), strict=True
        )
    }


EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 8), st.booleans(), st.sampled_from([None, (1.0, 0.0), (0.6, 0.8)])),
    max_size=30,
)


@given(EVENTS, st.randoms(use_true_random=False), st.integers(1, 10))
def test_any_order_repetition_and_batching_of_events_gives_the_newest_state(
    drawn: list[tuple[int, int, bool, tuple[float, float] | None]], random: object, size: int
) -> None:
    events = [
        removal(str(i), t, n) if gone else event(str(i), t, n, category="c", vector=list(v) if v else None)
        for n, (i, t, gone, v) in enumerate(drawn)
    ]
    in_order, shuffled = Catalogue(), Catalogue()
    # The first vector fixes the width: both see it first.
    start = event("first", 0, 0, vector=[1.0, 1.0])
    for catalogue in (in_order, shuffled):
        catalogue.apply_items([start])
    in_order.apply_items(events)
    again = [*events, *events]
    random.shuffle(again)  # type: ignore[attr-defined]
    for at in range(0, len(again), size):
        shuffled.apply_items(again[at : at + size])
    assert state(in_order) == state(shuffled)
    newest = {e.key: e for e in sorted([start, *events], key=lambda e: e.order)}
    assert in_order.alive == shuffled.alive == sum(e.item is not None for e in newest.values())
    assert state(in_order).keys() == {key for key, e in newest.items() if e.item is not None}


def test_vectors_are_stored_as_unit_vectors_and_other_widths_count_as_none() -> None:
    catalogue = Catalogue()
    catalogue.apply_items([event("1", 1, 1, vector=[3.0, 4.0]), event("2", 1, 2, vector=[1.0, 2.0, 3.0])])
    positions = catalogue.positions_of(np.array([1, 2], np.uint64))
    assert_close(catalogue.vectors_of(positions)[0], unit(3, 4), sum_bound(4))  # two squares, a root, a quotient
    assert catalogue.usable(positions).tolist() == [positions[0]]
    assert catalogue.width_mismatches == 1


def test_only_changes_of_the_vector_or_of_life_count_as_changed() -> None:
    catalogue = Catalogue()
    catalogue.apply_items([event(str(i), 1, i, vector=[float(i + 1), 1.0]) for i in range(5)])
    generation, positions, _ = catalogue.snapshot_vectors()
    assert positions.size == 5
    catalogue.apply_items([event("0", 2, 9, category="other", vector=[1.0, 1.0])])
    assert catalogue.changed_since(generation).size == 0
    catalogue.apply_items(
        [event("1", 2, 10, vector=[-1.0, 1.0]), removal("2", 2, 11), event("9", 1, 12, vector=[1, 0])]
    )
    changed = catalogue.keys_of(catalogue.changed_since(generation))
    assert sorted(changed.tolist()) == [1, 2, 9]


def test_popularity_orders_and_newer_items_come_first_among_equals() -> None:
    catalogue = Catalogue()
    catalogue.apply_items([event(str(i), 100 + i, i) for i in range(6)])
    catalogue.apply_popularity(np.array([3, 3, 1, 77], np.uint64), np.array([1, 1, 1, 9], np.float32))
    order, _ = catalogue.popular()
    assert catalogue.keys_of(order).tolist() == [3, 1, 5, 4, 2, 0]
    # An item that was touched before it was known has its popularity when it comes.
    catalogue.apply_items([event("77", 1, 99)])
    order, _ = catalogue.popular()
    assert catalogue.keys_of(order).tolist()[0] == 77
    assert catalogue.categories_of(catalogue.positions_of(np.array([77], np.uint64)))[0] != NO_CATEGORY


def test_it_grows_and_keeps_ids_of_hashed_keys() -> None:
    catalogue = Catalogue()
    catalogue.apply_items([event(f"sku-{i}", 1, i, vector=[float(i), 1.0]) for i in range(5000)])
    order, _ = catalogue.popular()
    keys = catalogue.keys_of(order)
    names = catalogue.names_of(keys)
    assert len(names) == 5000
    assert all(key_of(name) == key for key, name in names.items())
