"""A user's history as it is stored: packed (time, kind, key) entries, oldest first.

Clicks and stronger only; an exposure never enters. Category, signature and vectors of the items come from
the pinned version's rows when they are needed, so that user side and item side cannot drift apart.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import BehaviorKind

# time_kind = event_time_ms * 8 + kind code: one number that sorts by time, then by kind.
KIND_BITS: Final = 3
ENTRY: Final = np.dtype([("time_kind", "<u8"), ("key", "<u8")])
ENTRY_BYTES: Final = ENTRY.itemsize

History = NDArray[np.void]
"""Entries of one user (L), dtype ``ENTRY``, oldest first."""


def entry_bytes(key: int, kind: BehaviorKind, event_time_ms: int) -> bytes:
    """One packed entry, 16 bytes."""
    time_kind = (event_time_ms << KIND_BITS) | kind.code
    return time_kind.to_bytes(8, "little") + key.to_bytes(8, "little")


def enters_history(kind: BehaviorKind) -> bool:
    """Whether a behavior is remembered: clicks and stronger."""
    return kind is not BehaviorKind.EXPOSURE


def unpack_history(data: bytes) -> History:
    """The stored bytes as entries (L), read-only."""
    return np.frombuffer(data, dtype=ENTRY)


def times_ms(history: History) -> NDArray[np.int64]:
    """Event times, i64 (L)."""
    times: NDArray[np.int64] = (history["time_kind"] >> np.uint64(KIND_BITS)).astype(np.int64)
    return times


def kinds(history: History) -> NDArray[np.uint8]:
    """Kind codes (``BehaviorKind.code``), u8 (L)."""
    codes: NDArray[np.uint8] = (history["time_kind"] & np.uint64((1 << KIND_BITS) - 1)).astype(np.uint8)
    return codes
