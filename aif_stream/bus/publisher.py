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
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from aif_stream.bus.bulk import BulkWriter
from aif_stream.bus.events import event_headers
from aif_stream.bus.lines import KINDS, Kind, LineKind, Reject, parse_line
from aif_stream.bus.producer import Ack, Producer
from aif_stream.bus.topics import ITEM_UPDATES, contracts_dir, load_topics
from aif_stream.clock import monotonic_s, now_ms, to_rfc3339
from aif_stream.domain.events import Attribute, BehaviorKind, EventType, ItemUpserted, check_event_time
from aif_stream.domain.ids import canonical_id
from aif_stream.errors import AifError, BadInput, PublishError
from aif_stream.settings import Settings

# Room for the key (an id of at most 256 characters of 4 bytes) and the CloudEvents headers in a record of full size.
_HEADER_ROOM_BYTES: Final = 2_048
_CHUNK_LINES: Final = 500
# A source that is quiet for this long (a pipe, a terminal) has its lines sent, batch full or not.
_QUIET_S: Final = 0.02
# Without any acknowledgement for this long, publishing ends with a problem: four times a leader election.
_STALLED_S: Final = 60.0
# After Ctrl-C, what has been sent may still be acknowledged for this long.
_LAST_ACKS_S: Final = 5.0
# More rejects are counted, and handed to ``on_reject``, but not kept in the summary.
_KEPT_REJECTS: Final = 10_000


