"""A new model version, from a directory to ready: publish → list → rebuild → ready (design §7); then activation.py.

Every step may be repeated: a roll-out that was broken off is taken up by publishing the same artefact again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from aif_stream import clock
from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES, REBUILD_TASKS
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import VersionError
from aif_stream.index.connection import open_redis
from aif_stream.index.coverage import count_coverage
from aif_stream.index.keys import Buckets
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import load, manifest_sha256
from aif_stream.nearline.activation import Activation, activate_version, known, rollback_version
from aif_stream.nearline.artefacts import install
from aif_stream.nearline.rebuild import RebuildTask, task_record
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

__all__ = [
    "Progress",
    "Rollout",
    "activate_version",
    "coverage",
    "install",
    "open_rollout",
    "publish_version",
    "rebuild_status",
    "rollback_version",
]

log = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 0.2
# No bucket finished for this long and no worker at it: tasks or their tally were lost (Redis emptied, retention), so
# the missing ones are given out again.
_STALLED_S: Final = 30.0
_COUNTED: Final = 50_000  # items looked at for a list: 0.2 s per version


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is, in buckets; ``eta_s`` None while nothing can be said."""

    done: int
    total: int
    items: int
    items_per_s: float
    eta_s: float | None

    @property
    def complete(self) -> bool:
        return self.done >= self.total


OnProgress = Callable[[Progress], None]


async def _unheard(_book: VersionBook, _record: VersionRecord) -> None:
    """The book is looked at, not listened to."""


def _ignore(_: Progress) -> None:
    """For callers who only want the end."""


class Rollout:
    """The steps, on open connections; see ``open_rollout``."""

    def __init__(self, settings: Settings, producer: Producer, store: N2OStore, tally: RebuildTally) -> None:
        self._settings = settings
        self._producer = producer
        self._store = store
        self._tally = tally

    async def publish(self, artefact: Path, *, resume: bool = True) -> VersionRecord:
        """Check and keep the artefact, announce it, list it in every bucket, give out the rebuild tasks.

        Returns the ``rebuilding`` record; a version that is ready or active already is returned as it is. Raises
        ``ArtefactError``, and ``VersionError`` when the name is taken by another artefact, retired, or (unless
        ``resume``) published before.
        """
        model = await asyncio.to_thread(load, artefact)
        book = await bus_versions.read_versions(self._settings)
        digest = manifest_sha256(artefact)
        known = book.records.get(model.name)
        if known is not None:
            _check_same(known, digest)
            if not resume:
                raise _published_before(book, model.name)
            if known.state in (VersionState.READY, VersionState.ACTIVE):
                return known
        home = await asyncio.to_thread(install, artefact, self._settings.models_dir / model.name)
        record = VersionRecord(
            version=model.name,
            state=VersionState.PUBLISHED,
            artefact=str(home),
            manifest_sha256=digest,
            created_ms=known.created_ms if known is not None else clock.now_ms(),
        )
        await self._store.ensure_layout()
        await self._announce(record)
        # Listed before the tasks go out: from here on every live write carries the version, so a bucket that is
        # scanned afterwards misses nothing.
        await self._store.add_version(record.version)
        await self._tally.clear(record.version)
        await self._give_out(record.version, range(self._store.buckets.count))
        return await self._announce(msgspec.structs.replace(record, state=VersionState.REBUILDING))

    async def progress(self, version: str) -> AsyncIterator[Progress]:
        """How far the rebuild is, every 0.2 s, ending with the complete one. Gives lost tasks out again.

        Raises ``VersionError`` as soon as the version is retired meanwhile.
        """
        first = await self._tally.read(version)
        began_s = changed_s = clock.monotonic_s()
        before = len(first.done)
        async with bus_versions.VersionFollower(self._settings, _unheard) as follower:
            while True:
                tally = await self._tally.read(version)
                now_s = clock.monotonic_s()
                gained, took_s = len(tally.done) - len(first.done), max(now_s - began_s, 1e-3)
                rate = max(0, tally.items - first.items) / took_s
                eta_s = len(tally.missing) * took_s / gained if gained > 0 else None
                progress = Progress(len(tally.done), tally.total, tally.items, rate, eta_s)
                yield progress
                if progress.complete:
                    return
                _unretired(follower.book, version)
                if len(tally.done) != before:
                    before, changed_s = len(tally.done), now_s
                elif now_s - changed_s > _STALLED_S and not await self._tally.is_busy(version):
                    missing = len(tally.missing)
                    log.warning(kv("rebuild.stalled", version=version, missing=missing, action="tasks again"))
                    await self._give_out(version, tally.missing)
                    changed_s = now_s
                await asyncio.sleep(_ASK_EVERY_S)

    async def finish(self, version: str) -> VersionRecord:
        """Say that a version is ready: every bucket is rebuilt."""
        record = _unretired(await bus_versions.read_versions(self._settings), version)
        if record.state in (VersionState.READY, VersionState.ACTIVE):
            return record
        return await self._announce(msgspec.structs.replace(record, state=VersionState.READY))

    async def activate(self, version: str) -> VersionRecord:
        """See ``Activation.activate``."""
        return await Activation(self._settings, self._producer, self._tally).activate(version)

    async def _announce(self, record: VersionRecord) -> VersionRecord:
        await bus_versions.publish_version(self._producer, record, "aif.rollout")
        log.info(kv("version.announced", version=record.version, state=record.state.value))
        return record

    async def _give_out(self, version: str, buckets: Iterable[int]) -> None:
        acks = []
        for bucket in buckets:
            key, value, headers = task_record(RebuildTask(version, bucket))
            acks.append(await self._producer.send(REBUILD_TASKS, key, value, headers))
        await asyncio.gather(*acks)


