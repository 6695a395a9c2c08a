"""One poll's item updates as columns: read in C where possible, else one by one; the newest of each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.bus.consumer import Record
from aif_stream.bus.events import NEARLINE_SOURCE, ItemEvent, item_from_record, refuse_oversize
from aif_stream.domain.events import ItemUpserted, decode_item
from aif_stream.domain.ids import Keys, direct_id, is_hashed
from aif_stream.domain.order import Order
from aif_stream.index.writes import Writes, name_of
from aif_stream.kernels.items import COLUMN, ItemColumns, read_items
from aif_stream.kernels.native import Level
from aif_stream.nearline.work import Poison, decode_each

Places = NDArray[np.int64]
_WORKER: Final = NEARLINE_SOURCE.encode()


@dataclass(frozen=True, slots=True)
class ItemRecords:
    """n records, each with one state of an item. Order, key and append time of all are columns (n); ``events`` has
    those that were decoded one by one, by place; where the others' features stand, ``columns`` says at ``sources`` (n).

    ``own``: the records' offsets. ``again``: winners that the worker published again; they were visible before.
    """

    records: Sequence[Record]
    keys: Keys
    times: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    own: NDArray[np.uint64]
    appended_ms: NDArray[np.int64]
    again: NDArray[np.bool_]
    events: dict[int, ItemEvent]
    columns: ItemColumns | None
    sources: Places

    def __len__(self) -> int:
        return len(self.records)

    @property
    def began_ms(self) -> NDArray[np.int64]:
        """When each update's way began, i64 (n): ``domain.freshness.began_ms``."""
        return np.minimum(self.times.astype(np.int64), self.appended_ms)

    def payload(self, at: int) -> bytes | None:
        """The value's bytes as they came; None for a removal."""
        if at in self.events:
            return self.events[at].payload
        assert self.columns is not None  # noqa: S101 - what was not decoded was read
        value: bytes = self.columns.values[self.sources[at]]
        return value

    def id_text(self, at: int) -> str:
        return self.events[at].id_text if at in self.events else direct_id(int(self.keys[at]))

    def item(self, at: int) -> ItemUpserted:
        """The item of an upsert."""
        event = self.events.get(at)
        return event.item if event is not None and event.item is not None else decode_item(self.payload(at) or b"")


def read_records(
    records: Sequence[Record], max_ahead_ms: int, limit_bytes: int, *, level: Level | None = None
) -> tuple[ItemRecords, list[Poison]]:
    """Records of ``aif.item-updates`` and what of them is none. ``limit_bytes``: of key and value together."""
    columns = read_items(records, _WORKER, max_ahead_ms, limit_bytes, level=level)
    if columns is not None and columns.read.all():
        found = columns.columns
        nobody = np.zeros(len(records), np.bool_)
        return _of(records, found, found["offset"], nobody, {}, columns, np.arange(len(records))), []

    def careful(record: Record) -> ItemEvent:
        refuse_oversize(record, limit_bytes)
        return item_from_record(record, max_ahead_ms)

    read = np.zeros(len(records), np.bool_) if columns is None else columns.read
    rest = np.flatnonzero(~read).tolist()
    taken, poison = decode_each([records[i] for i in rest], careful)
    decoded = {id(record): event for record, event in taken}
    by_place = {i: event for i in rest if (event := decoded.get(id(records[i]))) is not None}
    kept = np.array([i for i, seen in enumerate(read.tolist()) if seen or i in by_place], dtype=np.int64)
    found = np.zeros(len(records), COLUMN) if columns is None else columns.columns.copy()
    own, again = found["offset"].copy(), np.zeros(len(records), np.bool_)
    for i, event in by_place.items():
        record = records[i]
        found["key"][i], found["appended_ms"][i] = event.key, record.timestamp
        found["event_time_ms"][i], found["offset"][i] = event.order
        own[i], again[i] = record.offset, event.again
    events = {at: by_place[i] for at, i in enumerate(kept.tolist()) if i in by_place}
    left = [records[i] for i in kept.tolist()]
    return _of(left, found[kept], own[kept], again[kept], events, columns, kept), poison


def _of(
    records: Sequence[Record],
    found: NDArray[np.void],
    own: NDArray[np.uint64],
    again: NDArray[np.bool_],
    events: dict[int, ItemEvent],
    columns: ItemColumns | None,
    sources: Places,
) -> ItemRecords:
    key, times, offsets, appended_ms = (
        np.ascontiguousarray(found[name]) for name in ("key", "event_time_ms", "offset", "appended_ms")
    )
    own = np.ascontiguousarray(own)
    return ItemRecords(records, key, times, offsets, own, appended_ms, again, events, columns, sources)


@dataclass(frozen=True, slots=True)
class NewestRecords:
    """The m ids of a batch (n records): ``chosen`` (m) is the place of the newest event of each, ``last`` (m) that of
    its last record, the one that compaction would keep; ``owner`` (n) says which id a record belongs to; ``several``
    (m): it came more than once."""

    chosen: Places
    last: Places
    owner: Places
    several: NDArray[np.bool_]


def newest_records(batch: ItemRecords) -> NewestRecords:
    """One entry per id (not per key: the store tells two ids of one key apart), the newest by order; of equal ones the
    later record. Records of one id come from one partition, so the batch has them in the order of their offsets."""
    count = len(batch)
    order = np.argsort(batch.keys, kind="stable")
    same = batch.keys[order[1:]] == batch.keys[order[:-1]]
    if not same.any():
        every = np.arange(count)
        return NewestRecords(every, every, every, np.zeros(count, np.bool_))
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    ends = np.append(starts[1:], count)
    owner = np.empty(count, np.int64)
    chosen: list[int] = []
    last: list[int] = []
    several: list[bool] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for places in _by_id(batch, order[start:end].tolist()):
            owner[places] = len(chosen)
            newest = places[0]
            for place in places[1:]:
                if _order(batch, place) >= _order(batch, newest):
                    newest = place
            chosen.append(newest)
            last.append(places[-1])
            several.append(len(places) > 1)
    return NewestRecords(np.array(chosen), np.array(last), owner, np.array(several))


def _order(batch: ItemRecords, at: int) -> Order:
    return Order(int(batch.times[at]), int(batch.offsets[at]))


def _by_id(batch: ItemRecords, places: list[int]) -> list[list[int]]:
    if len(places) == 1 or not is_hashed(int(batch.keys[places[0]])):
        return [places]
    groups: dict[str, list[int]] = {}
    for place in places:
        groups.setdefault(batch.id_text(place), []).append(place)
    return list(groups.values())


def writes_of(batch: ItemRecords, chosen: Places) -> Writes:
    """Events at the places ``chosen`` (m), for the store."""
    places: list[int] = chosen.tolist()
    names: list[bytes] | None = None
    payloads: list[bytes | None]
    if not batch.events and batch.columns is not None:
        values = batch.columns.values
        payloads = [values[i] for i in batch.sources[chosen].tolist()]
    else:
        payloads = [batch.payload(i) for i in places]
        kept = [name_of(int(batch.keys[i]), batch.events[i].id_text) if i in batch.events else b"" for i in places]
        names = kept if any(kept) else None
    return Writes(batch.keys[chosen], batch.times[chosen], batch.offsets[chosen], payloads, names)
