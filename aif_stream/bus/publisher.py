"""The public way to publish events: typed, checked before they leave, acknowledged by all replicas.

::

    async with EventPublisher(settings, source="shop") as publisher:
        ack = await publisher.item("42", category="books", attributes={"price": 12.5})
        await ack                                    # Kafka has it
        summary = await publisher.publish_lines("items", lines)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from aif_stream.bus.events import event_headers
from aif_stream.bus.line_run import EventIds, LineRun, Lines, OnProgress, OnReject, PublishSummary, cancel
from aif_stream.bus.lines import KINDS, LineKind, parse_line
from aif_stream.bus.producer import HEADER_ROOM_BYTES, Ack, Producer
from aif_stream.bus.topics import ITEM_UPDATES, contracts_dir, load_topics
from aif_stream.clock import now_ms
from aif_stream.domain.events import Attribute, BehaviorKind, EventType, ItemUpserted, check_event_time
from aif_stream.domain.ids import canonical_id
from aif_stream.errors import BadInput
from aif_stream.settings import Settings

__all__ = ["EventPublisher", "PublishSummary"]


class EventPublisher:
    """Publishes events of the three source topics. ``source`` becomes ``ce_source``.

    Delivery is at-least-once: a caller that lost an acknowledgement publishes again, and the index does not mind.
    """

    def __init__(self, settings: Settings, source: str = "aif/publisher") -> None:
        self._settings = settings
        self._source = source
        self._producer = Producer(
            settings, "aif-publisher", linger_ms=5, topics=[kind.topic for kind in KINDS.values()]
        )
        specs = load_topics(contracts_dir(settings))
        self._limits = {k.topic: specs[k.topic].max_record_bytes - HEADER_ROOM_BYTES for k in KINDS.values()}
        self._ids = EventIds()

    async def __aenter__(self) -> Self:
        """Raises ``BusUnavailable``, and ``TopicError`` when a source topic is missing."""
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.__aexit__(kind, error, trace)

    def line_limit_bytes(self, kind: LineKind) -> int:
        """The longest line that is accepted."""
        return self._limits[KINDS[kind].topic]

    async def item(
        self,
        item_id: str | int,
        *,
        category: str | int,
        attributes: Mapping[str, Attribute] | None = None,
        content_vector: Sequence[float] | None = None,
        event_time_ms: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Ack:
        """Publish the full state of one item; returns when it is queued, the ack says when Kafka has it.

        Raises ``BadInput`` naming the field, ``PublishError`` when Kafka stays away.
        """
        data: dict[str, Any] = {**(extra or {}), "item_id": item_id, "category": category}
        data["attributes"] = dict(attributes or {})
        data["content_vector"] = None if content_vector is None else [float(x) for x in content_vector]
        return await self._one("items", data, event_time_ms)

    async def user(
        self, user_id: str | int, *, attributes: Mapping[str, Attribute], event_time_ms: int | None = None
    ) -> Ack:
        """Publish the full profile of one user; as ``item``."""
        return await self._one("users", {"user_id": user_id, "attributes": dict(attributes)}, event_time_ms)

    async def behavior(
        self, user_id: str | int, item_id: str | int, kind: BehaviorKind | str, *, event_time_ms: int | None = None
    ) -> Ack:
        """Publish one behavior; as ``item``."""
        data = {"user_id": user_id, "item_id": item_id, "kind": str(kind)}
        return await self._one("behaviors", data, event_time_ms)

    async def remove(self, item_id: str | int, *, event_time_ms: int | None = None) -> Ack:
        """Publish the removal of one item (a tombstone); as ``item``."""
        key = canonical_id(item_id, "item_id").encode()
        time_ms = self._time(event_time_ms)
        return await self._producer.send(ITEM_UPDATES, key, None, self._headers(EventType.ITEM_REMOVED, time_ms))

    async def items(self, items: Iterable[ItemUpserted]) -> PublishSummary:
        """Publish many items; ``rejects`` count them from 1. Returns when Kafka has acknowledged all."""
        return await self.publish_lines("items", (msgspec.json.encode(item) for item in items))

    async def publish_lines(
        self,
        kind: LineKind,
        lines: Lines,
        *,
        on_progress: OnProgress | None = None,
        on_reject: OnReject | None = None,
        stop: asyncio.Event | None = None,
    ) -> PublishSummary:
        """Publish JSONL lines (contract.md, "Lines that go in"); blank ones are skipped but counted in line numbers.

        A wrong line is rejected and the others go on. Returns when all are acknowledged; earlier, with ``interrupted``
        or ``problem`` set, when ``stop`` is set or Kafka does not take them. Waits while 512 KiB per partition are on
        their way. Raises ``BusUnavailable`` only before the first line.
        """
        what = KINDS[kind]
        run = LineRun(
            self._producer,
            what,
            source=self._source,
            ids=self._ids,
            limit_bytes=self._limits[what.topic],
            max_ahead_ms=self._settings.max_ahead_ms,
            on_progress=on_progress,
            on_reject=on_reject,
        )
        await run.writer.open()
        feeder = asyncio.create_task(run.feed(lines), name="publish-lines")
        stopping = asyncio.create_task((stop or asyncio.Event()).wait(), name="publish-stop")
        try:
            await asyncio.wait({feeder, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not feeder.done():
                run.summary.interrupted = True
            await cancel(feeder)
            if not feeder.cancelled():
                feeder.result()  # raises what is no failure of publishing: the caller's iterator, say
            await run.finish(stopping)
        finally:
            await cancel(feeder)
            await cancel(stopping)
        if not run.summary.complete:
            self._producer.close_deadline_s = 1.0  # it has been waited for already
        return run.summary

    async def _one(self, kind: LineKind, data: dict[str, Any], event_time_ms: int | None) -> Ack:
        _refuse_infinite(data)
        what = KINDS[kind]
        line = parse_line(what, msgspec.json.encode(data), self._limits[what.topic])
        time_ms = self._time(event_time_ms)
        return await self._producer.send(what.topic, line.key, line.value, self._headers(what.type, time_ms))

    def _time(self, event_time_ms: int | None) -> int:
        now = now_ms()
        if event_time_ms is None:
            return now
        if event_time_ms < 0:
            raise BadInput("is before 1970", field="event_time_ms")
        check_event_time(event_time_ms, now, self._settings.max_ahead_ms)
        return event_time_ms

    def _headers(self, kind: EventType, time_ms: int) -> list[tuple[str, bytes]]:
        return event_headers(kind, self._ids.next(), self._source, time_ms)


def _refuse_infinite(data: Mapping[str, Any]) -> None:
    """JSON has no NaN and encoders write null for it: refuse it by its field instead."""
    for field_name, value in data.items():
        numbers = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise BadInput("numbers must be finite", field=field_name)
