"""Keeps the mirrors of this process up to date from ``aif.n2o-rows``, and knows up to when that is true.

The change log carries the rows of every version, so it is read once, however many versions the process holds: each
record goes to the mirror of its version. A mirror that is added loads Redis beside the running log. The log has been
read from before that load began, and Redis acknowledges before the log is written, so what the load missed comes by
the log; every step keeps the newer row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aif_stream.bus.consumer import Lost, OnLost, Record
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.clock import elapsed_ms, monotonic_s, now_ms
from aif_stream.errors import AifError, BadEvent, BusUnavailable, IndexDenied, IndexRefused, IndexUnavailable
from aif_stream.index.changelog import LIVE, ChangeHead, decode_head
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.online.status import Window
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, MIRROR_ROWS, kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
_CONFIRM_S: Final = 0.5
_CONFIRM_DEADLINE_S: Final = 2.0
_PURGE_S: Final = 3600.0
_POLL_RECORDS: Final = 64  # a poll hands over at most this many batches (some 10 MiB) at once
_POLL_WAIT_MS: Final = 100


class LogLost(AifError):
    """The broker dropped records of the change log before they were read: the mirrors are loaded anew."""


class FedMirror:
    """One mirror and how it stands. ``ready`` is set after its first load, or when that was ``refused``."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.ready = asyncio.Event()
        self.refused: IndexRefused | None = None
        self.problem = ""
        self.true_at_s = monotonic_s()
        self.missed = False  # a record that a load under way may need was not applied: that load proves nothing
        self.loading: asyncio.Task[None] | None = None

    @property
    def confirmed_age_s(self) -> float:
        """Everything that was in the change log this long ago has been applied."""
        return monotonic_s() - self.true_at_s

    def tell(self, problem: str) -> None:
        """Say what keeps it behind; the same thing is said once."""
        if problem != self.problem:
            log.warning(kv("mirror.behind", version=self.mirror.version, problem=problem))
        self.problem = problem


OpenLog = Callable[[Settings, OnLost], LogReader]


def change_log(settings: Settings, on_lost: OnLost) -> LogReader:
    """A reader of the change log."""
    return LogReader(settings, N2O_ROWS, on_lost=on_lost, client_id="aif-mirror")


