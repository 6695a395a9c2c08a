"""A serving process's copy of one version's rows: arena plus key -> slot table, kept fresh by the change log.

``load`` takes what Redis holds, ``take`` a record of ``aif.n2o-rows``; both keep the newer row, so they may overlap in
any way. Who calls them in which order, so that nothing is missed: ``online/mirror_feed.py``.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.decoding import fault_of
from aif_stream.domain.freshness import RecentLags
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import TOMBSTONE, RowLayout, Rows
from aif_stream.errors import IndexRefused
from aif_stream.index.arena import Arena, Slots
from aif_stream.index.changelog import LIVE, ChangeHead, decode_rows, decode_superseded
from aif_stream.index.store import N2OStore
from aif_stream.kernels.score import Stored
from aif_stream.kernels.slots import SlotTable
from aif_stream.telemetry import FRESHNESS_LAG, MIRROR_ROWS, observe_each

log = logging.getLogger(__name__)

# SlotTable: 27 … 53 bytes per key; the arena keeps 8 bytes of key beside each row.
_TABLE_BYTES: Final = 53
_KEY_BYTES: Final = 8
_PURGE_STEP: Final = 65_536  # slots looked at under the write lock: about 1 ms


def row_bytes(layout: RowLayout) -> int:
    """Memory that one row of a mirror takes, with its key and its place in the table."""
    return layout.dtype.itemsize + _KEY_BYTES + _TABLE_BYTES


class Mirror:
    """Rows of one version. One writer (``load``, ``take``, ``apply``); readers in any thread beside it.

    ``memory_mb`` (``mirror_memory_mb``) bounds rows, keys and table together.
    """

    def __init__(self, layout: RowLayout, version: str, *, memory_mb: int) -> None:
        self.layout = layout
        self.version = version
        self.caught_up = False
        self.watched = True  # of several mirrors in one process, only the lags of the answering one are counted
        self.recent = RecentLags()
        self._row_bytes = row_bytes(layout)
        self._arena = Arena(layout, min(memory_mb * 2**20 // self._row_bytes, np.iinfo(np.int32).max))
        self._table = SlotTable()
        self._writing = threading.Lock()

    def __len__(self) -> int:
        """Rows, tombstones too."""
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Memory of rows, keys and table."""
        return self._arena.nbytes + self._table.nbytes

    def reading(self) -> View:
        """``with mirror.reading() as view``: rows that the view names stay whole and in place until it ends."""
        return View(self._arena, self._table)

    def sample(self, count: int) -> Rows:
        """At most ``count`` rows, copied, the same ones for the same contents; tombstones left out. Walks the table."""
        with self.reading() as view:
            keys = np.sort(self._table.items()[0])
            step = max(1, keys.size // max(count, 1))
            rows, found = view.join(np.ascontiguousarray(keys[::step][:count]))
        return rows[found]

    def apply(self, keys: Keys, rows: Rows) -> NDArray[np.bool_]:
        """Keep of keys u64 (n), Rows (n) what is newer than (or as new as) what is here; bool (n): kept.

        "Newer" is (event_time_ms, offset, computed_ms), as in the write script. Raises ``IndexRefused`` when the
        memory bound is reached (nothing of the batch is applied then).
        """
        with self._writing:
            kept = _newest_per_key(keys, rows)
            slots = self._table.lookup(keys)
            known = np.flatnonzero(kept & (slots >= 0))
            kept[known] = _as_new(rows[known], *self._arena.orders(slots[known]))
            if kept.any():
                fresh = keys[kept]
                previous = self._table.assign(fresh, self._arena.put(fresh, rows[kept]))
                self._arena.retire(previous[previous >= 0])
            return kept

    def purge_tombstones(self, older_than_ms: int) -> int:
        """Forget removals computed before this (wall time), in bounded steps; how many. As the store does."""
        gone = 0
        for first in range(0, self._arena.top, _PURGE_STEP):
            with self._writing:
                flags, computed = self._arena.flags(first, first + _PURGE_STEP)
                old = np.flatnonzero((flags & TOMBSTONE != 0) & (computed < older_than_ms)) + first
                slots = old.astype(np.int32)
                keys = self._arena.keys(slots)
                live = self._table.lookup(keys) == slots  # not a retired slot
                self._table.remove(keys[live])
                self._arena.retire(slots[live])
                gone += int(live.sum())
        return gone

    async def load(self, store: N2OStore) -> None:
        """Take every row that Redis holds now. Whoever reads the log from before this call on misses nothing.

        Raises ``IndexRefused`` before loading when the rows would not fit, ``IndexUnavailable`` when Redis goes.
        """
        count = await store.count_rows(self.version)
        if count > self._arena.capacity:
            needed, allowed = (rows * self._row_bytes / 2**20 for rows in (count, self._arena.capacity))
            raise IndexRefused(
                f"the mirror of version {self.version} needs {needed:.0f} MiB for {count} rows, "
                f"AIF_MIRROR_MEMORY_MB allows {allowed:.0f}",
                mend="raise it, or set AIF_JOIN=redis",
            )
        if not len(self):
            self._table = SlotTable(count)
        for bucket in range(store.buckets.count):
            async for keys, rows in store.scan_rows(bucket, self.version, self.layout):
                self.apply(keys, rows)
        MIRROR_ROWS.labels(self.version).set(len(self))

    def take(self, head: ChangeHead, value: bytes) -> None:
        """Apply one record of the change log (another version's changes nothing).

        Raises ``BadEvent`` when it cannot be read, ``IndexRefused`` as ``apply`` does.
        """
        if head.version != self.version:
            return
        try:
            keys, rows = decode_rows(head, self.layout, value)
        except Exception as error:  # noqa: BLE001  # the edge of one record, of which nothing is applied yet
            raise fault_of(error) from None
        kept = self.apply(keys, rows)
        MIRROR_ROWS.labels(self.version).set(len(self))
        if self.caught_up and self.watched and head.lane == LIVE:
            self._observe(head, rows, kept)

    def _observe(self, head: ChangeHead, rows: Rows, kept: NDArray[np.bool_]) -> None:
        """Count the lags of what became visible now: the rows kept, and the updates that they superseded."""
        times = rows["event_time_ms"][kept].astype(np.int64)
        # Later than Redis' acknowledgement: a producer's wrong clock, which may not hide the lag.
        began = np.where(times > head.stamps.committed_ms, head.stamps.appended_ms, times)
        superseded = decode_superseded(head, len(rows))
        if superseded.size:
            began = np.concatenate((began, superseded["began_ms"][kept[superseded["row"]]].astype(np.int64)))
        lags_s = np.maximum(now_ms() - began, 0) / 1000
        self.recent.add(lags_s, monotonic_s())
        observe_each(FRESHNESS_LAG.labels("mirror"), lags_s)


class View:
    """A reader's hold on the mirror; end it soon, it keeps replaced rows' slots from being used again."""

    __slots__ = ("_arena", "_epoch", "_table")

    def __init__(self, arena: Arena, table: SlotTable) -> None:
        self._arena = arena
        self._table = table
        self._epoch = -1

    def __enter__(self) -> Self:
        self._epoch = self._arena.epochs.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arena.epochs.leave(self._epoch)

    def lookup(self, keys: Keys) -> Slots:
        """Slots i32 (B) of keys u64 (B); −1 where unknown. Valid until the view ends."""
        return self._table.lookup(keys)

    @property
    def stored(self) -> Stored:
        """Where the rows lie, for kernels that read them in place; valid until the view ends."""
        return Stored(self._table, self._arena.matrix)

    def gather(self, slots: Slots) -> Rows:
        """Rows (B) of slots (B), copied; zeros for −1."""
        return self._arena.gather(slots)

    def join(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows (B) of keys u64 (B), copied, and found bool (B). Unknown: zeros; removed: its prefix; both not found."""
        slots = self._table.lookup(keys)
        rows = self._arena.gather(slots)
        found: NDArray[np.bool_] = (slots >= 0) & (rows["flags"] & TOMBSTONE == 0)
        return rows, found


def _as_new(
    rows: Rows, times: NDArray[np.uint64], offsets: NDArray[np.uint64], computed: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Which rows (n) are newer than, or exactly as new as, the stored orders (n)."""
    later_computed = rows["computed_ms"] >= computed
    later_offset = (rows["offset"] > offsets) | ((rows["offset"] == offsets) & later_computed)
    newer: NDArray[np.bool_] = (rows["event_time_ms"] > times) | ((rows["event_time_ms"] == times) & later_offset)
    return newer


def _newest_per_key(keys: Keys, rows: Rows) -> NDArray[np.bool_]:
    """Of keys named several times only the newest row counts (the last of equally new ones): bool (n)."""
    if len(np.unique(keys)) == len(keys):
        return np.ones(len(keys), dtype=np.bool_)
    order = np.lexsort((rows["computed_ms"], rows["offset"], rows["event_time_ms"], keys))
    last = np.ones(len(keys), dtype=np.bool_)
    by_key = keys[order]
    last[:-1] = by_key[1:] != by_key[:-1]
    kept = np.zeros(len(keys), dtype=np.bool_)
    kept[order[last]] = True
    return kept
