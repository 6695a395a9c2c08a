"""Record batches: merged and renumbered without losing a byte of a record."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from aif_stream.bus.batches import Batch, every_record, framed, joined, packed, skip

HEADERS = [("ce_id", b"1"), ("null", None), ("ce_id", b"twice")]


def singles(first: int, count: int, codec: int = 4) -> list[Batch]:
    found = []
    for n in range(count):
        builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
        builder.append(0, 1_000 - n, b"k%d" % n, None if n % 3 == 0 else b"value" * 40, HEADERS)
        found.append(Batch(0, 1, bytes(builder.build())).moved_to(first + n))
    return found


def content(batches: list[Batch]) -> list[Any]:
    return [(r.offset, r.timestamp, r.key, r.value, r.headers) for batch in batches for r in every_record(batch)]


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_merged_batches_have_the_same_records(codec: int) -> None:
    batches = singles(7, 50, codec)
    merged = list(joined(batches))
    assert content(merged) == content(batches)
    assert len(merged) == (50 if codec == 2 else 1)
    assert all(batch.is_intact for batch in merged)


def test_merging_stops_at_gaps_and_at_unreadable_batches() -> None:
    broken = singles(20, 1)[0]
    broken = broken._replace(data=broken.data[:-4] + b"oops")
    batches = [*singles(0, 5), *singles(10, 5), broken, *singles(21, 5)]
    merged = list(joined(batches))
    assert [(batch.base_offset, batch.next_offset) for batch in merged] == [(0, 5), (10, 15), (20, 21), (21, 26)]
    assert merged[2] == broken


def test_batch_that_expands_hugely_is_passed_through() -> None:
    bomb = packed(1, [(0, b"k", bytes(100_000_000), [])])
    assert len(bomb.data) < 16_384
    assert list(joined([*singles(0, 1), bomb, *singles(2, 2)]))[1] is bomb


def test_fetched_bytes_are_split_whatever_they_claim() -> None:
    batches = singles(3, 4)
    assert list(framed(b"".join(batch.data for batch in batches))) == batches
    assert list(framed(b"")) == []
    for length in (-1, 0, 10, 2**31 - 1):
        data = batches[0].data[:8] + struct.pack(">i", length) + batches[0].data[12:]
        assert list(framed(data)) == [Batch(3, 4, data)], "one batch of one record, as the broker counts"


def test_skip_is_a_control_batch_of_any_length() -> None:
    for offsets in (1, 1 << 24, (1 << 31) - 1):
        (batch,) = framed(skip(offsets))
        assert (batch.base_offset, batch.next_offset) == (0, offsets)
        assert batch.is_intact
        assert every_record(batch) == []
        assert len(batch.data) < 100
