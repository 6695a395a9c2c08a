"""The item value of the ``items`` hash, and its form inside a packed write.

    order header (16) · flags u8 · id length u16 · id · payload           little-endian, no padding

``payload`` is the producer's JSON, byte for byte. A removed item keeps header, flags and id; its payload is
the time (u64 ms) when the tombstone was written, from which the purge counts. The id is kept for hashed
keys only (a direct key spells its own id); two ids that meet in one key are told apart by it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from aif_stream.domain.ids import direct_id, is_hashed
from aif_stream.domain.order import Order
from aif_stream.errors import BadInput, IndexRefused

REMOVED: Final = 1
_HEAD: Final = struct.Struct("<QQBH")
_STAMP: Final = struct.Struct("<Q")
# One entry of a packed write: key u64 · value length u32 · value.
_ENTRY: Final = struct.Struct("<QIQQBH")
# The scripts compare orders as doubles: beyond this two different numbers could look equal.
ORDER_LIMIT: Final = 1 << 53


class ItemWrite(NamedTuple):
    """One event on its way into the index. ``payload`` None removes the item."""

    key: int
    id_text: str
    order: Order
    payload: bytes | None


class WriteStatus(IntEnum):
    """What became of an ``ItemWrite``; the numbers are those of the script."""

    WRITTEN = 0
    EQUAL = 1
    OLDER = 2
    COLLISION = 3


class WriteResult(NamedTuple):
    """``stored`` is the order that the store holds afterwards (for COLLISION: the other item's)."""

    status: WriteStatus
    stored: Order


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as the store has it; ``payload`` is empty for a removed one."""

    key: int
    id_text: str
    order: Order
    removed: bool
    payload: bytes
    removed_ms: int | None = None


def pack_write(item: ItemWrite, now_ms: int) -> bytes:
    """One entry of a packed write. Raises ``BadInput`` when the order passes 2**53."""
    key, id_text, (event_time_ms, offset), payload = item
    if event_time_ms >= ORDER_LIMIT or offset >= ORDER_LIMIT:
        raise BadInput(f"order {event_time_ms}/{offset} of item {id_text} passes 2**53", field="event_time_ms")
    name = id_text.encode("utf-8", "surrogatepass") if is_hashed(key) else b""
    flags = 0
    if payload is None:
        flags, payload = REMOVED, _STAMP.pack(now_ms)
    size = _HEAD.size + len(name) + len(payload)
    return _ENTRY.pack(key, size, event_time_ms, offset, flags, len(name)) + name + payload


def unpack_item(key: int, value: bytes) -> StoredItem:
    """A value of the ``items`` hash. Raises ``IndexRefused`` when it is none."""
    try:
        event_time_ms, offset, flags, id_size = _HEAD.unpack_from(value)
        at = _HEAD.size + id_size
        if at > len(value):
            raise struct.error(f"an id of {id_size} bytes in a value of {len(value)}")
        id_text = value[_HEAD.size : at].decode("utf-8", "surrogatepass") if id_size else direct_id(key)
        order = Order(event_time_ms, offset)
        if flags & REMOVED:
            return StoredItem(key, id_text, order, True, b"", _STAMP.unpack_from(value, at)[0])
        return StoredItem(key, id_text, order, False, value[at:])
    except (struct.error, UnicodeDecodeError, BadInput) as error:
        raise IndexRefused(f"item {key} is stored in an unknown form: {error}", mend="check AIF_REDIS_URL") from None
