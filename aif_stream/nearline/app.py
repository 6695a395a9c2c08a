"""A nearline worker: connections, versions, lanes and timers, put together in one Faust app."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aif_stream import clock
from aif_stream.bus.connection import cluster_identity
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.groups import BEHAVIORS_GROUP, ITEMS_GROUP, REBUILD_GROUP, USERS_GROUP
from aif_stream.bus.producer import ROLE_CLOSE_S, Producer
from aif_stream.bus.topics import (
    BEHAVIORS,
    DEAD_LETTERS,
    ITEM_UPDATES,
    N2O_ROWS,
    REBUILD_TASKS,
    USER_UPDATES,
)
from aif_stream.bus.versions import VersionFollower
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import IndexRefused
from aif_stream.index.connection import Redis, check_server, open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.nearline.changes import ChangeLog
from aif_stream.nearline.freshness import RECENT_ITEMS
from aif_stream.nearline.host import Host
from aif_stream.nearline.items import ItemsWork
from aif_stream.nearline.lane import DRAIN_S, Lane
from aif_stream.nearline.rebuild import RebuildWork
from aif_stream.nearline.row_process import RowProcess
from aif_stream.nearline.users import BehaviorsWork, UsersWork
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.nearline.work import Work
from aif_stream.settings import Settings
from aif_stream.telemetry import DEAD_LETTERS as PUT_ASIDE
from aif_stream.telemetry import REBUILD_PROGRESS, counts, kv

log = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 1.0
_PROGRESS_EVERY_S: Final = 2.0
_PURGE_EVERY_S: Final = 3600.0  # tombstones are kept for days; an hour more or less is nothing
# One bucket per batch: a killed worker's successor repeats a bucket, not a batch of them.
_TASKS_PER_BATCH: Final = 1


class Nearline:
    """A worker that is put together and not started yet."""

    def __init__(self, lanes: Sequence[Lane[Any, Any]], host: Host, redis: Redis) -> None:
        self.lanes = lanes
        self._host = host
        self._redis = redis

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` (drained, committed, groups left), or raise what a lane died of."""
        since_s = clock.monotonic_s()
        log.info(kv("nearline.started", lanes=",".join(lane.name for lane in self.lanes)))
        try:
            await self._host.run(stop)
        finally:
            records = {lane.name: lane.done_records for lane in self.lanes}
            log.info(kv("nearline.stopped", up_s=clock.monotonic_s() - since_s, **records))

    def facts(self, url: str) -> dict[str, Any]:
        """What the worker's lease says: where it listens, what it holds, and how its producers' clocks stand."""
        now_s = clock.monotonic_s()
        heard = [found for lane in self.lanes for found in lane.clocks.read(now_s)]
        clocks = {found.source: found for found in sorted(heard, key=lambda found: found.ahead_s)}  # the worse one
        return {
            "url": url,
            "freshness": RECENT_ITEMS.read(now_s),
            "dead_letters": counts(PUT_ASIDE),
            "groups": {lane.group: lane.partitions for lane in self.lanes},
            "sources": {
                name: {"ahead_s": found.ahead_s, "delay_s": found.delay_s, "skewed": found.skewed}
                for name, found in clocks.items()
            },
        }

    def reasons(self) -> list[str]:
        """Why the worker is not ready: lanes not in their group yet, live lanes that cannot write, Redis."""
        reasons = [f"{lane.name} lane is not in its group" for lane in self.lanes if not lane.joined]
        live = [lane for lane in self.lanes if lane.name != RebuildWork.name]
        reasons += [f"{lane.name} lane waits: {lane.problem}" for lane in live if lane.problem]
        return [*reasons, self._redis.problem] if self._redis.problem else reasons

    def failures(self) -> list[str]:
        """Why the worker is not alive: what a lane died of. The others are stopping."""
        return self._host.failures()