@dataclass(slots=True)
class PublishSummary:
    """What became of the lines. ``sent`` left for Kafka, ``acknowledged`` are there, ``rejected`` never left.

    ``problem`` is empty unless publishing ended early; records sent but not acknowledged may or may not be in Kafka.
    """

    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    rejects: list[Reject] = field(default_factory=list)
    interrupted: bool = False
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Every line that was not rejected is in Kafka, and all lines were read."""
        return not self.problem and not self.interrupted and self.sent == self.acknowledged


OnProgress = Callable[[PublishSummary], None]
OnReject = Callable[[Reject, bytes], None]
_Chunks = AsyncIterable[Sequence[bytes]]
Lines = Iterable[bytes] | _Chunks


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
        self._limits = {k.topic: specs[k.topic].max_record_bytes - _HEADER_ROOM_BYTES for k in KINDS.values()}
        # ce_id is unique per source: a random run and a counter.
        self._run = uuid.uuid4().hex[:16]
        self._count = 0

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
        run = _Run(self, KINDS[kind], on_progress, on_reject)
        await run.writer.open()
        feeder = asyncio.create_task(run.feed(lines), name="publish-lines")
        stopping = asyncio.create_task((stop or asyncio.Event()).wait(), name="publish-stop")
        try:
            await asyncio.wait({feeder, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not feeder.done():
                run.summary.interrupted = True
            await _cancel(feeder)
            if not feeder.cancelled():
                feeder.result()  # raises what is no failure of publishing: the caller's iterator, say
            await run.finish(stopping)
        finally:
            await _cancel(feeder)
            await _cancel(stopping)
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
        self._count += 1
        return event_headers(kind, f"{self._run}-{self._count}", self._source, time_ms)


class _Run:
    """One call of ``publish_lines``."""

    def __init__(
        self, publisher: EventPublisher, kind: Kind, on_progress: OnProgress | None, on_reject: OnReject | None
    ) -> None:
        self.summary = PublishSummary()
        self.writer = BulkWriter(publisher._producer, kind.topic, self._on_batch)
        self._publisher = publisher
        self._kind = kind
        self._limit = publisher._limits[kind.topic]
        self._max_ahead_ms = publisher._settings.max_ahead_ms
        self._on_progress = on_progress
        self._on_reject = on_reject
        self._line = 0
        self._last_ack_s = monotonic_s()
        self._failed = asyncio.Event()
        first, *rest = event_headers(kind.type, "", publisher._source, 0)
        self._fixed = [first, *(pair for pair in rest if pair[0] not in ("ce_id", "ce_time"))]

    async def feed(self, lines: Lines) -> None:
        """Read, check and append every line; pushes what is left at the end."""
        try:
            chunks = lines if isinstance(lines, AsyncIterable) else _chunks(lines)
            async with aclosing(_quiet(chunks, self.writer.push)) as quiet:
                async for chunk in quiet:
                    await self._append(chunk)
                    self._tell()
                    if self._failed.is_set():
                        return
                    await asyncio.sleep(0)  # appends rarely wait: let the sender have its turn
            await self.writer.push()
        except (AifError, OSError) as error:
            self._fail(str(error))

    async def finish(self, stopping: asyncio.Task[bool]) -> None:
        """Wait for acknowledgements: all of them, or for a moment when we were told to stop."""
        deadline_s = monotonic_s() + _LAST_ACKS_S
        if self.summary.interrupted:
            try:
                async with asyncio.timeout(_LAST_ACKS_S):
                    await self.writer.push()
            except (TimeoutError, AifError):
                pass  # what was not pushed was not sent: the summary stays true
        while not await self.writer.drain(0.1):
            self._tell()
            if stopping.done() and not self.summary.interrupted:
                self.summary.interrupted = True
                deadline_s = monotonic_s() + _LAST_ACKS_S
            if self.summary.interrupted and monotonic_s() > deadline_s:
                break
            if monotonic_s() - self._last_ack_s > _STALLED_S:
                self._fail(f"Kafka acknowledged nothing for {_STALLED_S:g} s")
                break
        self._tell()

    async def _append(self, chunk: Sequence[bytes]) -> None:
        kind, limit, append, fixed = self._kind, self._limit, self.writer.append, self._fixed
        run, now = self._publisher._run, now_ms()
        latest, now_text = now + self._max_ahead_ms, to_rfc3339(now).encode()
        for raw in chunk:
            self._line += 1
            if not raw or raw.isspace():
                continue
            try:
                key, value, time_ms = parse_line(kind, raw, limit)
                if time_ms is not None and time_ms > latest:
                    check_event_time(time_ms, now, self._max_ahead_ms)
            except BadInput as error:
                self._reject(error, raw)
                continue
            self._publisher._count += 1
            text = now_text if time_ms is None else to_rfc3339(time_ms).encode()
            number = b"%s-%d" % (run.encode(), self._publisher._count)
            await append(key, value, [*fixed, ("ce_id", number), ("ce_time", text)])

    def _reject(self, error: BadInput, raw: bytes) -> None:
        reject = Reject(self._line, str(error))
        self.summary.rejected += 1
        if len(self.summary.rejects) < _KEPT_REJECTS:
            self.summary.rejects.append(reject)
        if self._on_reject is not None:
            self._on_reject(reject, raw)

    def _on_batch(self, records: int, problem: PublishError | None) -> None:
        if problem is None:
            self.summary.acknowledged += records
            self._last_ack_s = monotonic_s()
        else:
            self._fail(str(problem))

    def _fail(self, problem: str) -> None:
        self.summary.problem = self.summary.problem or problem
        self._failed.set()

    def _tell(self) -> None:
        self.summary.sent = self.writer.submitted
        if self._on_progress is not None:
            self._on_progress(self.summary)


async def _chunks(lines: Iterable[bytes]) -> AsyncIterator[list[bytes]]:
    iterator = iter(lines)
    while chunk := list(islice(iterator, _CHUNK_LINES)):
        yield chunk


async def _quiet(
    chunks: AsyncIterable[Sequence[bytes]], on_quiet: Callable[[], Any]
) -> AsyncGenerator[Sequence[bytes], None]:
    """The chunks; awaits ``on_quiet()`` once whenever the next one lets us wait."""
    iterator = aiter(chunks)
    while True:
        coming = asyncio.ensure_future(anext(iterator, None))
        try:
            await asyncio.wait({coming}, timeout=_QUIET_S)
            if not coming.done():
                await on_quiet()
            chunk = await coming
        finally:
            await _cancel(coming)
        if chunk is None:
            return
        yield chunk


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End a task of ours and wait for its end; its own failure is its owner's to read."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _refuse_infinite(data: Mapping[str, Any]) -> None:
    """JSON has no NaN and encoders write null for it: refuse it by its field instead."""
    for field_name, value in data.items():
        numbers = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise BadInput("numbers must be finite", field=field_name)
