from __future__ import annotations

import numpy as np
import pytest

from aif_stream.domain.ids import HASHED_BIT, key_of
from aif_stream.domain.order import Order
from aif_stream.domain.row import TOMBSTONE
from aif_stream.errors import BadInput, IndexRefused, VersionMissing, VersionUnlisted
from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import ItemWrite, WriteResult, WriteStatus
from aif_stream.index.keys import Buckets, items_key, rows_key
from aif_stream.index.store import N2OStore
from tests.index_builders import LAYOUT, NOW_MS, OTHER_LAYOUT, item, read_index, removal, rows_for, u64


async def test_a_new_item_is_written_with_the_rows_of_every_listed_version(store: N2OStore) -> None:
    await store.add_version("v1")
    await store.add_version("v2")
    batch = [item(str(n), 100, n, payload=b'{"n":%d}' % n) for n in range(40)]
    v1, v2 = rows_for(batch), rows_for(batch, OTHER_LAYOUT)
    results = await store.write_live(batch, {"v1": v1, "v2": v2})
    assert results == [WriteResult(WriteStatus.WRITTEN, write.order) for write in batch]
    stored = await store.read_items([write.key for write in batch])
    assert [(s.order, s.payload, s.id_text, s.removed) for s in stored if s] == [
        (write.order, write.payload, write.id_text, False) for write in batch
    ]
    for version, layout, rows in (("v1", LAYOUT, v1), ("v2", OTHER_LAYOUT, v2)):
        found_rows, found = await store.read_rows(version, layout, np.arange(40, dtype=np.uint64))
        assert found.all()
        assert np.array_equal(found_rows, rows)


async def test_a_version_unlisted_for_good_is_not_listed_again_by_whoever_stood_still_meanwhile(
    store: N2OStore,
) -> None:
    await store.add_version("v1")
    await store.add_version("v2")
    await store.unlist_for_good("v1")
    await store.add_version("v1")
    assert await store.versions() == {"v2"}
    batch = [item("1", 100, 1)]
    rows = rows_for(batch)
    await store.write_live(batch, {"v1": rows, "v2": rows})
    assert await store.count_rows("v1") == 0
    await store.unlist_version("v2")
    await store.add_version("v2")
    assert await store.versions() == {"v2"}


async def test_an_older_event_changes_nothing_and_learns_the_stored_order(store: N2OStore) -> None:
    await store.add_version("v1")
    new, old = item("7", 200, 3, payload=b"new"), item("7", 200, 2, payload=b"old")
    await store.write_live([new], {"v1": rows_for([new])})
    assert await store.write_live([old], {"v1": rows_for([old])}) == [WriteResult(WriteStatus.OLDER, Order(200, 3))]
    (stored,) = await store.read_items([7])
    assert stored is not None
    assert stored.payload == b"new"
    rows, _ = await store.read_rows("v1", LAYOUT, u64(7))
    assert np.array_equal(rows, rows_for([new]))


async def test_orders_compare_as_numbers_not_as_little_endian_bytes(store: N2OStore) -> None:
    for time_ms in (255, 256, 65_536, (1 << 53) - 1):
        write = item("7", time_ms)
        assert (await store.write_live([write], {}))[0].status is WriteStatus.WRITTEN
    assert (await store.write_live([item("7", 65_537)], {}))[0].status is WriteStatus.OLDER


async def test_an_order_beyond_exact_doubles_is_rejected(store: N2OStore) -> None:
    with pytest.raises(BadInput, match="2\\*\\*53"):
        await store.write_live([item("7", 1 << 53)], {})
    with pytest.raises(BadInput, match="2\\*\\*53"):
        await store.write_live([item("7", 1, 1 << 53)], {})


