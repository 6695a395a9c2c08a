"""Record batches as bytes: split, check, renumber, merge.

Layout: https://kafka.apache.org/41/implementation/message-format/ (record batch, magic 2). The CRC covers everything
from the attributes on, so the base offset can be changed without decoding the records.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from aif_stream.bus.salvage import Fetched, StoredBatch

# base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and max timestamp, producer id and
# epoch, base sequence, number of records
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = _HEADER.size
"""The least that a batch has."""
_FRAMING: Final = struct.calcsize(">qi")  # base offset and length: what the length does not count
_CRC_FROM: Final = struct.calcsize(">qiibI")
_MAGIC: Final = 2
_CODEC, _CONTROL = 0x07, 0x20
_GZIP, _LZ4, _ZSTD = 1, 3, 4
# Decompression writes into a buffer of fixed size, so a batch that expands to gigabytes cannot exhaust memory.
# Snappy is missing: it comes in frames, and such batches stay as they are.
_INTO: Final[dict[int, Callable[[bytes, bytearray], int]]] = {
    _GZIP: cramjam.gzip.decompress_into,
    _LZ4: cramjam.lz4.decompress_into,
    _ZSTD: cramjam.zstd.decompress_into,
}
MOST_SKIPPED: Final = 2**31 - 1
"""Largest argument of ``skip``: the record count of a batch has 32 bits."""
_SMALL_BYTES: Final = 16_384  # larger batches are not merged: one fetch each is cheap enough
_JOINED_BYTES: Final = 256 * 1024  # the largest batch of our producers (bus/producer.py)
_PLAIN_BYTES: Final = 1024 * 1024


class Batch(NamedTuple):
    """One record batch. ``next_offset`` is base offset + record count: the embedded broker numbers by the count,
    whatever else a broken batch claims."""

    base_offset: int
    next_offset: int
    data: bytes

    @property
    def is_intact(self) -> bool:
        """Whether the CRC fits the bytes."""
        crc: int = calc_crc32c(self.data[_CRC_FROM:])
        return int.from_bytes(self.data[_CRC_FROM - 4 : _CRC_FROM], "big") == crc

    def moved_to(self, base_offset: int) -> Batch:
        """The same records, numbered from ``base_offset``."""
        data = struct.pack(">q", base_offset) + self.data[8:]
        return Batch(base_offset, self.next_offset - self.base_offset + base_offset, data)


def framed(data: bytes) -> Iterator[Batch]:
    """The batches that a fetch has returned. Broken ones, too: bytes without a sensible length are one batch."""
    at = 0
    while at + _HEADER.size <= len(data):
        (length,) = struct.unpack_from(">i", data, at + 8)
        end = at + _FRAMING + length
        if length < _HEADER.size - _FRAMING or end > len(data):
            end = len(data)
        yield batch_of(data[at:end])
        at = end


def batch_of(data: bytes) -> Batch:
    """One batch from its bytes."""
    base, *_, count = _HEADER.unpack_from(data)
    return Batch(base, base + max(count, 1), data)


def skip(offsets: int) -> bytes:
    """A batch that occupies ``offsets`` offsets and holds no records.

    It is a control batch, which consumers skip. The embedded broker numbers by the record count in the header; the
    compression flag keeps it from comparing that count with the size of the batch.
    """
    rest = struct.pack(">hiqqqhii", _CONTROL | _GZIP, offsets - 1, 0, 0, -1, -1, -1, offsets)
    body = struct.pack(">ibI", -1, _MAGIC, calc_crc32c(rest)) + rest
    return struct.pack(">qi", 0, len(body)) + body


def every_record(batch: Batch) -> list[Any]:
    """The records, with an ``Unparseable`` for those that cannot be decoded (bus/salvage.py)."""
    stored = StoredBatch(TopicPartition("", 0), batch.base_offset, Fetched(batch.data, batch.next_offset))
    found: list[Any] = []
    ended = False
    while not ended:
        records, ended = stored.take()
        found += records
    return found


def joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Merge small adjacent batches. Records, offsets, timestamps and headers stay the same.

    The embedded broker returns one batch per partition and fetch, so reading a day of single-record batches would take
    minutes. A batch that cannot be decoded is passed through unchanged.
    """
    waiting: list[tuple[Batch, list[Any]]] = []
    size = 0
    for batch in batches:
        found = _records(batch) if len(batch.data) <= _SMALL_BYTES else None
        follows = not waiting or waiting[-1][0].next_offset == batch.base_offset
        if waiting and (found is None or not follows or size + len(batch.data) > _JOINED_BYTES):
            yield _one(waiting)
            waiting, size = [], 0
        if found is None:
            yield batch
        else:
            waiting.append((batch, found))
            size += sum(len(record.key or b"") + len(record.value or b"") for record in found) + len(batch.data)
    if waiting:
        yield _one(waiting)


def packed(base_offset: int, entries: Iterable[tuple[int, bytes | None, bytes | None, Any]]) -> Batch:
    """One batch from (timestamp in ms, key, value, headers), compressed with zstd."""
    builder = DefaultRecordBatchBuilder(_MAGIC, _ZSTD, 0, -1, -1, -1, 2**31 - 1)
    count = 0
    for timestamp, key, value, headers in entries:
        builder.append(count, timestamp, key, value, list(headers))
        count += 1
    return Batch(0, count, bytes(builder.build())).moved_to(base_offset)


def _records(batch: Batch) -> list[Any] | None:
    """The decoded records; None if they cannot be decoded, or exceed 1 MiB uncompressed."""
    plain = _plain(batch.data) if batch.is_intact else None
    if plain is None:
        return None
    try:
        found = list(DefaultRecordBatch(plain))
    except Exception:  # noqa: BLE001  # foreign bytes: any exception means that they cannot be decoded
        return None
    return found if len(found) == batch.next_offset - batch.base_offset else None


def _one(waiting: list[tuple[Batch, list[Any]]]) -> Batch:
    if len(waiting) == 1:
        return waiting[0][0]
    every = ((r.timestamp, r.key, r.value, r.headers) for _, found in waiting for r in found)
    return packed(waiting[0][0].base_offset, every)


def _plain(data: bytes) -> bytes | None:
    """The batch, uncompressed; None if that is not possible within the buffer."""
    (attributes,) = struct.unpack_from(">h", data, _CRC_FROM)
    if attributes & ~_CODEC:  # transactions, control records, LogAppendTime: only the broker may write these
        return None
    codec = attributes & _CODEC
    if not codec:
        return data if len(data) <= _PLAIN_BYTES else None
    into = _INTO.get(codec)
    buffer = bytearray(_PLAIN_BYTES)
    if into is None:
        return None
    try:
        size = into(data[_HEADER.size :], buffer)
    except Exception:  # noqa: BLE001  # cramjam's errors have no common base class
        return None
    head = data[:_CRC_FROM] + struct.pack(">h", 0) + data[_CRC_FROM + 2 : _HEADER.size]
    return head + bytes(memoryview(buffer)[:size])
