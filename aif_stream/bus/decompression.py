"""Decompression of Kafka batches, bounded before memory is allocated.

Brokers limit what a batch has compressed: 10 KB of zstd can stand for 600 MB. aiokafka's parsers decompress whole
batches through functions that they imported by name; ``bound`` puts those of this module in their place. A batch that
passes the bound raises ``BatchTooLarge``, which ``salvage`` meets like any batch that cannot be parsed.
"""

from __future__ import annotations

import gzip
import importlib
import io
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import cramjam
import numpy as np
from aiokafka.record.util import decode_varint

from aif_stream.errors import AifError

# Most batches: one buffer per thread is kept for them. Larger ones get a fresh one, whose pages cost when written.
_KEPT_BYTES: Final = 1024 * 1024
_XERIAL: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)  # how snappy-java begins its blocks
_MODULES: Final = tuple(
    f"aiokafka.record.{part}{kind}_records" for part in ("", "_crecords.") for kind in ("default", "legacy")
)
# A record of two bytes per header becomes 80 bytes of Python objects for each. Records up to the size are left alone.
_ROOMY_BYTES: Final = 1024 * 1024
MOST_HEADERS: Final = 10_000


class BatchTooLarge(Exception):
    """A batch expands beyond the bound, or one of its records would."""


class _State(threading.local):
    """``latest``: what this thread decompressed last, noted while ``noting``; ``buffer``: kept for the next batch."""

    noting = False
    latest: bytes | None = None
    buffer: bytearray | None = None


_state = _State()
_limit_bytes = 32 * 1024 * 1024


def bound(limit_bytes: int) -> None:
    """Have aiokafka's parsers decompress through this module from now on, at most ``limit_bytes`` per batch.

    For the whole process; may be repeated, and the last limit holds. Raises ``AifError`` when this aiokafka has other
    names.
    """
    global _limit_bytes  # noqa: PLW0603  # the parsers call plain functions: there is no object to hold it
    _limit_bytes = limit_bytes
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # an aiokafka that was built without its C extensions
            if "_crecords" in name:
                continue
            raise
        for codec, decode in DECODERS.items():
            if not hasattr(module, codec):
                if codec == "zstd_decode" and name.endswith("legacy_records"):
                    continue  # came with the format that followed
                raise AifError(f"{name} has no {codec}: batches cannot be bounded", mend="install aiokafka 0.14")
            setattr(module, codec, decode)


def opened(batch: Any) -> tuple[Iterator[Any], bytes | None]:
    """(a batch's records, what it decompressed to: None where it was not compressed)."""
    _state.noting = True
    try:
        records = iter(batch)
        data = _state.latest
    finally:
        _state.noting, _state.latest = False, None
    return (records if data is None or len(data) <= _ROOMY_BYTES else _guarded(records, data)), data


def _guarded(records: Iterator[Any], data: bytes) -> Iterator[Any]:
    """The same records; each is looked at before aiokafka makes it."""
    at = 0
    while at < len(data):
        size, at = decode_varint(data, at)
        if size > _ROOMY_BYTES:
            _refuse_many_headers(data, at)
        at += size
        record = next(records, None)
        if record is None:
            return
        yield record
    next(records, None)  # none is left, or aiokafka says what is wrong


def _refuse_many_headers(data: bytes, at: int) -> None:
    at += 1  # attributes, unused
    for _ in range(2):  # of time and offset
        _, at = decode_varint(data, at)
    for _ in range(2):  # key and value
        size, at = decode_varint(data, at)
        at += max(0, size)
    refuse_headers(decode_varint(data, at)[0])


def refuse_headers(count: int) -> None:
    """Raise ``BatchTooLarge`` for a number of headers that no producer means."""
    if count > MOST_HEADERS:
        raise BatchTooLarge(f"a record of {count} headers, more than {MOST_HEADERS}")


def gzip_decode(payload: Any) -> bytes:
    """All members, as Java reads them."""
    with gzip.GzipFile(fileobj=io.BytesIO(payload), mode="r") as file:
        return _within(file.read(_limit_bytes + 1))


def snappy_decode(payload: Any) -> bytes:
    """A raw block or snappy-java's sequence of them; each block says its size, and keeps it."""
    data = memoryview(payload)
    if len(data) <= len(_XERIAL) or data[: len(_XERIAL)] != _XERIAL:
        return _within(_snappy_block(data, _limit_bytes))
    blocks, room, at = [], _limit_bytes, len(_XERIAL)
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        block = _snappy_block(data[at + 4 : max(at + 4, at + 4 + size)], room)
        blocks.append(block)
        room -= len(block)
        at += 4 + size
    return _within(b"".join(blocks))


def _snappy_block(data: memoryview, room: int) -> bytes:
    if cramjam.snappy.decompress_raw_len(data) > room:
        raise _too_large()
    return bytes(cramjam.snappy.decompress_raw(data))


def lz4_decode(payload: Any) -> bytes:
    """All frames, whatever size they claim."""
    return _within(_into(cramjam.lz4.decompress_into, payload))


def zstd_decode(payload: Any) -> bytes:
    """All frames, whatever size they claim."""
    return _within(_into(cramjam.zstd.decompress_into, payload))


DECODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "gzip_decode": gzip_decode,
    "snappy_decode": snappy_decode,
    "lz4_decode": lz4_decode,
    "zstd_decode": zstd_decode,
}


def _into(decompress_into: Callable[[Any, Any], int], payload: Any) -> bytes:
    if _state.buffer is None:
        _state.buffer = bytearray(_KEPT_BYTES)
    try:
        return bytes(memoryview(_state.buffer)[: decompress_into(payload, _state.buffer)])
    except cramjam.DecompressionError:
        pass  # too small, or not to be decompressed: the next try tells
    room = np.empty(_limit_bytes + 1, np.uint8)
    try:
        return room[: decompress_into(payload, room)].tobytes()
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):
            raise _too_large() from None
        raise


def _within(data: bytes) -> bytes:
    if len(data) > _limit_bytes:
        raise _too_large()
    if _state.noting:
        _state.latest = data
    return data


def _too_large() -> BatchTooLarge:
    return BatchTooLarge(f"the batch expands to more than {_limit_bytes / 2**20:g} MiB (AIF_KAFKA_BATCH_MB)")