async def test_an_equal_order_counts_and_the_row_computed_last_stays(store: N2OStore) -> None:
    await store.add_version("v1")
    write = item("7", 200, 3)
    for computed_ms, expected in ((5, 5), (9, 9), (7, 9)):
        results = await store.write_live([write], {"v1": rows_for([write], computed_ms=computed_ms)})
        assert results[0].status is (WriteStatus.WRITTEN if computed_ms == 5 else WriteStatus.EQUAL)
        rows, _ = await store.read_rows("v1", LAYOUT, u64(7))
        assert rows["computed_ms"][0] == expected


async def test_an_equal_order_brings_the_row_of_a_version_listed_since(store: N2OStore) -> None:
    write = item("7", 200, 3)
    await store.write_live([write], {})
    await store.add_version("v1")
    await store.write_live([write], {"v1": rows_for([write])})
    _, found = await store.read_rows("v1", LAYOUT, u64(7))
    assert found.all()


async def test_the_newest_of_several_events_in_one_batch_wins(store: N2OStore) -> None:
    await store.add_version("v1")
    batch = [item("7", 2), item("7", 3, payload=b"3"), item("7", 1), item("8", 1)]
    results = await store.write_live(batch, {"v1": rows_for(batch)})
    statuses = [result.status for result in results]
    assert statuses == [WriteStatus.WRITTEN, WriteStatus.WRITTEN, WriteStatus.OLDER, WriteStatus.WRITTEN]
    rows, _ = await store.read_rows("v1", LAYOUT, u64(7, 8))
    assert np.array_equal(rows, rows_for([batch[1], batch[3]]))


async def test_a_writer_that_lacks_a_listed_version_is_refused_and_its_bucket_is_untouched(store: N2OStore) -> None:
    await store.add_version("v1")
    await store.add_version("v2")
    write = item("7", 100)
    with pytest.raises(VersionMissing) as caught:
        await store.write_live([write], {"v1": rows_for([write])})
    assert caught.value.versions == {"v2"}
    assert await store.read_items([7]) == [None]


async def test_a_version_not_listed_is_not_written(store: N2OStore, redis: Redis) -> None:
    await store.add_version("v1")
    await store.remove_version("v1")
    write = item("7", 100)
    results = await store.write_live([write], {"v1": rows_for([write])})
    assert results[0].status is WriteStatus.WRITTEN
    assert await store.count_rows("v1") == 0


async def test_retiring_a_version_frees_its_rows_everywhere_and_leaves_the_others(store: N2OStore) -> None:
    await store.add_version("v1")
    await store.add_version("v2")
    batch = [item(str(n), 100) for n in range(50)]
    await store.write_live(batch, {"v1": rows_for(batch), "v2": rows_for(batch)})
    assert await store.versions() == {"v1", "v2"}
    await store.remove_version("v1")
    assert await store.versions() == {"v2"}
    assert await store.count_rows("v1") == 0
    assert await store.count_rows("v2") == 50


async def test_a_removed_item_keeps_its_order_and_a_late_older_event_cannot_revive_it(
    store: N2OStore, redis: Redis
) -> None:
    await store.add_version("v1")
    born, gone, late = item("7", 100), removal("7", 300, 1), item("7", 200, 2)
    await store.write_live([born], {"v1": rows_for([born])})
    rows = rows_for([gone])
    rows["computed_ms"] = 0
    await store.write_live([gone], {"v1": rows})
    assert (int(rows["flags"][0]), int(rows["computed_ms"][0])) == (TOMBSTONE, NOW_MS)
    assert (await store.write_live([late], {"v1": rows_for([late])}))[0] == WriteResult(WriteStatus.OLDER, gone.order)
    (stored,) = await store.read_items([7])
    assert stored is not None
    assert (stored.removed, stored.order, stored.payload, stored.removed_ms) == (True, gone.order, b"", NOW_MS)
    bucket = store.buckets.of(7)
    raw = await redis.call("HGET", rows_key(bucket, "v1"), (7).to_bytes(8, "little"))
    assert raw == rows[0].tobytes()[:32]
    found_rows, found = await store.read_rows("v1", LAYOUT, u64(7))
    assert not found[0]
    assert found_rows["flags"][0] == TOMBSTONE


