"""The request log on Kafka: a bounded writer that no answer waits for, and a reader of a time range."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from aif_stream.bus.bulk import BulkWriter
from aif_stream.bus.consumer import Record
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import REQUESTS, contracts_dir, load_topics
from aif_stream.domain.decoding import fault_of
from aif_stream.domain.envelope import BINARY, Envelope, to_headers
from aif_stream.domain.request_log import (
    REQUEST_EVENT,
    AnsweredRequest,
    LoggedRequest,
    decode_logged,
    encode_logged,
    is_sampled,
)
from aif_stream.errors import AifError, PublishError
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, REQUESTS_DROPPED, REQUESTS_LOGGED, kv

log = logging.getLogger(__name__)

# Answers that wait to be written: 80 KB each at 10,000 candidates with large ids, so 80 MB at most.
_QUEUE: Final = 1024
# Records of so long travel in one batch per partition, and share what it costs: at 100 answers/s of 10,000 candidates
# (with zstd then) 0.05 s cost 0.22 ms of CPU per answer, 0.25 s cost 0.16. A killed server loses as much of the log.
# With half the queue full nobody waits.
_LINGER_S: Final = 1.0
_TURN: Final = 32  # records written before the answers have their turn on the loop: a third of a millisecond
# Numbers close to random in the bytes that they need: snappy passes them through at 4 µs a record of 2,000 candidates,
# where zstd takes 10 to 25 for next to nothing and lz4 (at aiokafka's level) 100. Ids as text it halves.
_COMPRESSION: Final = "snappy"
_RETRY_S: Final = 2.0
# A stop waits this long for the last batches; what Kafka has not taken then is counted as dropped.
_CLOSE_S: Final = 3.0
# ce_* headers, key and lengths of a record, counted generously (a user id has at most 1 KB).
_RECORD_ROOM_BYTES: Final = 4096
# Append time is never before the arrival of the request, and at most this much after it (queue, retries of a batch).
_LATE_MS: Final = 300_000


class _Record(NamedTuple):
    user_id: str
    request_id: str
    received_ms: int
    value: bytes


class RequestLogWriter:
    """``async with RequestLogWriter(settings) as requests: requests.offer(answered)``.

    ``offer`` never waits and never fails: a full queue, Kafka away or a refusal is counted in
    ``aif_requests_dropped_total{reason}``. Entering does not wait for Kafka either.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rate = settings.request_log_rate
        self._redacted = frozenset(part.strip() for part in settings.request_log_redact.split(",") if part.strip())
        self._limit = load_topics(contracts_dir(settings))[REQUESTS].max_record_bytes - _RECORD_ROOM_BYTES
        self._queue: deque[_Record] = deque()
        self._pending = 0  # handed to the producer, neither acknowledged nor refused
        self._arrived = asyncio.Event()
        self._many = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._rate > 0:
            self._task = asyncio.create_task(self._run(), name="request-log")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._closing.set()
        self._arrived.set()
        self._many.set()
        await asyncio.wait([task], timeout=_CLOSE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._drop("stopped", len(self._queue) + self._pending)

    def wants(self, request_id: str) -> bool:
        """Whether a request belongs to the sample."""
        return self._task is not None and is_sampled(request_id, self._rate)

    def offer(self, done: AnsweredRequest) -> None:
        """Log an answer that ``wants`` has chosen.

        What waits is a few objects. Request and answer themselves are thousands (a list of candidates, the items); kept
        for a second they leave the processor's caches, so that letting go of them costs 40 µs, and the next requests
        find no warm memory to be put into.
        """
        if self._task is None or len(self._queue) >= _QUEUE:
            self._drop("stopped" if self._task is None else "full", 1)
            return
        try:
            value = encode_logged(done, self._redacted, self._limit)
            self._queue.append(_Record(done.request.user, done.answer.request_id, done.received_ms, value))
        except Exception:
            log.exception(kv("request_log.failed", request=done.answer.request_id))
            self._drop("failed", 1)
            return
        self._arrived.set()
        if len(self._queue) >= _QUEUE // 2:
            self._many.set()

    async def _run(self) -> None:
        reachable = True
        while self._queue or not self._closing.is_set():
            try:
                async with Producer(
                    self._settings, "aif-request-log", topics=[REQUESTS], compression=_COMPRESSION
                ) as producer:
                    producer.close_deadline_s = _CLOSE_S
                    writer = BulkWriter(producer, REQUESTS, self._on_batch)
                    await writer.open()
                    reachable = True
                    await self._pump(writer)
            except AifError as error:
                if reachable:
                    log.warning(kv("request_log.unreachable", problem=error))
                reachable = False
            except Exception:
                log.exception(kv("request_log.failed"))
            if not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_S)
            elif not reachable:
                return

    async def _pump(self, writer: BulkWriter) -> None:
        """Write until closing; returns when everything taken so far is acknowledged or refused."""
        while self._queue or not self._closing.is_set():
            if not self._queue:
                await self._arrived.wait()
            self._arrived.clear()
            if not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._many.wait(), _LINGER_S)
            self._many.clear()
            written = 0
            while self._queue:
                await self._write(writer, self._queue.popleft())
                written += 1
                if written % _TURN == 0:
                    await asyncio.sleep(0)
            await writer.push()
        await writer.drain(_CLOSE_S)

    async def _write(self, writer: BulkWriter, record: _Record) -> None:
        envelope = Envelope(REQUEST_EVENT, record.request_id, "aif/serve", record.received_ms, {})
        key, headers = record.user_id.encode("utf-8", "surrogatepass"), to_headers(envelope, BINARY)
        value = record.value
        try:
            writer.producer.check_size(REQUESTS, key, value, headers)
        except PublishError:
            self._drop("too_large", 1)
            return
        self._pending += 1
        try:
            if not writer.put(key, value, headers):
                await writer.append(key, value, headers)
        except PublishError:
            self._on_batch(1, PublishError("not queued"))
            raise

    def _on_batch(self, records: int, problem: PublishError | None) -> None:
        self._pending -= records
        if problem is None:
            REQUESTS_LOGGED.inc(records)
        else:
            self._drop("refused", records)

    def _drop(self, reason: str, records: int) -> None:
        if records:
            REQUESTS_DROPPED.labels(reason=reason).inc(records)


