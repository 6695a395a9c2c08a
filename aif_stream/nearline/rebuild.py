"""The rebuild lane: one task per (version, bucket) → every item of the bucket gets its row of that version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from aif_stream import clock
from aif_stream.bus.consumer import Record
from aif_stream.domain.decoding import decode_json
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.versions import VersionState, is_version_name
from aif_stream.errors import ArtefactError, BadEvent, VersionMissing
from aif_stream.index.changelog import Stamps
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.nearline.changes import REBUILD, ChangeLog
from aif_stream.nearline.row_process import RowProcess
from aif_stream.nearline.versions import LoadedVersions, RowSource
from aif_stream.nearline.work import Poison, Taken, Written, decode_each
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, REBUILD_PROGRESS, ROWS_INVALID, ROWS_WRITTEN, kv

log = logging.getLogger(__name__)

TASK_EVENT: Final = "aif.rebuild.task"
_YIELD_S: Final = 0.05  # how often a waiting rebuild looks at the live lag; a batch of the live lane takes 25 ms
_BUSY_MS: Final = 30_000  # a part is computed and written within a second; the rest is for machines that are busy
_UNKNOWN_MS: Final = 60_000  # tasks and version records are different topics: a task may be here first


class RebuildTask(msgspec.Struct, frozen=True):
    """One record of ``aif.rebuild-tasks``."""

    version: str
    bucket: Annotated[int, Meta(ge=0)]


_TASK = msgspec.json.Decoder(RebuildTask)


def task_record(task: RebuildTask) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of a task's record."""
    event_id = f"{task.version}/{task.bucket}/{clock.now_ms()}"
    envelope = Envelope(TASK_EVENT, event_id, "aif.rollout", clock.now_ms(), {})
    return b"%d" % task.bucket, msgspec.json.encode(task), to_headers(envelope, JSON)


class RebuildWork:
    """See work.Work. Effects: rows that live writes have not brought, ``aif.n2o-rows``, the tally of the version.

    A row is written only while its item is as it was read, so live writes always win. A bucket that does not list the
    version is no rebuilt one: Redis forgot the list (the lane waits until it is restored), or it is retired.
    ``live_lag_ms`` tells how old the oldest unfinished live event is; beyond ``rebuild_yield_lag_ms`` it waits.
    """

    name = "rebuild"

    def __init__(
        self,
        settings: Settings,
        *,
        store: N2OStore,
        tally: RebuildTally,
        versions: LoadedVersions,
        changes: ChangeLog,
        process: RowProcess,
        live_lag_ms: Callable[[], float],
    ) -> None:
        self._yield_lag_ms = settings.rebuild_yield_lag_ms
        self._rate = settings.rebuild_rate
        self._store = store
        self._tally = tally
        self._versions = versions
        self._changes = changes
        self._process = process
        self._live_lag_ms = live_lag_ms

    def decode(self, records: Sequence[Record]) -> tuple[list[Taken[RebuildTask]], list[Poison]]:
        return decode_each(records, self._decode_one)

    def _decode_one(self, record: Record) -> RebuildTask:
        task = decode_json(_TASK, record.value, "a rebuild task")
        if not is_version_name(task.version):
            raise BadEvent("invalid", f"{task.version!r:.80} is no version name", field="version")
        if task.bucket >= self._store.buckets.count:
            raise BadEvent("invalid", f"the index has {self._store.buckets.count} buckets", field="bucket")
        return task

    async def prepare(self, batch: Sequence[Taken[RebuildTask]]) -> Sequence[Taken[RebuildTask]]:
        return batch

    async def write(self, prepared: Sequence[Taken[RebuildTask]]) -> Written:
        acks: list[Awaitable[object]] = []
        poison: list[Poison] = []
        for record, task in prepared:
            state = self._versions.state(task.version)
            if state is VersionState.RETIRED:
                EVENTS_SKIPPED.labels(self.name, "retired").inc()
            elif state is None and clock.now_ms() - record.timestamp > _UNKNOWN_MS:
                poison.append(Poison(record, "unknown-version", f"version: {task.version} was never published"))
            else:
                acks += await self._rebuild(task)
        return Written(acks, poison)

    async def restore(self) -> None:
        await self._versions.restore()

    async def _rebuild(self, task: RebuildTask) -> list[Awaitable[object]]:
        """One bucket, in the parts in which the store gives it."""
        source = self._versions.source(task.version)
        if source is None:
            raise VersionMissing(frozenset({task.version}), where=f"rebuild of bucket {task.bucket}")
        if await self._tally.finished(task.version, task.bucket):
            EVENTS_SKIPPED.labels(self.name, "done").inc()  # redelivered, or given out again by an impatient rollout
            return []
        acks: list[Awaitable[object]] = []
        items = 0
        async for part in self._store.scan_items(task.bucket):
            since_s = clock.monotonic_s()
            await self._yield_to_live(task.version)
            pause_s = len(part) / self._rate if self._rate else 0.0
            await self._tally.busy(task.version, round(pause_s * 1000) + _BUSY_MS)
            live = [item for item in part if not item.removed]
            if live:
                acks += await self._rebuild_part(task, source, live)
            items += len(live)
            if self._rate:
                await asyncio.sleep(max(0.0, len(live) / self._rate - (clock.monotonic_s() - since_s)))
        # The rows are in the change log before the bucket counts as done: who sees 100 % sees them in mirrors too.
        await asyncio.gather(*acks)
        await self._store.check_listed(task.bucket, task.version)  # a bucket without items was not asked yet
        await self._tally.finish(task.version, task.bucket, items)
        tally = await self._tally.read(task.version)
        REBUILD_PROGRESS.labels(task.version).set(len(tally.done) / tally.total)
        log.info(kv("bucket.rebuilt", version=task.version, bucket=task.bucket, items=items, done=len(tally.done)))
        return acks

    async def _rebuild_part(
        self, task: RebuildTask, source: RowSource, items: Sequence[StoredItem]
    ) -> list[Awaitable[object]]:
        orders = [item.order for item in items]
        try:
            rows, problems = await self._process.rows(source.artefact, [item.payload for item in items], orders)
        except ArtefactError as error:
            # It was loaded here before: this lane waits until the artefact is back, the others go on.
            raise VersionMissing(frozenset({task.version}), where=f"rebuild ({error.what})") from error
        if problems:
            ROWS_INVALID.labels(task.version).inc(sum(problems.values()))
            log.warning(kv("rows.invalid", version=task.version, **problems))
        expected = [(item.key, item.order) for item in items]
        applied = await self._store.write_rebuilt(task.bucket, task.version, expected, rows)
        done = [i for i, there in enumerate(applied) if there]
        ROWS_WRITTEN.labels(self.name).inc(len(done))
        if not done:
            return []
        keys = np.array([items[i].key for i in done], dtype=np.uint64)
        now_ms = clock.now_ms()
        return await self._changes.send(
            task.version, source.layout, keys, rows[done], Stamps(now_ms, now_ms), lane=REBUILD
        )

    async def _yield_to_live(self, version: str) -> None:
        told_s = 0.0
        while self._live_lag_ms() > self._yield_lag_ms:
            if clock.monotonic_s() - told_s > _BUSY_MS / 3000:
                told_s = clock.monotonic_s()
                await self._tally.busy(version, _BUSY_MS)
            await asyncio.sleep(_YIELD_S)
