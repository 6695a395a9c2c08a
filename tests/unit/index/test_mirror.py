from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from aif_stream.clock import monotonic_s
from aif_stream.domain.row import TOMBSTONE, RowLayout, empty_rows
from aif_stream.errors import IndexRefused
from aif_stream.index.arena import Arena
from aif_stream.index.changelog import SUPERSEDED, SUPERSEDED_ENTRY, Stamps, decode_head, encode_rows
from aif_stream.index.mirror import Mirror
from tests.index_builders import LAYOUT, NOW_MS, item, rows_for, u64


def small() -> Mirror:
    return Mirror(LAYOUT, "v1", memory_mb=1)


def test_rows_come_back_by_key_in_the_callers_order_and_unknown_ones_are_zeros() -> None:
    mirror = small()
    batch = [item(str(n), 100 + n) for n in range(10)]
    rows = rows_for(batch)
    assert mirror.apply(np.arange(10, dtype=np.uint64), rows).all()
    with mirror.reading() as view:
        joined, found = view.join(u64(9, 77, 3, 9))
    assert found.tolist() == [True, False, True, True]
    assert np.array_equal(joined[[0, 2, 3]], rows[[9, 3, 9]])
    assert joined[1].tobytes() == bytes(LAYOUT.dtype.itemsize)


def test_an_older_row_is_dropped_and_an_equally_new_one_replaces() -> None:
    mirror = small()
    mirror.apply(u64(7), rows_for([item("7", 100, 5)], computed_ms=8))
    for write, computed_ms, kept in (
        (item("7", 99, 9), 9, False),
        (item("7", 100, 4), 9, False),
        (item("7", 100, 5), 7, False),
        (item("7", 100, 5), 8, True),
        (item("7", 100, 5), 9, True),
        (item("7", 100, 6), 1, True),
        (item("7", 101, 0), 1, True),
    ):
        assert mirror.apply(u64(7), rows_for([write], computed_ms=computed_ms)).tolist() == [kept]
    assert len(mirror) == 1


def test_the_newest_of_several_rows_of_one_key_wins() -> None:
    mirror = small()
    batch = [item("7", 3), item("7", 5), item("8", 1), item("7", 4)]
    assert mirror.apply(u64(7, 7, 8, 7), rows_for(batch)).tolist() == [False, True, True, False]
    with mirror.reading() as view:
        rows, _ = view.join(u64(7))
    assert rows["event_time_ms"][0] == 5


def test_a_tombstone_is_kept_and_not_found_and_purged_when_old() -> None:
    mirror = small()
    rows = rows_for([item("7", 100), item("8", 100), item("9", 100)], computed_ms=50)
    rows["flags"][:2] = TOMBSTONE
    rows["computed_ms"][1] = 60
    mirror.apply(u64(7, 8, 9), rows)
    assert mirror.apply(u64(7), rows_for([item("7", 99)])).tolist() == [False]
    with mirror.reading() as view:
        joined, found = view.join(u64(7, 9))
    assert found.tolist() == [False, True]
    assert joined["flags"][0] == TOMBSTONE
    assert mirror.purge_tombstones(older_than_ms=60) == 1
    assert len(mirror) == 2


def test_a_readers_rows_stay_while_newer_ones_are_written_and_slots_are_used_again_after() -> None:
    mirror = small()
    mirror.apply(u64(7), rows_for([item("7", 1)]))
    with mirror.reading() as view:
        slots = view.lookup(u64(7))
        for time_ms in range(2, 50):
            mirror.apply(u64(7), rows_for([item("7", time_ms)]))
        assert view.gather(slots)["event_time_ms"][0] == 1
    used = mirror.nbytes
    for time_ms in range(50, 500):
        mirror.apply(u64(7), rows_for([item("7", time_ms)]))
    assert mirror.nbytes == used


def test_a_full_mirror_refuses_and_names_the_other_road() -> None:
    layout = RowLayout(hidden=4096, width=2, bridges=2, signature_bits=64)
    mirror = Mirror(layout, "v1", memory_mb=1)
    rows = empty_rows(layout, 200)
    with pytest.raises(IndexRefused, match="AIF_JOIN=redis"):
        mirror.apply(np.arange(200, dtype=np.uint64), rows)
    assert len(mirror) == 0
    assert mirror.apply(np.arange(100, dtype=np.uint64), rows[:100]).all()


def test_a_batch_that_was_refused_does_not_cost_free_slots() -> None:
    arena = Arena(LAYOUT, 4)
    rows = rows_for([item(str(n), 1) for n in range(5)])
    slots = arena.put(u64(0, 1, 2), rows[:3])
    arena.retire(slots)
    with pytest.raises(IndexRefused):
        arena.put(u64(0, 1, 2, 3, 4), rows)
    assert sorted(arena.put(u64(0, 1, 2, 3), rows[:4]).tolist()) == [0, 1, 2, 3]


def test_every_update_is_counted_once_when_it_becomes_visible_also_one_that_a_newer_one_left_no_row() -> None:
    mirror = small()
    mirror.caught_up = True
    mirror.apply(u64(9), rows_for([item("9", NOW_MS)]))
    batch = [item("7", NOW_MS - 100), item("8", NOW_MS - 200), item("9", NOW_MS - 300)]
    superseded = np.array([(0, NOW_MS - 5_000), (1, NOW_MS - 6_000), (1, NOW_MS - 7_000), (2, 1)], SUPERSEDED_ENTRY)
    headers, value = encode_rows(
        "v1", LAYOUT, u64(7, 8, 9), rows_for(batch), Stamps(NOW_MS, NOW_MS), superseded=superseded
    )
    mirror.take(decode_head(headers), value)
    assert mirror.recent.read(monotonic_s())["seen"] == 5, "two rows and three before them; item 9 had a newer row"
    mirror.take(decode_head([pair for pair in headers if pair[0] != SUPERSEDED]), value)
    assert mirror.recent.read(monotonic_s())["seen"] == 7


def test_no_row_is_torn_while_threads_read_beside_a_writer() -> None:
    """Each row carries one number everywhere: a mixture of two rows would show."""
    layout = RowLayout(hidden=256, width=64, bridges=8, signature_bits=64)
    mirror = Mirror(layout, "v1", memory_mb=16)
    keys = np.arange(400, dtype=np.uint64)

    def rows_of(number: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        rows = empty_rows(layout, len(keys))
        rows["event_time_ms"], rows["flags"] = number + 1, 1
        rows["h"] = rows["t"] = number % 2048
        return rows

    mirror.apply(keys, rows_of(0))
    done = threading.Event()

    def read() -> int:
        rounds = 0
        while not done.is_set() or rounds == 0:
            with mirror.reading() as view:
                rows, found = view.join(keys)
            assert found.all()
            number = (rows["event_time_ms"].astype(np.int64) - 1) % 2048
            assert (rows["h"] == number[:, None]).all()
            assert (rows["t"] == number[:, None]).all()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        try:
            for number in range(1, 400):
                mirror.apply(keys, rows_of(number))
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)
