"""Keeps one version's mirror up to date from ``aif.n2o-rows``, and knows up to when that is true."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from aif_stream.bus.consumer import Lost, Record
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.errors import AifError, BadEvent, BusUnavailable, IndexRefused, IndexUnavailable
from aif_stream.index.changelog import LIVE, decode_head
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.online.status import Window
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
_CONFIRM_S: Final = 0.5
_CONFIRM_DEADLINE_S: Final = 2.0
_PURGE_S: Final = 3600.0


class LogLost(AifError):
    """The broker dropped records of the change log before they were read: the mirror is loaded anew."""


class _Tap:
    """The reader as the mirror sees it: a loss of records is an error, and the lag of what was applied is noted."""

    def __init__(self, settings: Settings, lag_ms: Window) -> None:
        self.reader = LogReader(settings, N2O_ROWS, on_lost=self._on_lost, client_id="aif-mirror")
        self._lag_ms = lag_ms
        self._lost: Lost | None = None
        self._handed_over: list[Record] = []
        self.applied: dict[int, int] = {}

    def _on_lost(self, lost: Lost) -> None:
        self._lost = lost

    async def end_offsets(self) -> dict[int, int]:
        self._lost = None
        self._handed_over = []
        return await self.reader.end_offsets()

    def seek(self, offsets: Mapping[int, int]) -> None:
        self.applied = dict(offsets)
        self.reader.seek(offsets)

    async def caught_up(self, ends: Mapping[int, int]) -> bool:
        return await self.reader.caught_up(ends)

    async def poll(self, max_records: int, timeout_ms: int) -> list[Record]:
        """Raises ``LogLost``, ``BusUnavailable``."""
        self._note_lag()  # the mirror asks for more when it has applied what it was given
        self._handed_over = await self.reader.poll(max_records, timeout_ms)
        if self._lost is not None:
            raise LogLost(f"{self._lost.records} records of {N2O_ROWS} were dropped unread")
        return self._handed_over

    def _note_lag(self) -> None:
        now = now_ms()
        for record in self._handed_over:
            self.applied[record.partition] = record.offset + 1
            with suppress(BadEvent):
                head = decode_head(record.headers)
                if head.lane == LIVE:
                    self._lag_ms.add(max(0, now - head.stamps.appended_ms))


class MirrorFeed:
    """One mirror and the task that feeds it. ``run`` never returns; ``ready`` is set after the first boot."""

    def __init__(self, settings: Settings, store: N2OStore, mirror: Mirror) -> None:
        self._settings = settings
        self._store = store
        self.mirror = mirror
        self.ready = asyncio.Event()
        self.problem = ""
        self.refused: IndexRefused | None = None
        self.lag_ms = Window()
        self._true_at_s = monotonic_s()
        self._tap: _Tap | None = None

    @property
    def positions(self) -> dict[int, int]:
        """Per partition of the change log, the offset after the last record that is applied."""
        return dict(self._tap.applied) if self._tap is not None else {}

    @property
    def confirmed_age_s(self) -> float:
        """Everything that was in the change log this long ago has been applied."""
        return monotonic_s() - self._true_at_s

    async def run(self) -> None:
        """Boot, then follow, for ever. Redis or Kafka away: the mirror stays as it is and is tried again.

        Returns, with ``refused`` and ``ready`` set, when the first boot does not fit. Raises ``TopicError``.
        """
        while self.refused is None:
            try:
                tap = self._tap = _Tap(self._settings, self.lag_ms)
                async with tap.reader, asyncio.TaskGroup() as tasks:
                    beside = (
                        tasks.create_task(self._confirm(tap.reader), name="mirror-confirm"),
                        tasks.create_task(self._purge(), name="mirror-purge"),
                    )
                    await self._follow(tap)
                    for task in beside:
                        task.cancel()
            except BusUnavailable as error:
                self._tell(str(error))
            except BaseExceptionGroup as group:
                expected, rest = group.split((BusUnavailable, IndexUnavailable))
                if rest is not None or expected is None:
                    raise
                self._tell(str(expected.exceptions[0]))
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, tap: _Tap) -> None:
        """Boot and follow, and boot again after a loss; returns when the first boot is refused."""
        while True:
            try:
                await self.mirror.boot(self._store, tap)
                self._true_at_s, self.problem = monotonic_s(), ""
                self.ready.set()
                while True:
                    with suppress(BusUnavailable):
                        await self.mirror.follow(tap)
                    await asyncio.sleep(_RETRY_S)
            except (LogLost, IndexUnavailable, BusUnavailable) as error:
                self._tell(str(error))
            except IndexRefused as error:
                self._tell(str(error))
                if not self.ready.is_set():
                    self.refused = error
                    self.ready.set()
                    return
                # Full while serving: what is there goes on answering, and says so.
            self.mirror.caught_up = False
            await asyncio.sleep(_RETRY_S)

    async def _confirm(self, reader: LogReader) -> None:
        """Ask the broker for the log's end again and again; reaching it later proves what the mirror holds."""
        while True:
            asked_s = monotonic_s()
            with suppress(BusUnavailable, TimeoutError):
                async with asyncio.timeout(_CONFIRM_DEADLINE_S):
                    ends = await reader.end_offsets()
                    await asyncio.sleep(_CONFIRM_S)
                    if self.mirror.caught_up and await reader.caught_up(ends):
                        self._true_at_s = asked_s
                continue
            await asyncio.sleep(_CONFIRM_S)

    async def _purge(self) -> None:
        """Tombstones are forgotten when the store forgets them."""
        while True:
            await asyncio.sleep(_PURGE_S)
            keep_ms = int(self._settings.tombstone_keep_h * 3_600_000)
            await asyncio.to_thread(self.mirror.purge_tombstones, now_ms() - keep_ms)

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            log.warning(kv("mirror.behind", version=self.mirror.version, problem=problem))
        self.problem = problem
