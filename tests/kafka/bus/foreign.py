"""Records that no well-behaved client sends: stored batches put together by hand, and bytes changed on the disk."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from aiokafka import TopicPartition
from aiokafka.codec import zstd_encode
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from aif_stream.bus.connection import open_client
from aif_stream.settings import Settings
from tests.stack import eventually

PLACEHOLDER = "~~name~~"
NOT_UTF8 = b"caf\xe9-\xff\xfe\x80"  # as long as the placeholder; latin-1 and worse
_LENGTH, _CRC, _ATTRIBUTES, _PAYLOAD = 8, 17, 21, 61  # where these begin in a batch (magic 2)
Headers = list[tuple[str, bytes | None]]


def batch(records: Sequence[tuple[bytes, Headers]], *, zstd: bool = False) -> bytes:
    """A batch of (value, headers), keyed ``k``; header names ``PLACEHOLDER`` become ``NOT_UTF8``."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for number, (value, headers) in enumerate(records):
        builder.append(number, 1_000, b"k", value, headers)
    data = bytes(builder.build()).replace(PLACEHOLDER.encode(), NOT_UTF8)
    return sealed(data[:_PAYLOAD], zstd_encode(data[_PAYLOAD:]) if zstd else data[_PAYLOAD:], codec=4 if zstd else 0)


def sealed(head: bytes, payload: bytes, *, codec: int) -> bytes:
    """A whole batch again: with codec, length and CRC."""
    data = bytearray(head + payload)
    data[_ATTRIBUTES + 1] = data[_ATTRIBUTES + 1] & ~0x07 | codec
    struct.pack_into(">i", data, _LENGTH, len(data) - 12)
    struct.pack_into(">I", data, _CRC, calc_crc32c(bytes(data[_ATTRIBUTES:])))
    return bytes(data)


async def append(settings: Settings, topic: str, partition: int, data: bytes) -> int:
    """Append a batch as it is; returns its base offset."""
    async with open_client(settings) as client:
        tp = TopicPartition(settings.topic_prefix + topic, partition)
        await client.set_topics([tp.topic])

        async def leader() -> int | None:
            await client.force_metadata_update()
            return client.cluster.leader_for_partition(tp)

        node = await eventually(leader, what=f"{tp} has a leader")
        response = await client.send(node, ProduceRequest(None, -1, 10_000, [(tp.topic, [(partition, data)])]))
        ((_, ((_, error_code, offset, *_),)),) = response.topics
        if error_code:
            raise for_code(error_code)(tp)
        return int(offset)


def on_disk(node_dir: Path, topic: str, partition: int, base: int, change: Callable[[bytes], bytes]) -> None:
    """Change the stored batch with this base offset in place (``change`` keeps its length), as a bad disk would."""
    with (node_dir / "data" / f"{topic}-{partition}" / f"{0:020}.log").open("r+b") as log:
        data, at = log.read(), 0
        while int.from_bytes(data[at : at + 8], "big") != base:
            at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        stored = data[at : at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")]
        changed = change(stored)
        assert len(changed) == len(stored)
        log.seek(at)
        log.write(changed)


def broken_crc(stored: bytes) -> bytes:
    """One bit of the last byte."""
    return stored[:-1] + bytes([stored[-1] ^ 0x01])


def broken_count(stored: bytes) -> bytes:
    """The header's own last offset delta is nonsense, too."""
    return stored[:23] + b"\x7f\xff\xff\xff" + stored[27:]


def unknown_codec(stored: bytes) -> bytes:
    return sealed(stored[:_PAYLOAD], stored[_PAYLOAD:], codec=7)


def not_zstd(stored: bytes) -> bytes:
    """A right CRC over bytes that do not decompress."""
    return sealed(stored[:_PAYLOAD], stored[_PAYLOAD:], codec=4)