@asynccontextmanager
async def open_rollout(settings: Settings) -> AsyncIterator[Rollout]:
    """Connections for a roll-out. Raises ``BusUnavailable``, ``TopicError``, ``IndexUnavailable``."""
    async with (
        open_redis(settings) as redis,
        Producer(settings, "aif-rollout", topics=[MODEL_UPDATES, REBUILD_TASKS]) as producer,
    ):
        store = N2OStore(redis, Buckets(settings.index_buckets))
        yield Rollout(settings, producer, store, RebuildTally(redis, settings.index_buckets))


async def publish_version(
    settings: Settings,
    artefact: Path,
    *,
    wait: bool = False,
    activate: bool = False,
    resume: bool = True,
    on_progress: OnProgress = _ignore,
) -> VersionRecord:
    """Publish; with ``wait`` until every bucket is rebuilt and the version is ready; ``activate`` waits, too."""
    async with open_rollout(settings) as rollout:
        record = await rollout.publish(artefact, resume=resume)
        if record.state is VersionState.REBUILDING and (wait or activate):
            async for progress in rollout.progress(record.version):
                on_progress(progress)
            record = await rollout.finish(record.version)
        return await rollout.activate(record.version) if activate else record


async def rebuild_status(settings: Settings, version: str) -> Progress:
    """How far a rebuild is now; rate and ETA need two looks and are left out."""
    async with open_redis(settings) as redis:
        tally = await RebuildTally(redis, settings.index_buckets).read(version)
        return Progress(len(tally.done), tally.total, tally.items, 0.0, None)


async def coverage(settings: Settings, version: str) -> float:
    """Share of the items that are not removed that have their row of this version; 1 while there are no items.

    Of a large index some buckets are looked at, evenly spread; the gate looks at all.
    """
    async with open_redis(settings) as redis:
        items = await N2OStore(redis, Buckets(settings.index_buckets)).count_items()
        stride = max(1, items // _COUNTED)
        return (await count_coverage(redis, version, range(0, settings.index_buckets, stride))).share


def _unretired(book: VersionBook, version: str) -> VersionRecord:
    record = known(book, version)
    if record.state is VersionState.RETIRED:
        raise VersionError(f"version {version} was retired meanwhile", mend="train under a new version name")
    return record


def _published_before(book: VersionBook, version: str) -> VersionError:
    state = book.state_of(version)
    mend = {
        VersionState.READY: f"aif model activate {version}",
        VersionState.ACTIVE: "it answers already; a new training needs a new version name",
    }.get(state, "aif model publish --resume takes up a roll-out that was broken off")
    return VersionError(f"version {version} was published before and is {state.value}", mend=mend)


def _check_same(known: VersionRecord, digest: str) -> None:
    if known.manifest_sha256 != digest:
        raise VersionError(
            f"version {known.version} was published from another artefact", mend="train under a new version name"
        )
    if known.state is VersionState.RETIRED:
        raise VersionError(f"version {known.version} is retired", mend="train under a new version name")
