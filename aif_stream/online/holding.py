"""Has the versions loaded, mirrored and warm that may be needed next, within memory; lets go of the others."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.row import Rows, empty_rows
from aif_stream.domain.versions import VersionBook, VersionRecord
from aif_stream.errors import AifError, ArtefactError, IndexDenied, IndexRefused, IndexUnavailable
from aif_stream.index.mirror import Mirror, row_bytes
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.join import Join, MirrorJoin, RedisJoin
from aif_stream.online.loading import load_published, wanted, warm
from aif_stream.online.mirror_feed import FedMirror, MirrorFeed
from aif_stream.online.precision import SAMPLE_ROWS, settle
from aif_stream.online.serving import Serving
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
# A request leaves some hundred objects and hardly a cycle: by Python's 700 the collector ran at every third answer and
# took 2 % of the event loop's time.
_COLLECT: Final = (10_000, 20, 20)
_LOOK_S: Final = 2.0  # how often memory is looked at: mirrors grow, requests of versions that were let go end


class Failure(NamedTuple):
    """Why a version could not be loaded; it is tried again from ``until_s`` (monotonic) on."""

    problem: str
    until_s: float


class Holding:
    """``run`` loads, one version at a time, the most needed first. ``on_change()`` hears of each that comes or goes."""

    def __init__(
        self, settings: Settings, store: N2OStore, threads: ComputeThreads, on_change: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._threads = threads
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._book: VersionBook | None = None
        self._leaving: list[Serving] = []
        self._left: list[weakref.ref[Serving]] = []
        self._loading: tuple[str, FedMirror | None] | None = None
        self.held: dict[str, Serving] = {}
        self.failures: dict[str, Failure] = {}
        self.answering: str | None = None  # never let go, whatever the book says
        self.feed = MirrorFeed(settings, store)

    @property
    def names(self) -> list[str]:
        """Versions that must stay in Redis for this server's sake: held, or let go with requests still under way."""
        return sorted({*self.held, *(serving.name for serving in self._leaving if serving.in_flight.count)})

    def wants(self) -> list[str]:
        """Versions that should be held, the most needed first."""
        return [record.version for record in self._wanted()]

    def follow(self, book: VersionBook) -> None:
        """The book has changed: go by it. What was refused is tried again."""
        self._book = book
        self.failures = {name: each for name, each in self.failures.items() if each.until_s < float("inf")}
        self._changed.set()

    def waits_for(self, version: str) -> str:
        """What keeps a version from being held, in words."""
        failure = self.failures.get(version)
        if failure is not None:
            return f"version {version}: {failure.problem}"
        detail = self._loading[1].problem if self._loading is not None and self._loading[1] is not None else ""
        return f"loading version {version}" + (f": {detail}" if detail else "")

    async def run(self) -> None:
        """Until cancelled. Raises ``IndexRefused`` when the first mirror does not fit, ``TopicError``."""
        async with asyncio.TaskGroup() as tasks:
            if self._settings.join == "mirror":
                tasks.create_task(self.feed.run(), name="mirrors")
            tasks.create_task(self._hold(), name="version-loads")

    async def _hold(self) -> None:
        """Have every wanted version held, one load at a time, the most needed first; let go of the others."""
        while True:
            self._changed.clear()
            self._let_go()
            record = self._missing()
            if record is not None:
                await self._bring(record)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._book is not None else None):
                    await self._changed.wait()

    async def _bring(self, record: VersionRecord) -> None:
        """Load a version, unless another is needed more meanwhile."""
        loading = asyncio.create_task(self._load(record), name=f"load {record.version}")
        try:
            while not loading.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait((loading, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                self._let_go()
                missing = self._missing()
                if missing is None or missing.version != record.version:
                    break
        finally:
            loading.cancel()
            await asyncio.wait((loading,))
            self._loading = None
            if record.version not in self.held:
                self.feed.drop(record.version)
        if not loading.cancelled():
            loading.result()

    def _missing(self) -> VersionRecord | None:
        """The version to load next; None while there is none, or each that fails has to wait."""
        if self._book is None:
            return None
        now_s = monotonic_s()
        for record in self._wanted():
            failure = self.failures.get(record.version)
            if record.version not in self.held and (failure is None or failure.until_s <= now_s):
                return record
        return None

    async def _load(self, record: VersionRecord) -> None:
        """Load, mirror and warm a version beside the others. Raises ``IndexRefused`` when nothing else answers."""
        start_s = monotonic_s()
        self._loading = record.version, None
        try:
            model = await asyncio.to_thread(load_published, record)
            fed = await self._mirrored(model) if self._settings.join == "mirror" else None
            precision = await self._threads.aside(
                lambda: settle(model, self._settings.compute, partial(_sample, model, fed))
            )
            unknown = await self._threads.aside(lambda: warm(model))
        except (ArtefactError, IndexUnavailable, IndexDenied) as error:
            self._failed(record, error, monotonic_s() + _RETRY_S)
            return
        except IndexRefused as error:
            if self.answering is None and self._is_active(record.version):
                raise
            self._failed(record, error, float("inf"))  # trying again is no use before something changes
            return
        join: Join = RedisJoin(self._store, model) if fed is None else MirrorJoin(fed.mirror, self._threads)
        if not self.held:
            # A full collection walks every object of torch and friends: 150 ms in which nothing else runs. What is here
            # when the first request comes is here to stay, so the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_COLLECT)
        self.held[model.name] = Serving(model, join, fed, unknown, precision=precision)
        self.failures.pop(model.name, None)
        log.info(kv("version.held", version=model.name, ms=elapsed_ms(start_s), join=self._settings.join))
        self._on_change()

    async def _mirrored(self, model: ModelVersion) -> FedMirror:
        """A mirror that has caught up. Raises ``IndexRefused`` when it does not fit."""
        if not self._is_active(model.name):
            self._check_room(model, await self._store.count_rows(model.name))
        fed = self.feed.add(Mirror(model.layout, model.name, memory_mb=self._settings.mirror_memory_mb))
        self._loading = model.name, fed
        await fed.ready.wait()
        if fed.refused is not None:
            raise fed.refused
        return fed

    def _check_room(self, model: ModelVersion, rows: int) -> None:
        """Versions that are only kept warm share the bound of one mirror with all others."""
        needed = rows * row_bytes(model.layout) / 2**20
        used = sum(serving.nbytes for serving in self.held.values()) / 2**20
        if needed + used > self._settings.mirror_memory_mb:
            raise IndexRefused(
                f"version {model.name} is not kept warm: its mirror needs {needed:.0f} MiB beside {used:.0f} MiB of "
                f"others, AIF_MIRROR_MEMORY_MB allows {self._settings.mirror_memory_mb}",
                mend="raise it; else a switch to this version begins with loading it",
            )

    def _wanted(self) -> list[VersionRecord]:
        return [] if self._book is None else wanted(self._book, self._settings.warm_versions)

    def _is_active(self, name: str) -> bool:
        return self._book is not None and name == self._book.active

    def _failed(self, record: VersionRecord, error: AifError, until_s: float) -> None:
        known = self.failures.get(record.version)
        if known is None or known.problem != str(error):
            log.error(kv("version.failed", version=record.version, problem=error))
        self.failures[record.version] = Failure(str(error), until_s)

    def _let_go(self) -> None:
        """Drop what is not wanted any more, or fits no longer; see that what was dropped goes away."""
        if self._book is None:
            return
        kept = self._wanted()
        answering = {self.answering, self._book.active, self._book.canary}
        for name in self.held.keys() - {record.version for record in kept} - answering:
            self._drop(name)
        limit = self._settings.mirror_memory_mb * 2**20
        for record in reversed(kept):
            used = sum(serving.nbytes for serving in self.held.values())
            if used > limit and record.version in self.held and record.version not in answering:
                problem = (
                    f"not kept warm: mirrors take {used / 2**20:.0f} MiB, AIF_MIRROR_MEMORY_MB allows {limit >> 20}"
                )
                self._failed(record, IndexRefused(problem), float("inf"))
                self._drop(record.version)
        self._forget()

    def _drop(self, name: str) -> None:
        serving = self.held.pop(name)
        self.feed.drop(name)
        self._on_change()
        self._leaving.append(serving)
        log.info(kv("version.let_go", version=name, in_flight=serving.in_flight.count))

    def _forget(self) -> None:
        """Requests of a dropped version have ended: its memory must be free soon, a cycle of references or not."""
        if any(serving() is not None for serving in self._left):
            gc.collect()
        self._left = [weakref.ref(serving) for serving in self._leaving if not serving.in_flight.count]
        self._leaving = [serving for serving in self._leaving if serving.in_flight.count]


def _sample(model: ModelVersion, fed: FedMirror | None) -> Rows:
    """Rows to measure the precision on."""
    return empty_rows(model.layout, 0) if fed is None else fed.mirror.sample(SAMPLE_ROWS)