async def test_a_newer_event_brings_a_removed_item_back(store: N2OStore) -> None:
    await store.add_version("v1")
    for write in (removal("7", 300), item("7", 301)):
        await store.write_live([write], {"v1": rows_for([write])})
    _, found = await store.read_rows("v1", LAYOUT, u64(7))
    assert found.all()


async def test_purging_forgets_old_tombstones_and_nothing_else(redis: Redis) -> None:
    now = 1_000
    store = N2OStore(redis, Buckets(4), clock=lambda: now)
    await store.add_version("v1")
    first = [removal("1", 5), item("2", 5)]
    await store.write_live(first, {"v1": rows_for(first)})
    now = 2_000
    second = [removal("3", 5)]
    await store.write_live(second, {"v1": rows_for(second)})
    assert await store.purge_tombstones(older_than_ms=2_000) == 1
    assert [found is not None for found in await store.read_items([1, 2, 3])] == [False, True, True]
    assert await store.count_rows("v1") == 2


async def test_two_ids_in_one_key_are_told_apart_and_the_second_is_not_written(store: N2OStore) -> None:
    key = HASHED_BIT | 99
    first, second = ItemWrite(key, "ada", Order(5, 5), b"1"), ItemWrite(key, "bob", Order(9, 9), b"2")
    await store.write_live([first], {})
    assert await store.write_live([second], {}) == [WriteResult(WriteStatus.COLLISION, Order(5, 5))]
    (stored,) = await store.read_items([key])
    assert stored is not None
    assert (stored.id_text, stored.payload) == ("ada", b"1")
    gone = ItemWrite(key, "ada", Order(6, 6), None)
    assert (await store.write_live([gone], {}))[0].status is WriteStatus.WRITTEN
    assert (await store.write_live([second], {}))[0].status is WriteStatus.COLLISION


async def test_ids_of_any_script_come_back(store: N2OStore) -> None:
    names = ["Ärger", "007", "x" * 256, "18446744073709551616"]
    await store.write_live([item(name, 1) for name in names], {})
    stored = await store.read_items([key_of(name) for name in names])
    assert [found.id_text for found in stored if found] == names


async def test_a_rebuilt_row_is_written_only_while_its_item_is_unchanged(store: N2OStore) -> None:
    bucket = store.buckets.of(7)
    seven = item("7", 100)
    other = next(n for n in range(8, 999) if store.buckets.of(n) == bucket)
    changed = item(str(other), 100)
    await store.write_live([seven, changed], {})
    await store.add_version("v2")
    newer = item(str(other), 101)
    await store.write_live([newer], {"v2": rows_for([newer])})
    expected = [(7, seven.order), (other, changed.order)]
    assert await store.write_rebuilt(bucket, "v2", expected, rows_for([seven, changed])) == [True, False]
    rows, found = await store.read_rows("v2", LAYOUT, u64(7, other))
    assert found.all()
    assert np.array_equal(rows, rows_for([seven, newer]))


async def test_a_rebuild_does_not_replace_a_later_computation_of_the_same_event(store: N2OStore) -> None:
    await store.add_version("v2")
    write, bucket = item("7", 100), store.buckets.of(7)
    await store.write_live([write], {"v2": rows_for([write], computed_ms=9)})
    assert await store.write_rebuilt(bucket, "v2", [(7, write.order)], rows_for([write], computed_ms=8)) == [True]
    rows, _ = await store.read_rows("v2", LAYOUT, u64(7))
    assert rows["computed_ms"][0] == 9


async def test_a_rebuild_of_a_version_that_is_not_listed_writes_nothing_and_says_so(store: N2OStore) -> None:
    write, bucket = item("7", 100), store.buckets.of(7)
    await store.write_live([write], {})
    with pytest.raises(VersionUnlisted, match="v9"):
        await store.write_rebuilt(bucket, "v9", [(7, write.order)], rows_for([write]))
    with pytest.raises(VersionUnlisted, match="v9"):
        await store.check_listed(bucket, "v9")
    assert await store.count_rows("v9") == 0


