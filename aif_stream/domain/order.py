"""The order of one item's events: ``(event_time_ms, offset)``, newest wins, equal counts as written."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

_PACK: Final = struct.Struct("<QQ")
HEADER_BYTES: Final = _PACK.size


class Order(NamedTuple):
    """Compares as a tuple of numbers. The offset breaks ties inside one partition (a key has one)."""

    event_time_ms: int
    offset: int

    def pack(self) -> bytes:
        """16 bytes, little-endian, as ``struct.unpack('<I8I8', …)`` reads them in the write script."""
        return _PACK.pack(self.event_time_ms, self.offset)

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        """The header at the beginning of ``data``."""
        return cls(*_PACK.unpack_from(data))
