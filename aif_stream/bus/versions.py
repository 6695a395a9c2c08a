"""Model versions over ``aif.model-updates``: read to the end, follow, publish. The topic is the truth."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from aif_stream.bus.consumer import Lost, Record
from aif_stream.bus.events import FIRST_OFFSET
from aif_stream.bus.producer import Producer, RecordPosition
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.bus.version_repair import VersionRepair
from aif_stream.clock import now_ms
from aif_stream.domain.decoding import fault_of, whole_number
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.versions import (
    VERSION_EVENT,
    LogEntry,
    VersionBook,
    VersionRecord,
    decode_version,
    is_version_name,
)
from aif_stream.errors import BadEvent, BusUnavailable
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0

OnVersion = Callable[[VersionBook, VersionRecord], Awaitable[None]]


def apply_record(book: VersionBook, record: Record) -> VersionRecord | None:
    """Fold one record of the topic into the book; None when the book says what it said before.

    A record that cannot be used is counted and logged, and its version keeps its last good state (``book.displaced``).
    """
    name = _key_of(record)
    if record.value is None and name not in book.records:
        return None
    try:
        version = _version_of(record, name)
    except Exception as error:  # noqa: BLE001  # the edge of one record
        fault = fault_of(error)
        EVENTS_SKIPPED.labels(lane="versions", reason=fault.reason).inc()
        where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.error(kv("version.unreadable", **where, version=name or "-", problem=fault))
        if name:
            book.displaced[name] = record.offset
        return None
    entry = LogEntry(record.value or b"", _order_of(record))
    if entry.order < book.order_of(name):
        book.displaced[name] = record.offset
        log.warning(kv("version.late", offset=record.offset, version=name, first_offset=entry.order))
        return None
    book.apply(version, entry)
    return version


def _key_of(record: Record) -> str:
    """The version that a record belongs to by its key; "" when that is no version's name."""
    text = (record.key or b"").decode("utf-8", "replace")
    return text if is_version_name(text) else ""


def _version_of(record: Record, name: str) -> VersionRecord:
    """Raises ``BadEvent``."""
    if record.value is None:
        raise BadEvent("empty", "a version ends by being retired, not by a tombstone")
    version = decode_version(record.value)
    if version.version != name:
        raise BadEvent("key", f"the record's key {record.key!r:.80} is not its version {version.version}", field="key")
    return version


def _order_of(record: Record) -> int:
    """The record's offset, or the one that it had before it was written again (``VersionRepair``)."""
    first = whole_number(dict(record.headers).get(FIRST_OFFSET), record.offset)
    return record.offset if first is None else first


async def read_versions(settings: Settings) -> VersionBook:
    """Everything that the topic says now. Raises ``BusUnavailable``, ``TopicError``."""
    book = VersionBook()
    async with LogReader(settings, MODEL_UPDATES) as reader:
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            for record in await reader.poll():
                apply_record(book, record)
    return book


async def publish_version(producer: Producer, record: VersionRecord, source: str = "aif") -> RecordPosition:
    """Write one record and wait for its acknowledgement. Raises ``PublishError``."""
    envelope = Envelope(VERSION_EVENT, f"{record.version}/{record.state}/{now_ms()}", source, now_ms(), {})
    ack = await producer.send(MODEL_UPDATES, record.version.encode(), record.encode(), to_headers(envelope, JSON))
    return await ack


class VersionFollower:
    """Keeps a ``VersionBook`` up to date while its context is open.

    On entry the topic has been read to its end (no callback for what was there); then ``on_record(book, record)`` is
    awaited for each new record, in order. When Kafka stays away the book keeps its last state and the follower tries
    again. An exception from ``on_record`` ends the follower: ``wait`` raises it, so that its owner can stop.

    ``repairs``: good records that a bad one displaced are written again, so that compaction keeps them.
    """

    def __init__(self, settings: Settings, on_record: OnVersion, *, repairs: bool = False) -> None:
        self._settings = settings
        self._on_record = on_record
        self._reader = LogReader(settings, MODEL_UPDATES, on_lost=self._on_lost)
        self._task: asyncio.Task[None] | None = None
        self.book = VersionBook()
        self._repair = VersionRepair(settings, self.book) if repairs else None

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        try:
            ends = await self._reader.end_offsets()
            while not await self._reader.caught_up(ends):
                for record in await self._reader.poll():
                    apply_record(self.book, record)
        except BaseException:
            await self._reader.__aexit__(None, None, None)
            raise
        if self._repair is not None:
            self._repair.begin()
        self._task = asyncio.create_task(self._follow(), name="version-follower")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        try:
            if self._repair is not None:
                await self._repair.end()
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and (problem := task.exception()) is not None:
                    log.error(kv("versions.callback_failed", problem=repr(problem)))
        finally:
            await self._reader.__aexit__(None, None, None)

    async def wait(self) -> None:
        """Return never, unless a callback failed: then raise what it raised."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _follow(self) -> None:
        while True:
            try:
                records = await self._reader.poll(timeout_ms=500)
            except BusUnavailable as error:
                log.warning(kv("versions.unreachable", problem=str(error)))
                await asyncio.sleep(_RETRY_S)
                continue
            for record in records:
                version = apply_record(self.book, record)
                if version is not None:
                    log.info(kv("version.record", version=version.version, state=version.state))
                    await self._on_record(self.book, version)
            if self._repair is not None:
                self._repair.look()

    def _on_lost(self, lost: Lost) -> None:
        if not lost.records:
            self.book.log_replaced()