class MirrorFeed:
    """``run`` reads for ever; ``add`` and ``drop`` say which versions are mirrored."""

    def __init__(self, settings: Settings, store: N2OStore, open_log: OpenLog = change_log) -> None:
        self._settings = settings
        self._store = store
        self._open_log = open_log
        self._fed: dict[str, FedMirror] = {}
        self._reader: LogReader | None = None
        self._lost: Lost | None = None
        self._placed = asyncio.Event()  # the reader stands somewhere: what comes after it is applied
        self._targets: list[tuple[dict[int, int], asyncio.Future[None]]] = []
        self._loads: asyncio.TaskGroup | None = None
        self.lag_ms = Window()
        self.positions: dict[int, int] = {}  # per partition of the change log, the offset after the last one applied

    def add(self, mirror: Mirror) -> FedMirror:
        """Load a mirror and keep it up to date; its ``ready`` tells when requests may use it."""
        fed = self._fed[mirror.version] = FedMirror(mirror)
        self._load(fed)
        return fed

    def drop(self, version: str) -> None:
        """Let go of a version's mirror; whoever still reads it may go on, it only gets no newer."""
        fed = self._fed.pop(version, None)
        if fed is not None and fed.loading is not None:
            fed.loading.cancel()
        with suppress(KeyError):  # it never got as far as a row
            MIRROR_ROWS.remove(version)

    async def run(self) -> None:
        """Until cancelled. Redis or Kafka away: the mirrors stay as they are and it is tried again.

        Raises ``TopicError``.
        """
        while True:
            try:
                self._reader = self._open_log(self._settings, self._on_lost)
                async with self._reader, asyncio.TaskGroup() as self._loads:
                    beside = (
                        self._loads.create_task(self._confirm(self._reader), name="mirror-confirm"),
                        self._loads.create_task(self._purge(), name="mirror-purge"),
                    )
                    try:
                        await self._follow(self._reader)
                    finally:
                        for task in beside:
                            task.cancel()
            except BusUnavailable as error:
                self._tell_all(str(error))
            except BaseExceptionGroup as group:
                expected, rest = group.split((BusUnavailable, IndexUnavailable))
                if rest is not None or expected is None:
                    raise
                self._tell_all(str(expected.exceptions[0]))
            finally:
                self._loads = None
                self._placed.clear()
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, reader: LogReader) -> None:
        """Read on from the end that the log has now; after a loss from its end then, with every mirror loaded anew."""
        while True:
            self._lost = None
            try:
                ends = await reader.end_offsets()
                reader.seek(ends)
                self.positions = dict(ends)
                self._placed.set()
                for fed in self._fed.values():
                    self._load(fed)
                while True:
                    with suppress(BusUnavailable):
                        while True:
                            await self._take(reader)
                    await asyncio.sleep(_RETRY_S)
            except (LogLost, BusUnavailable) as error:
                self._tell_all(str(error))
            self._placed.clear()
            for fed in self._fed.values():
                fed.missed, fed.mirror.caught_up = True, False
            await asyncio.sleep(_RETRY_S)

    async def _take(self, reader: LogReader) -> None:
        """Apply one poll of the log, letting others run between records. Raises ``LogLost``, ``BusUnavailable``."""
        for record in await reader.poll(_POLL_RECORDS, _POLL_WAIT_MS):
            if self._lost is None:
                self._apply(record)
                self.positions[record.partition] = record.offset + 1
                await asyncio.sleep(0)
        if self._lost is not None:
            raise LogLost(f"{self._lost.records} records of {N2O_ROWS} were dropped unread")
        for target in list(self._targets):
            ends, reached = target
            if reached.done() or await reader.caught_up(ends):
                self._targets.remove(target)
                if not reached.done():
                    reached.set_result(None)

    def _apply(self, record: Record) -> None:
        try:
            head = decode_head(record.headers)
            fed = self._fed.get(head.version)
            if fed is None:
                return
            if head.lane == LIVE and fed.mirror.caught_up and fed.mirror.watched:
                self.lag_ms.add(max(0, now_ms() - head.stamps.appended_ms))
            self._take_in(fed, head, record.value or b"")
        except BadEvent as error:
            # Nothing to acknowledge and nobody to answer: counted, said, and the log goes on.
            EVENTS_SKIPPED.labels("mirror", error.reason).inc()
            where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            log.warning(kv("mirror.record_unreadable", **where, problem=error))

    def _take_in(self, fed: FedMirror, head: ChangeHead, value: bytes) -> None:
        try:
            fed.mirror.take(head, value)
        except IndexRefused as error:
            # Full while serving: what is there goes on answering, and says so; it is tried again with all rows.
            fed.tell(str(error))
            fed.missed, fed.mirror.caught_up = True, False
            self._load(fed)

    def _load(self, fed: FedMirror) -> None:
        """Have a mirror loaded (again), once the reader stands and one load at a time."""
        if self._loads is not None and self._placed.is_set() and (fed.loading is None or fed.loading.done()):
            fed.loading = self._loads.create_task(self._loaded(fed), name=f"mirror {fed.mirror.version}")

    async def _loaded(self, fed: FedMirror) -> None:
        """Load until it has worked; ends early when the first load is refused."""
        mirror = fed.mirror
        while True:
            start_s = monotonic_s()
            try:
                await self._placed.wait()
                fed.missed = False
                await mirror.load(self._store)
                asked_s = monotonic_s()
                await self._reach_end()
                if not fed.missed:
                    fed.true_at_s, fed.problem, mirror.caught_up = asked_s, "", True
                    mib, seconds = mirror.nbytes / 2**20, elapsed_ms(start_s) / 1000
                    log.info(kv("mirror.ready", version=mirror.version, rows=len(mirror), mib=mib, seconds=seconds))
                    fed.ready.set()
                    return
            except (IndexUnavailable, IndexDenied, BusUnavailable) as error:
                fed.tell(str(error))
            except IndexRefused as error:
                fed.tell(str(error))
                if not fed.ready.is_set():
                    fed.refused = error
                    fed.ready.set()
                    return
            await asyncio.sleep(_RETRY_S)

    async def _reach_end(self) -> None:
        """Return when what the log holds now has been applied. Raises ``BusUnavailable``."""
        if self._reader is None:
            raise BusUnavailable("the change log is not open")
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        target = (await self._reader.end_offsets(), reached)
        self._targets.append(target)
        try:
            await reached
        finally:
            with suppress(ValueError):
                self._targets.remove(target)

    async def _confirm(self, reader: LogReader) -> None:
        """Ask the broker for the log's end again and again; reaching it later proves what the mirrors hold."""
        while True:
            asked_s = monotonic_s()
            with suppress(BusUnavailable, TimeoutError):
                async with asyncio.timeout(_CONFIRM_DEADLINE_S):
                    await self._reach_end()
                    for fed in self._fed.values():
                        if fed.mirror.caught_up:
                            fed.true_at_s = max(fed.true_at_s, asked_s)
            await asyncio.sleep(max(0.0, _CONFIRM_S - (monotonic_s() - asked_s)))

    async def _purge(self) -> None:
        """Tombstones are forgotten when the store forgets them."""
        while True:
            await asyncio.sleep(_PURGE_S)
            keep_ms = int(self._settings.tombstone_keep_h * 3_600_000)
            for fed in list(self._fed.values()):
                await asyncio.to_thread(fed.mirror.purge_tombstones, now_ms() - keep_ms)

    def _on_lost(self, lost: Lost) -> None:
        self._lost = lost

    def _tell_all(self, problem: str) -> None:
        for fed in self._fed.values():
            fed.tell(problem)
