from __future__ import annotations

import numpy as np
import pytest

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import entry_bytes, kinds, times_ms
from aif_stream.domain.order import Order
from aif_stream.errors import BadEvent
from aif_stream.index.connection import Redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import WriteResult, WriteStatus
from aif_stream.index.keys import history_key
from aif_stream.telemetry import HISTORY_DROPPED


def click(key: int, time_ms: int) -> bytes:
    return entry_bytes(key, BehaviorKind.CLICK, time_ms)


async def test_entries_come_back_oldest_first_with_key_kind_and_time(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    await store.append({7: click(2, 20) + entry_bytes(1, BehaviorKind.BUY, 10)})
    await store.append({7: click(3, 15), 8: click(9, 1)})
    user, other, unknown = await store.read_many([7, 8, 9])
    assert user.history["key"].tolist() == [1, 3, 2]
    assert times_ms(user.history).tolist() == [10, 15, 20]
    assert kinds(user.history).tolist() == [BehaviorKind.BUY.code, BehaviorKind.CLICK.code, BehaviorKind.CLICK.code]
    assert other.history["key"].tolist() == [9]
    assert (unknown.attributes, unknown.order, len(unknown.history)) == (None, None, 0)


async def test_keys_beyond_exact_doubles_are_ordered_and_told_apart(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    keys = [(1 << 63) + 1, (1 << 63) + 2, (1 << 63), (1 << 53) + 1, 1 << 53, 3]
    for key in keys:
        await store.append({7: click(key, 10)})
    assert (await store.read(7)).history["key"].tolist() == sorted(keys)


async def test_only_the_newest_are_kept_and_the_dropped_are_counted(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    before = HISTORY_DROPPED._value.get()
    dropped = 0
    for time_ms in range(1_000):
        dropped += await store.append({7: click(time_ms, time_ms)})
    history = (await store.read(7)).history
    assert times_ms(history).tolist() == list(range(900, 1_000))
    stored = await redis.call("STRLEN", history_key(7)) // 16
    assert stored <= 116
    assert dropped == 1_000 - stored
    assert HISTORY_DROPPED._value.get() - before == dropped


async def test_more_than_the_bound_at_once_keeps_the_newest(redis: Redis) -> None:
    store = HistoryStore(redis, 10)
    times = np.random.default_rng(1).permutation(500).tolist()
    assert await store.append({7: b"".join(click(t, t) for t in times)}) == 490
    assert times_ms((await store.read(7)).history).tolist() == list(range(490, 500))


async def test_a_redelivered_batch_writes_nothing(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    batch = {7: b"".join(click(t, t) for t in range(50))}
    await store.append(batch)
    before = (await redis.everywhere("INFO", "persistence")).popitem()[1]
    assert await store.append(batch) == 0
    after = (await redis.everywhere("INFO", "persistence")).popitem()[1]
    changes = [text.split(b"rdb_changes_since_last_save:")[1].split(b"\r")[0] for text in (before, after)]
    assert changes[0] == changes[1]


async def test_a_newer_profile_wins_and_an_older_one_is_told(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    old = b'{"user_id":"7","attributes":{"age":30}}'
    new = b'{"user_id":"7","attributes":{"age":31,"tags":["a"]},"unknown":1}'
    assert (await store.write_profile(7, Order(20, 1), new)).status is WriteStatus.WRITTEN
    assert await store.write_profile(7, Order(20, 0), old) == WriteResult(WriteStatus.OLDER, Order(20, 1))
    assert (await store.write_profile(7, Order(20, 1), new)).status is WriteStatus.EQUAL
    user = await store.read(7)
    assert (user.attributes, user.order) == ({"age": 31, "tags": ["a"]}, Order(20, 1))


async def test_a_removed_profile_keeps_its_order(redis: Redis) -> None:
    store = HistoryStore(redis, 100)
    await store.write_profile(7, Order(20, 1), None)
    assert (await store.write_profile(7, Order(19, 9), b"{}")).status is WriteStatus.OLDER
    user = await store.read(7)
    assert (user.attributes, user.order) == (None, Order(20, 1))


async def test_a_profile_order_beyond_exact_doubles_is_rejected(redis: Redis) -> None:
    with pytest.raises(BadEvent):
        await HistoryStore(redis, 100).write_profile(7, Order(1 << 53, 0), b"{}")