async def test_unknown_keys_are_not_found_and_order_and_repetition_are_the_callers(store: N2OStore) -> None:
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(30)]
    await store.write_live(batch, {"v1": rows_for(batch)})
    rows, found = await store.read_rows("v1", LAYOUT, u64(29, 1_000, 3, 29, 1_001))
    assert found.tolist() == [True, False, True, True, False]
    assert rows["offset"].tolist() == [29, 0, 3, 29, 0]
    empty, none = await store.read_rows("v1", LAYOUT, u64())
    assert (len(empty), len(none)) == (0, 0)


async def test_rows_of_another_layout_are_refused(store: N2OStore) -> None:
    await store.add_version("v1")
    write = item("7", 100)
    await store.write_live([write], {"v1": rows_for([write])})
    with pytest.raises(IndexRefused, match="layout"):
        await store.read_rows("v1", OTHER_LAYOUT, u64(7))


async def test_rows_that_are_not_of_the_batch_are_a_programming_error(store: N2OStore) -> None:
    write = item("7", 100)
    with pytest.raises(ValueError, match="other orders"):
        await store.write_live([write], {"v1": rows_for([item("7", 101)])})
    with pytest.raises(ValueError, match="2 rows"):
        await store.write_live([write], {"v1": rows_for([write, write])})


async def test_a_foreign_layout_is_refused_and_named(store: N2OStore, redis: Redis) -> None:
    await store.ensure_layout()
    await store.ensure_layout()
    with pytest.raises(IndexRefused, match=r"buckets=16 .*buckets=64"):
        await N2OStore(redis, Buckets(64)).ensure_layout()


async def test_keys_of_another_program_are_refused_with_the_mend(store: N2OStore, redis: Redis) -> None:
    await redis.call("SET", items_key(store.buckets.of(7)), b"a string")
    with pytest.raises(IndexRefused, match="another program"):
        await store.write_live([item("7", 100)], {})


async def test_a_flushed_script_cache_is_not_noticed(store: N2OStore, redis: Redis) -> None:
    await redis.everywhere("SCRIPT", "FLUSH")
    batch = [item(str(n), 100) for n in range(50)]
    assert {result.status for result in await store.write_live(batch, {})} == {WriteStatus.WRITTEN}


async def test_a_bucket_may_have_more_items_than_one_call_of_redis_takes(redis: Redis) -> None:
    store = N2OStore(redis, Buckets(1))
    await store.add_version("v1")
    batch = [item(str(key), 5, key) for key in range(2_500)]
    assert {r.status for r in await store.write_live(batch, {"v1": rows_for(batch)})} == {WriteStatus.WRITTEN}
    newer = [item(str(key), 6 if key % 2 else 4, key) for key in range(2_500)]
    results = await store.write_live(newer, {"v1": rows_for(newer)})
    assert [r.status for r in results] == [WriteStatus.OLDER, WriteStatus.WRITTEN] * 1_250
    items, rows = await read_index(store, ["v1"])
    assert len(items) == len(rows["v1"]) == 2_500


async def test_of_one_item_twice_in_a_batch_the_second_meets_the_first(redis: Redis) -> None:
    store = N2OStore(redis, Buckets(1))
    await store.add_version("v1")
    twice = [item("7", 5), item("7", 5), item("7", 4), item("7", 6)]
    results = await store.write_live(twice, {"v1": rows_for(twice)})
    expected = [WriteStatus.WRITTEN, WriteStatus.EQUAL, WriteStatus.OLDER, WriteStatus.WRITTEN]
    assert [r.status for r in results] == expected
    _, rows = await read_index(store, ["v1"])
    assert [Order.unpack(row).event_time_ms for row in rows["v1"].values()] == [6]
