"""One contiguous array of rows that grows without moving, and the rule by which its slots are used again.

The whole permitted size is *reserved* as address space at the start and touched as it fills: the rows of a
gather lie in one array (one kernel call; a list of chunks would need one per chunk, and a doubling copy would
stall the writer for seconds and hold both copies), no reader ever sees the array move, and untouched pages
cost no memory.
"""

from __future__ import annotations

import mmap
import threading
from collections import Counter, deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.errors import IndexRefused
from aif_stream.kernels.gather import gather_rows

Slots = NDArray[np.int32]

# Linux: the reservation does not count against overcommit; Python names the flag only from 3.13 on.
_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MADV_HUGEPAGE") else 0)
# One page fault per 2 MiB instead of per 4 KiB while loading, and fewer TLB misses in random gathers.
_HUGE_PAGES: Final = getattr(mmap, "MADV_HUGEPAGE", None)


def _reserve(size_bytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes that cost memory only where they are touched; freed with the last view."""
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    if _HUGE_PAGES is not None:
        memory.madvise(_HUGE_PAGES)
    return np.frombuffer(memory, dtype=np.uint8)


class Arena:
    """Rows by slot, and each slot's key. One writer; gathers in any number of threads beside it.

    A slot that readers may still look at is never written: ``retire`` puts it aside with the epoch in which
    it went out of use, and ``take`` hands it out again when every reader of that epoch has ended.
    """

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        try:
            self._bytes = _reserve(capacity * layout.dtype.itemsize)
            self._keys = _reserve(capacity * 8).view(np.uint64)
        except OSError as error:
            size = capacity * (layout.dtype.itemsize + 8) / 2**20
            raise IndexRefused(
                f"{size:.0f} MiB of address space for the mirror cannot be reserved: {error}",
                mend="lower AIF_MIRROR_MEMORY_MB",
            ) from None
        width = layout.dtype.itemsize
        self._matrix = self._bytes[: capacity * width].reshape(capacity, width)
        self._rows: Rows = self._bytes[: capacity * width].view(layout.dtype)
        self._top = 0
        self._free: list[Slots] = []
        self._retired: deque[tuple[int, Slots]] = deque()
        self._epochs = Epochs()

    @property
    def top(self) -> int:
        """Slots ever used: 0 … top − 1."""
        return self._top

    @property
    def matrix(self) -> NDArray[np.uint8]:
        """The rows as bytes (capacity, row bytes)."""
        return self._matrix

    @property
    def nbytes(self) -> int:
        """Memory touched so far (rows and keys), an upper bound."""
        return self._top * (self.layout.dtype.itemsize + 8)

    @property
    def epochs(self) -> Epochs:
        return self._epochs

    def put(self, keys: Keys, rows: Rows) -> Slots:
        """Write rows (n) into slots that nobody reads; the slots i32 (n). Raises ``IndexRefused`` when full."""
        slots = self._take(len(keys))
        # As plain bytes: numpy copies structured rows field by field, thirteen times slower.
        self._matrix[slots] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), self._matrix.shape[1])
        self._keys[slots] = keys
        return slots

    def retire(self, slots: Slots) -> None:
        """These slots are no longer named by the table: use them again when today's readers have ended."""
        if len(slots):
            self._retired.append((self._epochs.advance(), slots))

    def gather(self, slots: Slots) -> Rows:
        """Rows (B) of slots (B), copied; zeros for a negative slot. Releases the GIL."""
        rows: Rows = gather_rows(self._matrix, slots).view(self.layout.dtype)[:, 0]
        return rows

    def orders(self, slots: Slots) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
        """event_time_ms, offset and computed_ms of slots (n), for the writer."""
        rows = self._rows
        return rows["event_time_ms"][slots], rows["offset"][slots], rows["computed_ms"][slots]

    def keys(self, slots: Slots) -> Keys:
        """The keys that slots (n) were written for."""
        return self._keys[slots]

    def flags(self, first: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """flags and computed_ms of the slots first … end − 1, used or retired, for the writer."""
        rows = self._rows[first : min(end, self._top)]
        return rows["flags"], rows["computed_ms"]

    def _take(self, count: int) -> Slots:
        oldest = self._epochs.oldest()
        while self._retired and self._retired[0][0] <= oldest:
            self._free.append(self._retired.popleft()[1])
        parts: list[Slots] = []
        missing = count
        while missing and self._free:
            slots = self._free.pop()
            parts.append(slots[:missing])
            if len(slots) > missing:
                self._free.append(slots[missing:])
            missing -= len(parts[-1])
        if self._top + missing > self.capacity:
            self._free += parts
            raise IndexRefused(
                f"the mirror is full: {self.capacity} rows of {self.layout.dtype.itemsize} bytes",
                mend="raise AIF_MIRROR_MEMORY_MB, or set AIF_JOIN=redis",
            )
        parts.append(np.arange(self._top, self._top + missing, dtype=np.int32))
        self._top += missing
        return np.concatenate(parts)


class Epochs:
    """Who reads since when. Readers enter and leave in any thread; the writer advances the epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self._readers: Counter[int] = Counter()

    def enter(self) -> int:
        """Begin to read; hand the number back to ``leave``."""
        with self._lock:
            self._readers[self._now] += 1
            return self._now

    def leave(self, epoch: int) -> None:
        with self._lock:
            self._readers[epoch] -= 1
            if not self._readers[epoch]:
                del self._readers[epoch]

    def advance(self) -> int:
        """A new epoch: readers that enter from now on cannot see what was retired before."""
        with self._lock:
            self._now += 1
            return self._now

    def oldest(self) -> int:
        """The epoch of the reader that began first; the current one when nobody reads."""
        with self._lock:
            return min(self._readers, default=self._now)
