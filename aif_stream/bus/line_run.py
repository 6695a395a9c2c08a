"""One run of JSONL lines into Kafka: checked, batched, acknowledged, and summed up truthfully however it ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from aif_stream.bus.bulk import BulkWriter
from aif_stream.bus.events import event_headers
from aif_stream.bus.lines import Kind, Reject, parse_line
from aif_stream.bus.producer import Producer
from aif_stream.clock import monotonic_s, now_ms, to_rfc3339
from aif_stream.domain.events import check_event_time
from aif_stream.errors import AifError, BadInput, PublishError

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


class EventIds:
    """``ce_id``: unique per source, by a random run and a counter."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:16]
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._run}-{self._count}"


class LineRun:
    """One call of ``EventPublisher.publish_lines``: ``feed`` and then ``finish``, ``summary`` all along."""

    def __init__(
        self,
        producer: Producer,
        kind: Kind,
        *,
        source: str,
        ids: EventIds,
        limit_bytes: int,
        max_ahead_ms: int,
        on_progress: OnProgress | None,
        on_reject: OnReject | None,
    ) -> None:
        self.summary = PublishSummary()
        self.writer = BulkWriter(producer, kind.topic, self._on_batch)
        self._kind = kind
        self._ids = ids
        self._limit = limit_bytes
        self._max_ahead_ms = max_ahead_ms
        self._on_progress = on_progress
        self._on_reject = on_reject
        self._line = 0
        self._last_ack_s = monotonic_s()
        self._failed = asyncio.Event()
        first, *rest = event_headers(kind.type, "", source, 0)
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
        next_id, now = self._ids.next, now_ms()
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
            text = now_text if time_ms is None else to_rfc3339(time_ms).encode()
            await append(key, value, [*fixed, ("ce_id", next_id().encode()), ("ce_time", text)])

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
            await cancel(coming)
        if chunk is None:
            return
        yield chunk


async def cancel(task: asyncio.Future[Any]) -> None:
    """End a task of ours and wait for its end; its own failure is its owner's to read."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
