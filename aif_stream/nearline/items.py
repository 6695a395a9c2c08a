"""The items lane: newest event per item → one item-tower call per version → rows and features → change log."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aif_stream import clock
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import NEARLINE_SOURCE, ItemEvent, item_from_record, refuse_oversize, winner_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.domain.events import EventType, ItemUpserted
from aif_stream.domain.freshness import began_ms
from aif_stream.domain.order import Order
from aif_stream.domain.row import RowLayout, Rows, empty_rows
from aif_stream.errors import VersionMissing
from aif_stream.index import packing
from aif_stream.index.changelog import LIVE, SUPERSEDED_ENTRY, Stamps
from aif_stream.index.item_codec import ItemWrite, WriteResult, WriteStatus
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.changes import AGAIN, ChangeLog
from aif_stream.nearline.freshness import RECENT_ITEMS, seen_in_redis
from aif_stream.nearline.newest import Newest, coalesce
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.nearline.work import Poison, Taken, Written
from aif_stream.telemetry import EVENTS_SKIPPED, ROWS_INVALID, ROWS_REJECTED_OLDER, ROWS_WRITTEN, kv

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """A coalesced micro-batch (B items) and its rows by version, each Rows (B)."""

    newest: Sequence[Newest[ItemEvent]]
    writes: Sequence[ItemWrite]
    rows: dict[str, Rows]
    layouts: dict[str, RowLayout]
    again: frozenset[int]  # positions of winners published again


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

    def decode(self, record: Record) -> ItemEvent:
        refuse_oversize(record, self._limit_bytes)
        return item_from_record(record, self._max_ahead_ms)

    async def prepare(self, batch: Sequence[Taken[ItemEvent]]) -> ItemBatch:
        """Coalesce, then the item side of every loaded version.

        On the loop, not in a thread: 2 ms per version and 512 items, in which Redis works on the batch before. A
        thread would share the interpreter's lock with the loop, and each of the loop's socket calls would then wait
        for it, up to 5 ms (measured: half the throughput on one core).
        """
        newest = coalesce(batch)
        if len(newest) < len(batch):
            EVENTS_SKIPPED.labels(self.name, "superseded").inc(len(batch) - len(newest))
        events = [held.taken.event for held in newest]
        writes = [ItemWrite(key, text, order, payload) for key, text, order, _, payload, _ in events]
        again = frozenset(i for i, event in enumerate(events) if event.again)
        prepared = ItemBatch(newest, writes, {}, {}, again)
        models = self._versions.models
        if models and newest:
            _compute(prepared, models)
        return prepared

    async def write(self, prepared: ItemBatch) -> Written:
        if not prepared.writes:
            return Written()
        results = await self._write_live(prepared)
        now_ms = clock.now_ms()
        acks: list[Awaitable[object]] = []
        done = [i for i, result in enumerate(results) if result.status <= WriteStatus.EQUAL]
        self._count(prepared, results, done, now_ms)
        acks += await self._log_changes(prepared, done, now_ms)
        acks += await self._publish_winners(prepared, results)
        if len(done) == len(results):
            return Written(acks)
        return Written(acks, [_collision(prepared.newest[i], r) for i, r in enumerate(results) if _collided(r)])

    async def restore(self) -> None:
        await self._versions.restore()

    async def _write_live(self, prepared: ItemBatch) -> list[WriteResult]:
        """One write; versions that Redis lists and this batch lacks are loaded, computed and written as well.

        Raises ``VersionMissing`` when one cannot be loaded now: the lane waits and tries again.
        """
        try:
            return await self._store.write_live(prepared.writes, prepared.rows)
        except VersionMissing as error:
            if not await self._versions.bring(error.versions):
                raise
            models = self._versions.models
            missing = {name: models[name] for name in models if name not in prepared.rows}
            log.info(kv("batch.completed", lane=self.name, versions=",".join(missing)))
            _compute(prepared, missing)
            return await self._store.write_live(prepared.writes, prepared.rows)

    def _count(self, prepared: ItemBatch, results: Sequence[WriteResult], done: Sequence[int], now_ms: int) -> None:
        ROWS_WRITTEN.labels(self.name).inc(len(done) * len(prepared.rows))
        older = sum(result.status is WriteStatus.OLDER for result in results) if len(done) < len(results) else 0
        if older:
            ROWS_REJECTED_OLDER.inc(older)
        newest, written = prepared.newest, WriteStatus.WRITTEN
        times = [
            began_ms(event.order.event_time_ms, record.timestamp)
            for held, result in zip(newest, results, strict=True)
            if result.status is written
            for record, event in (held.taken, *held.earlier)
            if not event.again
        ]
        seen_in_redis(times, now_ms, RECENT_ITEMS)

    async def _log_changes(self, prepared: ItemBatch, done: Sequence[int], now_ms: int) -> list[Awaitable[object]]:
        """Rows now in Redis → change log. An equal order too: the worker that wrote it may have died before this."""
        again = [i for i in done if i in prepared.again]
        news = [i for i in done if i not in prepared.again] if again else done
        return [
            ack
            for lane, chosen in ((LIVE, news), (AGAIN, again))
            if chosen
            for ack in await self._log_lane(prepared, chosen, Stamps(_oldest_ms(prepared, chosen), now_ms), lane)
        ]

    async def _log_lane(
        self, prepared: ItemBatch, chosen: Sequence[int], stamps: Stamps, lane: str
    ) -> list[Awaitable[object]]:
        keys = np.fromiter((prepared.writes[i].key for i in chosen), dtype=np.uint64, count=len(chosen))
        superseded = _superseded(prepared, chosen)
        acks: list[Awaitable[object]] = []
        for version, rows in prepared.rows.items():
            part = rows if len(chosen) == len(rows) else rows[chosen]
            layout = prepared.layouts[version]
            acks += await self._changes.send(version, layout, keys, part, stamps, lane=lane, superseded=superseded)
        return acks

    async def _publish_winners(self, prepared: ItemBatch, results: Sequence[WriteResult]) -> list[Awaitable[object]]:
        """A late event is now its item's last record, the one that compaction keeps: publish the winner after it.

        It comes back with the order that it has, is equal to what is stored, and the matter ends.
        """
        written = WriteStatus.WRITTEN
        late = [
            i
            for i, result in enumerate(results)
            # One event, written: it is the winner and the last.
            if (result.status is not written or prepared.newest[i].earlier)
            and result.status is not WriteStatus.COLLISION
            and prepared.newest[i].came_after(result.stored)
        ]
        if not late:
            return []
        stored = await self._store.read_items([prepared.writes[i].key for i in late])
        acks: list[Awaitable[object]] = []
        for i, item in zip(late, stored, strict=True):
            # Another worker may have moved on since; then its event is the last record, or it publishes the winner.
            if item is None or item.order.offset > prepared.newest[i].last.record.offset:
                continue
            kind = EventType.ITEM_REMOVED if item.removed else EventType.ITEM_UPSERTED
            acks.append(
                await self._producer.send(
                    ITEM_UPDATES,
                    item.id_text.encode("utf-8", "surrogatepass"),
                    None if item.removed else item.payload,
                    winner_headers(kind, str(uuid.uuid4()), NEARLINE_SOURCE, item.order),
                    partition=prepared.newest[i].taken.record.partition,
                )
            )
        log.info(kv("winners.published", lane=self.name, items=len(acks)))
        return acks


def _compute(prepared: ItemBatch, models: Mapping[str, ModelVersion]) -> None:
    """Rows of the whole batch under each model, put into ``prepared.rows``; removals get their order alone."""
    at = [i for i, write in enumerate(prepared.writes) if write.payload is not None]
    items: list[ItemUpserted] = [e.item for held in prepared.newest if (e := held.taken.event).item is not None]
    orders = packing.orders_of(prepared.writes)
    keys = np.fromiter((write.key for write in prepared.writes), dtype=np.uint64, count=len(prepared.writes))
    computed_ms = clock.now_ms()
    for name, model in models.items():
        if len(at) == len(prepared.writes):
            rows, problems = model.item_rows(items, orders[:, 0], orders[:, 1], computed_ms, keys)
        else:
            rows = empty_rows(model.layout, len(prepared.writes))
            rows["event_time_ms"], rows["offset"], rows["computed_ms"] = orders[:, 0], orders[:, 1], computed_ms
            some, problems = model.item_rows(items, orders[at, 0], orders[at, 1], computed_ms, keys[at])
            rows[at] = some
        prepared.rows[name], prepared.layouts[name] = rows, model.layout
        if problems:
            ROWS_INVALID.labels(name).inc(problems.total())
            log.warning(kv("rows.invalid", version=name, **dict(problems)))


def _oldest_ms(prepared: ItemBatch, chosen: Sequence[int]) -> int:
    return min(prepared.newest[i].taken.record.timestamp for i in chosen)


def _superseded(prepared: ItemBatch, chosen: Sequence[int]) -> NDArray[np.void]:
    """SUPERSEDED_ENTRY (m): the other updates of the chosen items, which become visible with the newest."""
    found = [
        (place, began_ms(event.order.event_time_ms, record.timestamp))
        for place, i in enumerate(chosen)
        for record, event in prepared.newest[i].earlier
        if not event.again
    ]
    return np.array(found, SUPERSEDED_ENTRY)


def _collided(result: WriteResult) -> bool:
    return result.status is WriteStatus.COLLISION


def _collision(held: Newest[ItemEvent], result: WriteResult) -> Poison:
    event, order = held.taken.event, Order(*result.stored)
    problem = f"item_id: {event.id_text:.80} has the same 64-bit key as another item, stored with order {order}"
    return Poison(held.taken.record, "collision", problem)
