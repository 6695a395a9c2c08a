"""The items lane: newest event per item → one item-tower call per version → rows and features → change log."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aif_stream import clock
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import NEARLINE_SOURCE, winner_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.domain.events import EventType
from aif_stream.domain.order import Order
from aif_stream.domain.row import RowLayout, Rows, empty_rows
from aif_stream.errors import VersionMissing
from aif_stream.index import packing
from aif_stream.index.changelog import LIVE, SUPERSEDED_ENTRY, Stamps
from aif_stream.index.item_codec import WriteStatus
from aif_stream.index.store import N2OStore
from aif_stream.index.writes import Outcome, Writes
from aif_stream.model.rows import ItemRows, at_places
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.changes import AGAIN, ChangeLog
from aif_stream.nearline.freshness import RECENT_ITEMS, seen_in_redis
from aif_stream.nearline.item_records import ItemRecords, NewestRecords, Places, newest_records, read_records, writes_of
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.nearline.work import Poison, Written
from aif_stream.telemetry import EVENTS_SKIPPED, ROWS_INVALID, ROWS_REJECTED_OLDER, ROWS_WRITTEN, kv

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """A coalesced micro-batch (m items) and its rows by version, each Rows (m)."""

    records: ItemRecords
    newest: NewestRecords
    writes: Writes
    rows: dict[str, Rows]
    layouts: dict[str, RowLayout]


class ItemsWork:
    """See work.Work. Effects: rows and features in Redis, ``aif.n2o-rows``, winners published again."""

    name = "items"

    def __init__(self, store: N2OStore, versions: LoadedVersions, producer: Producer, max_ahead_ms: int) -> None:
        self._store = store
        self._versions = versions
        self._producer = producer
        self._changes = ChangeLog(producer)
        self._max_ahead_ms = max_ahead_ms
        self._limit_bytes = producer.republishable_bytes(ITEM_UPDATES)

    def decode(self, records: Sequence[Record]) -> tuple[ItemRecords, list[Poison]]:
        return read_records(records, self._max_ahead_ms, self._limit_bytes)

    async def prepare(self, batch: ItemRecords) -> ItemBatch:
        """Coalesce, then the item side of every loaded version.

        On the loop, not in a thread: 2 ms per version and 512 items, in which Redis works on the batch before. A
        thread would share the interpreter's lock with the loop, and each of the loop's socket calls would then wait
        for it, up to 5 ms (measured: half the throughput on one core).
        """
        newest = newest_records(batch)
        if len(newest.chosen) < len(batch):
            EVENTS_SKIPPED.labels(self.name, "superseded").inc(len(batch) - len(newest.chosen))
        prepared = ItemBatch(batch, newest, writes_of(batch, newest.chosen), {}, {})
        models = self._versions.models
        if models and len(batch):
            _compute(prepared, models)
        return prepared

    async def write(self, prepared: ItemBatch) -> Written:
        if not len(prepared.writes):
            return Written()
        outcome = await self._write_live(prepared)
        now_ms = clock.now_ms()
        acks: list[Awaitable[object]] = []
        self._count(prepared, outcome, now_ms)
        acks += await self._log_changes(prepared, np.flatnonzero(outcome.status <= WriteStatus.EQUAL), now_ms)
        acks += await self._publish_winners(prepared, outcome)
        collided = np.flatnonzero(outcome.status == WriteStatus.COLLISION).tolist()
        return Written(acks, [_collision(prepared, i, outcome.one(i).stored) for i in collided])

    async def restore(self) -> None:
        await self._versions.restore()

    async def _write_live(self, prepared: ItemBatch) -> Outcome:
        """One write; versions that Redis lists and this batch lacks are loaded, computed and written as well.

        Raises ``VersionMissing`` when one cannot be loaded now: the lane waits and tries again.
        """
        try:
            return await self._store.write_columns(prepared.writes, prepared.rows)
        except VersionMissing as error:
            if not await self._versions.bring(error.versions):
                raise
            models = self._versions.models
            missing = {name: models[name] for name in models if name not in prepared.rows}
            log.info(kv("batch.completed", lane=self.name, versions=",".join(missing)))
            _compute(prepared, missing)
            return await self._store.write_columns(prepared.writes, prepared.rows)

    def _count(self, prepared: ItemBatch, outcome: Outcome, now_ms: int) -> None:
        """A coalesced batch's other events of an id matter from the moment at which the newest does."""
        status, records = outcome.status, prepared.records
        ROWS_WRITTEN.labels(self.name).inc(int((status <= WriteStatus.EQUAL).sum()) * len(prepared.rows))
        older = int((status == WriteStatus.OLDER).sum())
        if older:
            ROWS_REJECTED_OLDER.inc(older)
        visible = (status == WriteStatus.WRITTEN)[prepared.newest.owner] & ~records.again
        seen_in_redis(records.began_ms[visible], now_ms, RECENT_ITEMS)

    async def _log_changes(self, prepared: ItemBatch, done: Places, now_ms: int) -> list[Awaitable[object]]:
        """Rows now in Redis → change log. An equal order too: the worker that wrote it may have died before this."""
        records, chosen = prepared.records, prepared.newest.chosen
        again = records.again[chosen[done]]
        acks: list[Awaitable[object]] = []
        for lane, places in ((LIVE, done[~again]), (AGAIN, done[again])):
            if not len(places):
                continue
            stamps = Stamps(int(records.appended_ms[chosen[places]].min()), now_ms)
            beside = _superseded(prepared, places)
            for version, rows in prepared.rows.items():
                some, layout = at_places(rows, places), prepared.layouts[version]
                keys = at_places(prepared.writes.keys, places)
                acks += await self._changes.send(version, layout, keys, some, stamps, lane=lane, superseded=beside)
        return acks

    async def _publish_winners(self, prepared: ItemBatch, outcome: Outcome) -> list[Awaitable[object]]:
        """A late event is now its item's last record, the one that compaction keeps: publish the winner after it.

        It comes back with the order that it has, is equal to what is stored, and the matter ends.
        """
        records, newest = prepared.records, prepared.newest
        late = _came_after(prepared, outcome).tolist()
        if not late:
            return []
        stored = await self._store.read_items([int(prepared.writes.keys[i]) for i in late])
        acks: list[Awaitable[object]] = []
        for i, item in zip(late, stored, strict=True):
            # Another worker may have moved on since; then its event is the last record, or it publishes the winner.
            if item is None or item.order.offset > int(records.own[newest.last[i]]):
                continue
            kind = EventType.ITEM_REMOVED if item.removed else EventType.ITEM_UPSERTED
            acks.append(
                await self._producer.send(
                    ITEM_UPDATES,
                    item.id_text.encode("utf-8", "surrogatepass"),
                    None if item.removed else item.payload,
                    winner_headers(kind, str(uuid.uuid4()), NEARLINE_SOURCE, item.order),
                    partition=records.records[newest.chosen[i]].partition,
                )
            )
        log.info(kv("winners.published", lane=self.name, items=len(acks)))
        return acks


