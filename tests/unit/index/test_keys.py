from __future__ import annotations

import numpy as np
import pytest
from redis.crc import key_slot

from aif_stream.index.keys import Buckets, history_key, items_key, profile_key, rows_key, versions_key


def crc16(data: bytes) -> int:
    """CRC16-CCITT (XModem), bit by bit, as the Redis Cluster specification defines it."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc


def slot(key: bytes) -> int:
    tag = key[key.index(b"{") + 1 : key.index(b"}")]
    return crc16(tag) % 16384


def test_the_slot_arithmetic_is_that_of_the_specification() -> None:
    assert crc16(b"123456789") == 0x31C3
    assert slot(b"{n2o:7}:items") == key_slot(b"{n2o:7}:items")


@pytest.mark.parametrize("bucket", [0, 1, 63, 1023, 4095])
def test_all_keys_of_a_bucket_script_share_one_slot(bucket: int) -> None:
    keys = [items_key(bucket), versions_key(bucket), rows_key(bucket, "v1"), rows_key(bucket, "2026-11-22_a.b")]
    assert len({slot(key) for key in keys}) == 1


def test_both_keys_of_a_user_share_one_slot() -> None:
    assert slot(history_key(1 << 63 | 5)) == slot(profile_key(1 << 63 | 5))


def test_buckets_spread_over_the_slots() -> None:
    assert len({slot(items_key(bucket)) for bucket in range(256)}) > 240


@pytest.mark.parametrize("count", [1, 64, 256, 1000])
def test_one_key_and_many_keys_agree_on_the_bucket(count: int) -> None:
    rng = np.random.default_rng(1)
    keys = np.concatenate([np.arange(500, dtype=np.uint64), rng.integers(0, 1 << 64, 500, dtype=np.uint64)])
    buckets = Buckets(count).of_many(keys)
    assert buckets.tolist() == [Buckets(count).of(key) for key in keys.tolist()]
    assert 0 <= buckets.min() <= buckets.max() < count


def test_consecutive_ids_spread_evenly() -> None:
    counts = np.bincount(Buckets(256).of_many(np.arange(256_000, dtype=np.uint64)), minlength=256)
    assert counts.min() > 800
    assert counts.max() < 1_200