@asynccontextmanager
async def open_nearline(settings: Settings) -> AsyncIterator[Nearline]:
    """Connect and put the worker together. Raises ``BusUnavailable``, ``TopicError``, ``IndexUnavailable``,
    ``IndexRefused`` (foreign layout), ``SettingsError``."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        await _check(redis)
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        producer = await stack.enter_async_context(
            Producer(
                # zstd takes a fifth of the rows (half floats) away, for 1 µs of each event: a twentieth of its cost.
                dataclasses.replace(settings, compression="none"),
                "aif-nearline",
                topics=[ITEM_UPDATES, USER_UPDATES, N2O_ROWS, DEAD_LETTERS],
                close_deadline_s=ROLE_CLOSE_S,
            )
        )
        process = await stack.enter_async_context(RowProcess())
        versions = LoadedVersions(store)
        follower = await stack.enter_async_context(VersionFollower(settings, _on_record(versions), repairs=True))
        await versions.follow(follower.book)

        parts = _Parts(settings, redis, store, producer, process, versions, follower)
        lanes = await parts.lanes()
        host = Host(settings)
        for lane in lanes:
            host.add(lane)
        host.add(_Following(follower))
        parts.timers(host, lanes)
        yield Nearline(lanes, host, redis)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What lanes and timers are made of, open."""

    settings: Settings
    redis: Redis
    store: N2OStore
    producer: Producer
    process: RowProcess
    versions: LoadedVersions
    follower: VersionFollower

    async def lanes(self) -> list[Lane[Any, Any]]:
        """Items, users, behaviors, and the rebuild that yields to them."""
        histories = HistoryStore(self.redis, self.settings.history_long)
        ahead_ms = self.settings.max_ahead_ms
        items = ItemsWork(self.store, self.versions, self.producer, ahead_ms)
        users = UsersWork(self.redis, histories, self.versions, self.producer, ahead_ms)
        live = [
            await self._live(ITEMS_GROUP, ITEM_UPDATES, items),
            await self._live(USERS_GROUP, USER_UPDATES, users),
            await self._live(BEHAVIORS_GROUP, BEHAVIORS, BehaviorsWork(histories, self.versions, ahead_ms)),
        ]
        rebuild = RebuildWork(
            self.settings,
            store=self.store,
            tally=RebuildTally(self.redis, self.settings.index_buckets),
            versions=self.versions,
            changes=ChangeLog(self.producer),
            process=self.process,
            live_lag_ms=lambda: max(lane.lag_ms for lane in live),
        )
        # No marks: what an emptied Redis loses of a rebuild, the replay of the items brings.
        return [*live, self._lane(REBUILD_GROUP, REBUILD_TASKS, rebuild, None, _TASKS_PER_BATCH, drain_s=0.0)]

    async def _live(self, group: str, topic: str, work: Work[Any, Any]) -> Lane[Any, Any]:
        marks = MarkBook(self.redis, await cluster_identity(self.settings, topic))
        return self._lane(group, topic, work, marks, self.settings.batch_events)

    def _lane(
        self,
        group: str,
        topic: str,
        work: Work[Any, Any],
        marks: MarkBook | None,
        batch: int,
        *,
        drain_s: float = DRAIN_S,
    ) -> Lane[Any, Any]:
        return Lane(
            self.settings,
            group=group,
            topic=topic,
            work=work,
            marks=marks,
            dead_letters=DeadLetters(self.settings, self.producer),
            batch_records=batch,
            drain_s=drain_s,
        )

    def timers(self, host: Host, lanes: Sequence[Lane[Any, Any]]) -> None:
        tally = RebuildTally(self.redis, self.settings.index_buckets)

        async def report() -> None:
            for lane in lanes:
                await lane.report()

        async def progress() -> None:
            await report_progress(self.follower.book, tally)

        async def purge() -> None:
            gone = await self.store.purge_tombstones(clock.now_ms() - int(self.settings.tombstone_keep_h * 3_600_000))
            if gone:
                log.info(kv("tombstones.purged", items=gone))

        host.every(_REPORT_EVERY_S, "report", report)
        host.every(_PROGRESS_EVERY_S, "progress", progress)
        host.every(_PURGE_EVERY_S, "purge", purge)


async def report_progress(book: VersionBook, tally: RebuildTally) -> None:
    """Rebuild progress of every version that is being rebuilt, as a gauge."""
    for record in book.live():
        if record.state is VersionState.REBUILDING:
            found = await tally.read(record.version)
            if book.records[record.version].state is VersionState.REBUILDING:  # and was not retired meanwhile
                REBUILD_PROGRESS.labels(record.version).set(len(found.done) / found.total)


class _Following:
    """The follower of model versions as a part of the host: what it dies of ends the worker."""

    name = "versions"

    def __init__(self, follower: VersionFollower) -> None:
        self._follower = follower

    async def run(self, stop: asyncio.Event) -> None:
        waiting = asyncio.create_task(stop.wait())
        following = asyncio.create_task(self._follower.wait())
        try:
            await asyncio.wait([waiting, following], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            waiting.cancel()
            following.cancel()
            await asyncio.gather(waiting, following, return_exceptions=True)


def _on_record(versions: LoadedVersions) -> Callable[[VersionBook, VersionRecord], Awaitable[None]]:
    async def follow(book: VersionBook, _: VersionRecord) -> None:
        await versions.follow(book)

    return follow


async def _check(redis: Redis) -> None:
    for finding in await check_server(redis):
        if finding.fatal:
            raise IndexRefused(finding.problem, mend=finding.mend)
        log.warning(kv("redis.finding", problem=finding.problem, mend=finding.mend))
