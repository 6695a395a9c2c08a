"""Coverage is counted in Redis, exactly; samples are drawn without reading everything."""

from __future__ import annotations

from aif_stream.domain.ids import key_of
from aif_stream.index.connection import Redis
from aif_stream.index.coverage import Coverage, count_coverage
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import rows_key
from aif_stream.index.sampling import sample_items, sample_users
from aif_stream.index.store import N2OStore
from tests.index_builders import item, removal, rows_for


async def test_gaps_wrong_orders_and_invalid_rows_are_told_apart_and_removed_items_are_no_gap(
    redis: Redis, store: N2OStore
) -> None:
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(2_000)]  # several steps per bucket
    rows = rows_for(batch)
    rows["flags"][:7] = 0
    await store.write_live(batch, {"v1": rows})
    gone = [removal(str(n), 101) for n in range(100, 120)]
    await store.write_live(gone, {"v1": rows_for(gone)})
    buckets = range(store.buckets.count)
    for n in range(200, 205):
        place, field = rows_key(store.buckets.of(n), "v1"), n.to_bytes(8, "little")
        if n < 203:
            await redis.call("HDEL", place, field)
        else:
            await redis.call("HSET", place, field, rows[n + 1].tobytes())
    found = await count_coverage(redis, "v1", buckets)
    assert found == Coverage(living=1_980, missing=3, other=2, invalid=7)
    assert found.share == 1 - 5 / 1_980
    assert await count_coverage(redis, "nobody", buckets) == Coverage(1_980, 1_980, 0, 0)
    assert Coverage(0, 0, 0, 0).share == 1.0


async def test_samples_name_each_item_and_user_once_and_no_more_than_asked(redis: Redis, store: N2OStore) -> None:
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(500)]
    await store.write_live(batch, {"v1": rows_for(batch)})
    for most in (1, 60, 500, 5_000):
        sample = await sample_items(redis, store.buckets, most)
        assert len({found.key for found in sample}) == len(sample) == min(most, 500)
    users = {key_of(f"user {n}") for n in range(40)}
    await HistoryStore(redis, 100).append({user: bytes(16) for user in users})
    assert set(await sample_users(redis, 1_000)) == users
    assert len(await sample_users(redis, 10)) == 10
