"""The users lane: profiles by compare-and-set. The behaviors lane: clicks and stronger into histories."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Sequence

from aif_stream import clock
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import (
    NEARLINE_SOURCE,
    BehaviorEvent,
    UserEvent,
    behavior_from_record,
    refuse_oversize,
    user_from_record,
    winner_headers,
)
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import USER_UPDATES
from aif_stream.domain.events import EventType
from aif_stream.domain.freshness import began_ms
from aif_stream.domain.history import enters_history, entry_bytes
from aif_stream.domain.order import HEADER_BYTES, Order
from aif_stream.index.connection import Redis
from aif_stream.index.histories import HistoryStore, ProfileWrite
from aif_stream.index.item_codec import WriteStatus
from aif_stream.index.keys import profile_key
from aif_stream.nearline.freshness import published_again, seen_in_redis
from aif_stream.nearline.newest import Newest, coalesce
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.nearline.work import Poison, Taken, Written, decode_each
from aif_stream.telemetry import EVENTS_SKIPPED, kv

log = logging.getLogger(__name__)

UserBatch = Sequence[Newest[UserEvent]]


class UsersWork:
    """See work.Work. Effects: one profile per user, the newest by order; winners published again (items.py)."""

    name = "users"

    def __init__(
        self, redis: Redis, histories: HistoryStore, versions: LoadedVersions, producer: Producer, max_ahead_ms: int
    ) -> None:
        self._redis = redis
        self._histories = histories
        self._versions = versions
        self._producer = producer
        self._max_ahead_ms = max_ahead_ms
        self._limit_bytes = producer.republishable_bytes(USER_UPDATES)

    def decode(self, records: Sequence[Record]) -> tuple[list[Taken[UserEvent]], list[Poison]]:
        return decode_each(records, self._decode_one)

    def _decode_one(self, record: Record) -> UserEvent:
        refuse_oversize(record, self._limit_bytes)
        return user_from_record(record, self._max_ahead_ms)

    async def prepare(self, batch: Sequence[Taken[UserEvent]]) -> UserBatch:
        newest = coalesce(batch)
        EVENTS_SKIPPED.labels(self.name, "superseded").inc(len(batch) - len(newest))
        return newest

    async def write(self, prepared: UserBatch) -> Written:
        if not prepared:
            return Written()
        events = [held.taken.event for held in prepared]
        results = await self._histories.write_profiles([ProfileWrite(e.key, e.order, e.payload) for e in events])
        seen_in_redis(
            [
                began_ms(held.taken.event.order.event_time_ms, held.taken.record.timestamp)
                for held, result in zip(prepared, results, strict=True)
                if result.status is WriteStatus.WRITTEN and not published_again(held.taken.record)
            ],
            clock.now_ms(),
        )
        late = [held for held, result in zip(prepared, results, strict=True) if held.came_after(result.stored)]
        return Written([ack for held in late if (ack := await self._publish_winner(held)) is not None])

    async def restore(self) -> None:
        await self._versions.restore()

    async def _publish_winner(self, held: Newest[UserEvent]) -> Awaitable[object] | None:
        event = held.taken.event
        stored = await self._redis.call("GET", profile_key(event.key))
        if stored is None or Order.unpack(stored).offset > held.last.record.offset:
            return None
        log.info(kv("winners.published", lane=self.name, user=event.id_text))
        return await self._producer.send(
            USER_UPDATES,
            event.id_text.encode("utf-8", "surrogatepass"),
            stored[HEADER_BYTES:] or None,
            winner_headers(EventType.USER_UPSERTED, str(uuid.uuid4()), NEARLINE_SOURCE, Order.unpack(stored)),
            partition=held.taken.record.partition,
        )


class BehaviorsWork:
    """See work.Work. Effects: history entries, a set in Redis: order and repetition of events do not matter."""

    name = "behaviors"

    def __init__(self, histories: HistoryStore, versions: LoadedVersions, max_ahead_ms: int) -> None:
        self._histories = histories
        self._versions = versions
        self._max_ahead_ms = max_ahead_ms

    def decode(self, records: Sequence[Record]) -> tuple[list[Taken[BehaviorEvent]], list[Poison]]:
        return decode_each(records, lambda record: behavior_from_record(record, self._max_ahead_ms))

    async def prepare(self, batch: Sequence[Taken[BehaviorEvent]]) -> list[Taken[BehaviorEvent]]:
        """Exposures never enter a history."""
        kept = [taken for taken in batch if enters_history(taken.event.behavior.kind)]
        EVENTS_SKIPPED.labels(self.name, "exposure").inc(len(batch) - len(kept))
        return kept

    async def write(self, prepared: Sequence[Taken[BehaviorEvent]]) -> Written:
        if not prepared:
            return Written()
        entries: dict[int, bytes] = {}
        for _, event in prepared:
            entry = entry_bytes(event.item_key, event.behavior.kind, event.event_time_ms)
            entries[event.user_key] = entries.get(event.user_key, b"") + entry
        await self._histories.append(entries)
        began = [began_ms(event.event_time_ms, record.timestamp) for record, event in prepared]
        seen_in_redis(began, clock.now_ms())
        return Written()

    async def restore(self) -> None:
        await self._versions.restore()
