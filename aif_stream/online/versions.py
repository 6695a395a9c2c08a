"""Which model version answers: follows ``aif.model-updates``, loads and warms the active one, then switches.

A request takes a ``Serving`` whole when it arrives; a switch only changes what the next request takes. The old
version's mirror is released when its last request has ended.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import Final

from aif_stream.bus.versions import VersionFollower
from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.row import VALID, empty_rows
from aif_stream.domain.versions import VersionBook, VersionRecord
from aif_stream.errors import (
    AifError,
    ArtefactError,
    BusUnavailable,
    IndexRefused,
    IndexUnavailable,
    Overloaded,
    VersionError,
)
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import load, manifest_sha256
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.join import Join, MirrorJoin, RedisJoin
from aif_stream.online.mirror_feed import MirrorFeed
from aif_stream.online.serving import Serving, unknown_user
from aif_stream.settings import Settings
from aif_stream.telemetry import MODEL_VERSION, kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
_WARM_ROWS: Final = 4_096  # one slice: allocators and kernels have seen the real shapes before a request comes
# The mirror's end was confirmed longer ago than this: answers say so. Ten of its regular confirmations missed.
BEHIND_S: Final = 5.0


class ActiveVersion:
    """``run`` follows the topic; ``pin`` hands out what is served now."""

    def __init__(self, settings: Settings, store: N2OStore, threads: ComputeThreads) -> None:
        self._settings = settings
        self._store = store
        self._threads = threads
        self._changed = asyncio.Event()
        self._serving: Serving | None = None
        self._loading: MirrorFeed | None = None
        self.feed: MirrorFeed | None = None
        self.problem = "reading the model versions"

    @property
    def serving(self) -> Serving | None:
        return self._serving

    def pin(self, name: str | None) -> Serving:
        """What is served now. Raises ``Overloaded`` when that is nothing, ``VersionError`` when it is not ``name``."""
        serving = self._serving
        if serving is None:
            raise Overloaded(f"no model version is served yet: {self.problem}", mend="see /readyz")
        if name is not None and name != serving.name:
            raise VersionError(
                f"version {name} was asked for, {serving.name} is served",
                mend="leave model_version out, or activate it",
            )
        return serving

    def behind(self) -> bool:
        """Whether the mirror's rows may be older than what Redis holds."""
        return self.feed is not None and self.feed.confirmed_age_s > BEHIND_S

    def reasons(self) -> list[str]:
        """Why this server is not ready; empty when it is."""
        if self._serving is not None:
            return []
        detail = self._loading.problem if self._loading is not None else ""
        return [f"{self.problem}: {detail}" if detail else self.problem]

    async def run(self) -> None:
        """Follow until cancelled. Raises ``IndexRefused`` when the first mirror does not fit, ``TopicError``."""
        while True:
            try:
                async with VersionFollower(self._settings, self._on_record) as follower:
                    await self._keep(follower.book)
            except BusUnavailable as error:
                self.problem = str(error)
                log.warning(kv("versions.unreachable", problem=error))
            await asyncio.sleep(_RETRY_S)

    async def _on_record(self, _book: VersionBook, _record: VersionRecord) -> None:
        self._changed.set()

    async def _keep(self, book: VersionBook) -> None:
        """Serve what the book calls active. Each mirror's feed lives in the group until its version is replaced."""
        async with asyncio.TaskGroup() as feeds:
            feeding: asyncio.Task[None] | None = None
            while True:
                self._changed.clear()
                target = book.records.get(book.active or "")
                current = None if self._serving is None else self._serving.name
                if target is None:
                    self.problem = "no version is active: publish and activate one"
                elif target.version != current:
                    replaced = feeding
                    try:
                        feeding = await self._switch(target, feeds)
                    except (ArtefactError, IndexUnavailable) as error:
                        self._failed(target, error)
                        await asyncio.sleep(_RETRY_S)
                        continue
                    except IndexRefused as error:
                        if self._serving is None:
                            raise
                        self._failed(target, error)  # the version that is served goes on; trying again is no use
                        await self._changed.wait()
                        continue
                    if replaced is not None:
                        replaced.cancel()
                await self._changed.wait()

    async def _switch(self, record: VersionRecord, feeds: asyncio.TaskGroup) -> asyncio.Task[None] | None:
        """Load, mirror and warm a version beside the served one; then serve it. Returns its mirror's task."""
        start_s = monotonic_s()
        self.problem = f"loading version {record.version}"
        model = await asyncio.to_thread(_load, record)
        mirror: Mirror | None = None
        feed: MirrorFeed | None = None
        feeding: asyncio.Task[None] | None = None
        if self._settings.join == "mirror":
            mirror = Mirror(model.layout, model.name, memory_mb=self._settings.mirror_memory_mb)
            feed = self._loading = MirrorFeed(self._settings, self._store, mirror)
            self.problem = f"loading the mirror of version {record.version}"
            feeding = feeds.create_task(feed.run(), name=f"mirror {record.version}")
            try:
                await feed.ready.wait()
            except asyncio.CancelledError:
                feeding.cancel()
                raise
            if feed.refused is not None:
                raise feed.refused
        join: Join = RedisJoin(self._store, model) if mirror is None else MirrorJoin(mirror, self._threads)
        unknown = await self._threads.run(lambda: _warm(model))
        if self._serving is None:
            # A full collection walks every object of torch and friends: 150 ms in which nothing else runs. What is here
            # when the first request comes is here to stay, so the collector need not look at it again.
            gc.collect()
            gc.freeze()
        previous, self._serving, self.feed = self._serving, Serving(model, join, mirror, unknown), feed
        if previous is not None:
            MODEL_VERSION.remove(previous.name)
        MODEL_VERSION.labels(version=model.name).set(1)
        self.problem = ""
        log.info(kv("version.served", version=model.name, ms=elapsed_ms(start_s), join=self._settings.join))
        return feeding

    def _failed(self, record: VersionRecord, error: AifError) -> None:
        self.problem = f"version {record.version}: {error}"
        log.error(kv("version.failed", version=record.version, problem=error))


def _load(record: VersionRecord) -> ModelVersion:
    """The artefact of a record. Raises ``ArtefactError`` when it is not the one that was published."""
    directory = Path(record.artefact)
    found = manifest_sha256(directory)
    if found != record.manifest_sha256:
        raise ArtefactError(
            f"{directory} is not what was published as {record.version} (manifest {found[:12]}…, "
            f"published {record.manifest_sha256[:12]}…)",
            mend="put the published artefact back, or publish this one under a new name",
        )
    model = load(directory)
    if model.name != record.version:
        raise ArtefactError(f"{directory} holds version {model.name}, not {record.version}")
    return model


def _warm(model: ModelVersion) -> UserSide:
    """The unknown user's side; scoring has run with it."""
    unknown = unknown_user(model)
    rows = empty_rows(model.layout, _WARM_ROWS)
    rows["flags"] = VALID
    for _ in range(3):
        model.score(unknown, rows)
    return unknown
