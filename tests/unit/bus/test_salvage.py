"""Stored batches read by hand: like the library where it can, and never stuck where it cannot."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.bus.salvage import Fetched, StoredBatch, Unparseable

TP = TopicPartition("t", 3)
_BYTES = st.none() | st.binary(max_size=20)
_RECORDS = st.lists(
    st.tuples(_BYTES, _BYTES, st.lists(st.tuples(st.text(max_size=5), _BYTES), max_size=3)), min_size=1, max_size=5
)
CODECS = st.sampled_from([0, 1, 2, 3, 4])


def read_batch(position: int, fetched: Fetched, most: int | None = None) -> tuple[list[Any], int]:
    """Everything of a stored batch, taken ``most`` at a time, and where reading goes on."""
    stored, records, ended = StoredBatch(TP, position, fetched), [], False
    while not ended:
        some, ended = stored.take(most)
        records += some
    return records, stored.position


def batch(records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]], codec: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1_000 + number, key, value, headers)
    return bytes(builder.build())


@given(_RECORDS, CODECS, st.integers(0, 4), st.none() | st.integers(1, 3))
def test_a_whole_batch_reads_as_the_library_reads_it(
    records: list[object], codec: int, position: int, most: int | None
) -> None:
    data = batch(records, codec)  # type: ignore[arg-type]
    found, behind = read_batch(position, Fetched(data + data[:30], 0), most)
    expected = [
        (r.offset, r.timestamp, r.key, r.value, list(r.headers))
        for r in DefaultRecordBatch(data)
        if r.offset >= position
    ]
    assert [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in found] == expected
    assert behind >= position + 1


@given(_RECORDS, CODECS, st.data())
def test_whatever_bytes_are_spoilt_reading_goes_on_behind_the_position(
    records: list[object], codec: int, data: st.DataObject
) -> None:
    stored = bytearray(batch(records, codec))  # type: ignore[arg-type]
    for at in data.draw(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=4)):
        stored[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stored)))
    position = data.draw(st.integers(0, 10))
    found, behind = read_batch(position, Fetched(bytes(stored[:cut]), 10))
    assert behind > position or not found
    offsets = [getattr(r, "first_offset", r.offset) for r in found]
    assert offsets == sorted(offsets)
    assert all(position <= offset for offset in offsets)
    assert all(r.offset < behind for r in found)


def test_nothing_there_moves_nothing() -> None:
    assert read_batch(7, Fetched(b"", 7)) == ([], 7)


def test_an_unreadable_batch_ends_where_the_next_one_begins_whatever_its_own_header_says() -> None:
    one = bytearray(batch([(None, b"v", [])] * 2, 0))
    one[-1] ^= 1
    one[23:27] = b"\x00\x00\xff\xff"
    following = (9).to_bytes(8, "big") + bytes(20)
    (record,), behind = read_batch(0, Fetched(bytes(one) + following, 100))
    assert isinstance(record, Unparseable)
    assert (record.first_offset, record.offset, behind, record.value) == (0, 8, 9, bytes(one))