async def read_requests(settings: Settings, since_ms: int, until_ms: int) -> AsyncIterator[LoggedRequest]:
    """Requests that arrived in [since, until), in the order of each partition (a user's requests keep theirs).

    What was in the topic when reading began is read, no more. Records that cannot be read are logged and skipped.
    Raises ``BusUnavailable``, ``TopicError``.
    """
    async with LogReader(settings, REQUESTS, client_id="aif-requests") as reader:
        ends = await reader.end_offsets()
        reader.seek(await reader.offsets_at(since_ms))
        while not await reader.caught_up(ends):
            for record in await reader.poll():
                if record.timestamp >= until_ms + _LATE_MS:
                    continue
                logged = _decoded(record)
                if logged is not None and since_ms <= logged.received_ms < until_ms:
                    yield logged


def _decoded(record: Record) -> LoggedRequest | None:
    """None for what cannot be read, which is counted and logged, and for a tombstone."""
    try:
        return None if record.value is None else decode_logged(record.value)
    except Exception as error:  # noqa: BLE001  # the edge of one record
        fault = fault_of(error)
        EVENTS_SKIPPED.labels("requests", fault.reason).inc()
        where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.error(kv("request_log.unreadable", **where, problem=fault))
        return None


async def latest_requests(settings: Settings, most: int) -> list[LoggedRequest]:
    """About the last ``most`` requests of the log, newest last; what cannot be read is passed over.

    Raises ``BusUnavailable``, ``TopicError``.
    """
    found: list[LoggedRequest] = []
    async with LogReader(settings, REQUESTS, client_id="aif-requests") as reader:
        ends, first = await reader.end_offsets(), await reader.beginning_offsets()
        share = 2 * most // len(ends) + 1  # users are spread over partitions, not quite evenly
        reader.seek({number: max(first[number], end - share) for number, end in ends.items()})
        while not await reader.caught_up(ends):
            for record in await reader.poll(most):
                logged = _decoded(record)
                if logged is not None:
                    found.append(logged)
    return sorted(found, key=lambda logged: logged.received_ms)[-most:]
