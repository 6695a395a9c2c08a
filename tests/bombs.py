"""Batches of a few KB that decompress to hundreds of MB, and what builds others like them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from typing import Final

import cramjam
from aiokafka.record.util import encode_varint

from tests.kafka.bus.foreign import batch, sealed

MIB: Final = 1 << 20
CODECS: Final = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_HEADER_BYTES: Final = 61  # of a batch (magic 2), before its records
_XERIAL: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_ZEROS: Final = bytes(MIB)


def _varint(number: int) -> bytes:
    out = bytearray()
    encode_varint(number, out.append)
    return bytes(out)


def record_around(value_bytes: int) -> tuple[bytes, bytes]:
    """What stands before and behind a value of so many bytes: the first record of a batch, keyed ``k``."""
    before = b"\x00\x00\x00" + _varint(1) + b"k" + _varint(value_bytes)
    behind = _varint(0)
    return _varint(len(before) + value_bytes + len(behind)) + before, behind


def parts_of(size_mib: int) -> Iterator[bytes]:
    """One record whose value is ``size_mib`` MiB of zeros, in pieces."""
    before, behind = record_around(size_mib * MIB)
    yield before
    for _ in range(size_mib):
        yield _ZEROS
    yield behind


def _streamed(parts: Iterator[bytes], compressor: object) -> bytes:
    for part in parts:
        compressor.compress(part)  # type: ignore[attr-defined]
    return bytes(compressor.finish())  # type: ignore[attr-defined]


def _in_frames(parts: Iterator[bytes], compress: Callable[[bytes], bytes]) -> bytes:
    return b"".join(map(bytes, map(compress, parts)))


def _xerial(parts: Iterator[bytes]) -> bytes:
    blocks = (bytes(cramjam.snappy.compress_raw(part)) for part in parts)
    return _XERIAL + b"".join(struct.pack(">i", len(block)) + block for block in blocks)


def _claims_less(payload: bytes) -> bytes:
    """The same LZ4 frame with a content size of 100 bytes in its header."""
    head = bytes([payload[4] | 0x08, payload[5]]) + struct.pack("<Q", 100)
    return payload[:4] + head + bytes([_xxh32(head) >> 8 & 0xFF]) + payload[7:]


def _xxh32(data: bytes) -> int:
    """xxHash32 of fewer than 16 bytes, seed 0."""
    prime = (2654435761, 2246822519, 3266489917, 668265263, 374761393)
    h, at = prime[4] + len(data), 0
    while at + 4 <= len(data):
        h = (h + int.from_bytes(data[at : at + 4], "little") * prime[2]) & 0xFFFFFFFF
        h = (h << 17 | h >> 15) * prime[3] & 0xFFFFFFFF
        at += 4
    for byte in data[at:]:
        h = (h + byte * prime[4]) & 0xFFFFFFFF
        h = (h << 11 | h >> 21) * prime[0] & 0xFFFFFFFF
    for shift, factor in ((15, prime[1]), (13, prime[2]), (16, 1)):
        h = ((h ^ h >> shift) * factor) & 0xFFFFFFFF
    return h


BUILDERS: Final[dict[str, tuple[str, Callable[[Iterator[bytes]], bytes]]]] = {
    "zstd": ("zstd", lambda parts: _streamed(parts, cramjam.zstd.Compressor())),
    "zstd frames": ("zstd", lambda parts: _in_frames(parts, cramjam.zstd.compress)),
    "gzip": ("gzip", lambda parts: _streamed(parts, cramjam.gzip.Compressor())),
    "gzip members": ("gzip", lambda parts: _in_frames(parts, gzip.compress)),
    "lz4": ("lz4", lambda parts: _streamed(parts, cramjam.lz4.Compressor())),
    "lz4 claims less": ("lz4", lambda parts: _claims_less(_streamed(parts, cramjam.lz4.Compressor()))),
    "snappy": ("snappy", lambda parts: bytes(cramjam.snappy.compress_raw(b"".join(parts)))),
    "snappy blocks": ("snappy", _xerial),
}


def payload_of(kind: str, parts: Iterator[bytes]) -> bytes:
    """What ``parts`` are together, compressed."""
    return BUILDERS[kind][1](parts)


def stored(kind: str, payload: bytes) -> bytes:
    """A batch of one record with this compressed payload."""
    head = batch([(b"", [])])[:_HEADER_BYTES]
    return sealed(head, payload, codec=CODECS[BUILDERS[kind][0]])


def bomb(kind: str, size_mib: int) -> bytes:
    """A stored batch of one record of ``size_mib`` MiB."""
    return stored(kind, payload_of(kind, parts_of(size_mib)))


def many_headers(count: int) -> bytes:
    """A stored zstd batch of one record with ``count`` headers without name and value, 2 bytes each."""
    head = b"\x00\x00\x00" + _varint(1) + b"k" + _varint(0) + _varint(count)
    body = head + b"\x00\x01" * count
    return stored("zstd", bytes(cramjam.zstd.compress(_varint(len(body)) + body)))
