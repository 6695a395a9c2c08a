"""The newest items of each user, as a ring per user: what the neighbours and category channels start from.

In the order of arrival (the broker keeps a user's events in one partition, so that is the producer's order).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import Keys
from aif_stream.kernels.slots import SlotTable

# Enough to find favourite categories in; the neighbour search uses the newest few. 100,000 users: 13 MB.
KEPT: Final = 32
_FIRST_CAPACITY: Final = 256


class RecentItems:
    """One thread writes, others read. ``R`` = KEPT entries per user, positions of the catalogue, -1 = none."""

    def __init__(self) -> None:
        self._table = SlotTable(_FIRST_CAPACITY)
        self._rings = np.full((_FIRST_CAPACITY, KEPT), -1, np.int32)
        self._written = np.zeros(_FIRST_CAPACITY, np.int64)
        self.users = 0

    def append(self, user_keys: Keys, positions: NDArray[np.int32]) -> None:
        """Entry i: user (B) touched the item at positions (B); later entries are newer."""
        if not user_keys.size:
            return
        rows = self._rows(user_keys)
        order = np.argsort(rows, kind="stable")
        rows, positions = rows[order], positions[order]
        starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        counts = np.diff(np.append(starts, rows.size))
        rank = np.arange(rows.size) - np.repeat(starts, counts)
        # Of more than R entries of one user only the last R may be written: assignment order is not promised.
        kept = rank >= np.repeat(counts - KEPT, counts)
        cells = (self._written[rows] + rank) % KEPT
        self._rings[rows[kept], cells[kept]] = positions[kept]
        self._written[rows[starts]] += counts

    def of(self, user_key: int) -> NDArray[np.int32]:
        """Distinct positions, newest first; empty for an unknown user."""
        row = int(self._table.lookup(np.array([user_key], np.uint64))[0])
        if row < 0:
            return np.empty(0, np.int32)
        written = int(self._written[row])
        cells = (written - 1 - np.arange(min(written, KEPT))) % KEPT
        newest = self._rings[row, cells]
        newest = newest[newest >= 0]
        _, first = np.unique(newest, return_index=True)
        distinct: NDArray[np.int32] = newest[np.sort(first)]
        return distinct

    def _rows(self, user_keys: Keys) -> NDArray[np.int32]:
        rows = self._table.lookup(user_keys)
        if (rows < 0).any():
            new = np.unique(user_keys[rows < 0])
            self._reserve(self.users + new.size)
            self._table.assign(new, np.arange(self.users, self.users + new.size, dtype=np.int32))
            self.users += int(new.size)
            rows = self._table.lookup(user_keys)
        return rows

    def _reserve(self, count: int) -> None:
        if count <= self._written.size:
            return
        capacity = max(count, self._written.size * 2)
        rings = np.full((capacity, KEPT), -1, np.int32)
        rings[: self.users] = self._rings[: self.users]
        written = np.zeros(capacity, np.int64)
        written[: self.users] = self._written[: self.users]
        self._rings, self._written = rings, written