def _superseded(prepared: ItemBatch, places: Places) -> NDArray[np.void]:
    """SUPERSEDED_ENTRY (k): the other updates of the items at ``places``, which become visible with the newest."""
    records, newest = prepared.records, prepared.newest
    if not newest.several.any():
        return np.empty(0, SUPERSEDED_ENTRY)
    row_of = np.full(len(newest.chosen), -1)
    row_of[places] = np.arange(len(places))
    rows = row_of[newest.owner]
    others = np.flatnonzero((rows >= 0) & (newest.chosen[newest.owner] != np.arange(len(records))) & ~records.again)
    found = np.empty(len(others), SUPERSEDED_ENTRY)
    found["row"], found["began_ms"] = rows[others], records.began_ms[others]
    return found


def _came_after(prepared: ItemBatch, outcome: Outcome) -> Places:
    """Ids whose last record is an older event behind the winner's own: compaction would keep the wrong one."""
    records, newest, status = prepared.records, prepared.newest, outcome.status
    # One event, written: it is the winner and the last.
    asked = ((status != WriteStatus.WRITTEN) | newest.several) & (status != WriteStatus.COLLISION)
    if not asked.any():
        return np.zeros(0, np.int64)
    times, offsets = records.times[newest.last], records.offsets[newest.last]
    older = (times < outcome.times) | ((times == outcome.times) & (offsets < outcome.offsets))
    return np.flatnonzero(asked & older & (records.own[newest.last] > outcome.offsets))


def _compute(prepared: ItemBatch, models: Mapping[str, ModelVersion]) -> None:
    """Rows of the whole batch under each model, put into ``prepared.rows``; removals get their order alone."""
    computed_ms = clock.now_ms()
    for name, model in models.items():
        rows, problems = _rows(prepared, model, computed_ms)
        prepared.rows[name], prepared.layouts[name] = rows, model.layout
        if problems:
            ROWS_INVALID.labels(name).inc(problems.total())
            log.warning(kv("rows.invalid", version=name, **dict(problems)))


def _rows(prepared: ItemBatch, model: ModelVersion, computed_ms: int) -> ItemRows:
    """From columns where the record was read so and the version can, else from the decoded item."""
    records, chosen, writes = prepared.records, prepared.newest.chosen, prepared.writes
    plain = np.array([i not in records.events for i in chosen.tolist()]) if records.events else None
    read = np.arange(len(chosen)) if plain is None else np.flatnonzero(plain)
    problems: Counter[str] = Counter()
    rows = empty_rows(model.layout, len(chosen))
    rows["event_time_ms"], rows["offset"], rows["computed_ms"] = writes.times, writes.offsets, computed_ms
    left = np.ones(len(chosen), dtype=np.bool_)
    left[writes.removed] = False
    if len(read) and records.columns is not None:
        sources = records.sources[chosen[read]]
        (some, problems), done = model.item_rows_of(
            records.columns, sources, writes.times[read], writes.offsets[read], computed_ms
        )
        if len(some) == len(rows):
            return ItemRows(some, problems)
        packing.bytes_of(rows)[read[done]] = packing.bytes_of(some)
        left[read[done]] = False
    at = np.flatnonzero(left)
    if len(at):
        items = [records.item(i) for i in chosen[at].tolist()]
        some, others = model.item_rows(items, writes.times[at], writes.offsets[at], computed_ms, writes.keys[at])
        packing.bytes_of(rows)[at] = packing.bytes_of(some)
        problems = problems + others
    return ItemRows(rows, problems)


def _collision(prepared: ItemBatch, i: int, stored: Order) -> Poison:
    at = int(prepared.newest.chosen[i])
    text = prepared.records.id_text(at)
    problem = f"item_id: {text:.80} has the same 64-bit key as another item, stored with order {stored}"
    return Poison(prepared.records.records[at], "collision", problem)
