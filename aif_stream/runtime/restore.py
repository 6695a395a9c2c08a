"""Restores what a folder holds to a new embedded broker, so that every role continues as after a restart of Kafka.

    behaviors, dead letters, request log, tasks   the same records at the same offsets, as far as the broker keeps them
    versions                                      the newest record of each version
    items                                         the newest state of each item, from Redis; then unprocessed updates
    users                                         unprocessed updates; all other profiles are read from Redis only

Items, users and versions get offsets above all earlier ones, so a new event never loses to an old offset in the order
(event time, offset). A state from Redis carries its own order in a header (``winner_headers``). Commits and marks move
to the identity of the new broker. A crash during the restore is safe: until ``state.json`` names the new identity, the
old marks and files count, and records written again by then are only processed twice.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from aif_stream.bus.batches import Batch, every_record, joined, packed
from aif_stream.bus.bulk import BulkWriter
from aif_stream.bus.connection import cluster_identity
from aif_stream.bus.consuming import Partition
from aif_stream.bus.events import NEARLINE_SOURCE, winner_headers
from aif_stream.bus.groups import LIVE_GROUPS
from aif_stream.bus.producer import Producer
from aif_stream.bus.raw_log import RawLog
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, MODEL_UPDATES
from aif_stream.domain.events import EventType
from aif_stream.domain.versions import VersionRecord, decode_version
from aif_stream.embedded.journal import GROUPS, UNTIL_COMMITTED, Journal
from aif_stream.errors import AifError, ArtefactError, EmbeddedError, PublishError
from aif_stream.index.connection import Redis
from aif_stream.index.keys import LAYOUT_KEY, Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import manifest_sha256
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# Offsets that the broker may have assigned after the journal's last read. Far more than fit into its memory.
_MARGIN: Final = 1 << 24
# Unread by retrieval at most, even if all are in one partition. The broker drops records beyond 5 MiB per partition.
_UNREAD_BYTES: Final = 2 * 1024 * 1024
_HELD_BYTES: Final = 4 * 1024 * 1024
_DRAIN_S: Final = 60.0

ReadBack = Callable[[int], Awaitable[None]]


class Restore:
    """Call ``logs``, ``items`` and ``live`` in this order, then start the journal.

    ``read_back(n)`` waits until retrieval has read n items; retrieval must run from ``items`` on, nearline must not.
    """

    def __init__(self, settings: Settings, redis: Redis, log: RawLog, journal: Journal, read_back: ReadBack) -> None:
        self._settings = settings
        self._redis = redis
        self._log = log
        self._journal = journal
        self._marks: dict[Partition, int] = {}
        self._read_back = read_back
        self.count = 0
        """Restored items."""

    async def logs(self) -> None:
        """Restore the topics that keep their offsets, versions, and the commits of groups without marks."""
        self._marks = await self._old_marks() if await self._has_redis() else {}
        live = {*UNTIL_COMMITTED, MODEL_UPDATES}
        same = [partition for partition in self._journal.files if partition.topic not in live]
        await self._append({p: joined(self._journal.files[p].batches()) for p in same})
        await self._log.skip_to({p: self._journal.files[p].end for p in same})
        await self._versions()
        for group, topic in GROUPS.items():
            if topic not in UNTIL_COMMITTED:
                kept = self._journal.state.commits.get(group, {})
                places = {Partition(topic, number): at for number, at in kept.items()}
                await self._log.commit(group, {p: min(at, self._journal.files[p].end) for p, at in places.items()})

    async def items(self) -> None:
        """Publish the newest state of every item."""
        await self._log.skip_to({p: self._beyond(p) for p in self._journal.files if p.topic in UNTIL_COMMITTED})
        store = N2OStore(self._redis, Buckets(self._settings.index_buckets))
        problems: list[PublishError] = []
        read = unread_bytes = 0
        async with Producer(self._settings, "aif-restore", topics=[ITEM_UPDATES]) as producer:
            writer = BulkWriter(producer, ITEM_UPDATES, lambda _, error: problems.append(error) if error else None)
            await writer.open()
            for bucket in range(self._settings.index_buckets):
                async for found in store.scan_items(bucket):
                    for item in found:
                        if item.removed:
                            continue
                        if unread_bytes > _UNREAD_BYTES:
                            await writer.push()
                            await self._read_back(read)
                            read, unread_bytes = self.count, 0
                        headers = winner_headers(EventType.ITEM_UPSERTED, uuid.uuid4().hex, NEARLINE_SOURCE, item.order)
                        await writer.append(item.id_text.encode("utf-8", "surrogatepass"), item.payload, headers)
                        self.count, unread_bytes = self.count + 1, unread_bytes + len(item.payload)
            await writer.push()
            await writer.drain(_DRAIN_S)
        if problems:
            raise problems[0]

    async def live(self) -> None:
        """Append the records that nearline has not processed; move the marks and commits of its groups."""
        files, places = self._journal.files, dict(self._marks)
        ends = await self._log.ends([p for p in files if p.topic in UNTIL_COMMITTED])
        waiting: dict[Partition, list[Batch]] = {}
        for partition, end in ends.items():
            mark = self._marks.get(partition, 0)
            left = _newest(partition, list(joined(files[partition].batches(mark))))
            places[partition] = end + max(0, mark - left[0].base_offset) if left else end
            waiting[partition] = list(_from(end, left))
            files[partition].begin(end)
            for batch in waiting[partition]:
                files[partition].append(batch)
        for partition in files:
            if partition.topic == BEHAVIORS:
                places[partition] = min(places.get(partition, 0), files[partition].end)
        await N2OStore(self._redis, Buckets(self._settings.index_buckets)).ensure_layout()
        await self._journal.save()
        await self._name(places)
        for partition, end in ends.items():
            files[partition].drop_before(end)
        if any(sum(len(batch.data) for batch in left) > _UNREAD_BYTES for left in waiting.values()):
            await self._read_back(self.count)
        await self._append({partition: iter(batches) for partition, batches in waiting.items()})

    async def _versions(self) -> None:
        """Append the newest valid record of each version. The path of its artefact is corrected if the folder moved."""
        partition = Partition(MODEL_UPDATES, 0)
        files = self._journal.files[partition]
        newest: dict[str, tuple[int, bytes, bytes, Any]] = {}
        for batch in files.batches():
            for record in every_record(batch):
                try:
                    version = decode_version(record.value or b"")
                except (AifError, RecursionError) as error:
                    log.error(kv("version.unreadable", offset=batch.base_offset, problem=error, action="omitted"))
                    continue
                newest.pop(version.version, None)
                value = self._at_home(version).encode()
                newest[version.version] = (record.timestamp, version.version.encode(), value, record.headers)
        base = files.end
        await self._log.skip_to({partition: base})
        if not newest:
            return
        batch = packed(base, newest.values())
        files.begin(base)
        files.append(batch)
        await asyncio.to_thread(files.sync)
        files.drop_before(base)
        await self._append({partition: iter([batch])})

    def _at_home(self, record: VersionRecord) -> VersionRecord:
        home = self._settings.models_dir / record.version
        if Path(record.artefact) == home:
            return record
        try:
            same = manifest_sha256(home) == record.manifest_sha256
        except (ArtefactError, OSError):
            same = False
        return msgspec.structs.replace(record, artefact=str(home)) if same else record

    async def _append(self, batches: Mapping[Partition, Iterator[Batch]]) -> None:
        """Append batches at their own offsets. Gaps between them are skipped."""
        at = await self._log.ends(batches) if batches else {}
        left = dict(batches)
        while turn := {partition: batch for partition, each in left.items() if (batch := next(each, None)) is not None}:
            left = {partition: left[partition] for partition in turn}
            await self._log.skip_to({p: batch.base_offset for p, batch in turn.items() if batch.base_offset != at[p]})
            found = await self._log.append({partition: batch.data for partition, batch in turn.items()})
            for partition, batch in turn.items():
                if found[partition] != batch.base_offset:
                    raise EmbeddedError(f"{partition}: offset {batch.base_offset} became {found[partition]}")
                at[partition] = batch.next_offset

    def _beyond(self, partition: Partition) -> int:
        """An offset above every one that was ever assigned in this partition."""
        commits = self._journal.state.commits.get(UNTIL_COMMITTED[partition.topic], {})
        known = max(self._journal.files[partition].end, self._marks.get(partition, 0), commits.get(partition.number, 0))
        return known + _MARGIN if known else 0

    async def _old_marks(self) -> dict[Partition, int]:
        """Marks of the previous broker. A mark that Redis lost is replaced by the group's last known commit."""
        state, found = self._journal.state, dict[Partition, int]()
        for group, topic in LIVE_GROUPS.items():
            if topic not in state.identities:
                continue
            marks, commits = MarkBook(self._redis, state.identities[topic]), state.commits.get(group, {})
            for partition, files in self._journal.files.items():
                if partition.topic == topic:
                    mark = await marks.read(partition.number)
                    found[partition] = commits.get(partition.number, 0) if mark is None else mark
                    if topic in UNTIL_COMMITTED and found[partition] < files.beginning:
                        lost = {"position": found[partition], "beginning": files.beginning}
                        log.error(kv("records.lost", topic=topic, partition=partition.number, **lost))
        return found

    async def _has_redis(self) -> bool:
        """False, with an error in the log, if Redis is empty although the journal's records have been processed. Then
        everything that the journal still has is processed again."""
        if not self._journal.state.identities or await self._redis.call("EXISTS", LAYOUT_KEY):
            return True
        log.error(kv("redis.empty", hint="stop and restore the folder's redis directory from a copy, if there is one"))
        return False

    async def _name(self, places: Mapping[Partition, int]) -> None:
        """Write marks and commits for the new broker, then name it in ``state.json``, then delete the old marks."""
        old = dict(self._journal.state.identities)
        for group, topic in LIVE_GROUPS.items():
            numbers = {p.number: at for p, at in places.items() if p.topic == topic}
            identity = await cluster_identity(self._settings, topic)
            await MarkBook(self._redis, identity).put(numbers)
            await self._log.commit(group, {Partition(topic, number): at for number, at in numbers.items()})
            self._journal.state.identities[topic] = identity
            self._journal.state.commits[group] = numbers
        await self._journal.save()
        for topic, identity in old.items():
            if identity != self._journal.state.identities[topic]:
                await MarkBook(self._redis, identity).remove(p.number for p in self._journal.files if p.topic == topic)


def _newest(partition: Partition, batches: list[Batch]) -> list[Batch]:
    """The newest batches that fit into the broker's memory. The old broker had dropped the others as well."""
    size, kept = 0, len(batches)
    while kept and (not size or size + len(batches[kept - 1].data) <= _HELD_BYTES):
        kept -= 1
        size += len(batches[kept].data)
    if kept:
        where = {"topic": partition.topic, "partition": partition.number, "position": batches[0].base_offset}
        log.error(kv("records.lost", **where, records=batches[kept - 1].next_offset - batches[0].base_offset))
    return batches[kept:]


def _from(offset: int, batches: list[Batch]) -> Iterator[Batch]:
    """The same records, numbered consecutively from ``offset``."""
    for batch in batches:
        moved = batch.moved_to(offset)
        yield moved
        offset = moved.next_offset
