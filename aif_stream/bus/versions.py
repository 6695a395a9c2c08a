"""Model versions over ``aif.model-updates``: read to the end, follow, publish. The topic is the truth."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from aif_stream.bus.consumer import Record
from aif_stream.bus.producer import Producer, RecordPosition
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.clock import now_ms
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.versions import VersionBook, VersionRecord, decode_version
from aif_stream.errors import AifError, BusUnavailable
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, kv

log = logging.getLogger(__name__)

VERSION_EVENT: Final = "aif.model.version"
_RETRY_S: Final = 1.0

OnVersion = Callable[[VersionBook, VersionRecord], Awaitable[None]]


def apply_record(book: VersionBook, record: Record) -> VersionRecord | None:
    """Fold one record of the topic into the book; None when it says nothing (unreadable ones are logged, counted)."""
    if record.value is None:
        return None
    try:
        version = decode_version(record.value)
    except AifError as error:
        EVENTS_SKIPPED.labels(lane="versions", reason="unreadable").inc()
        log.error(kv("version.unreadable", partition=record.partition, offset=record.offset, problem=str(error)))
        return None
    book.apply(version)
    return version


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
    """

    def __init__(self, settings: Settings, on_record: OnVersion) -> None:
        self._settings = settings
        self._on_record = on_record
        self._reader = LogReader(settings, MODEL_UPDATES)
        self._task: asyncio.Task[None] | None = None
        self.book = VersionBook()

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
        self._task = asyncio.create_task(self._follow(), name="version-follower")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        try:
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
