"""Persists the embedded broker: copies its records and the commits of its groups into a folder.

    DIR/aif.behaviors/3/*.log      record batches of one partition, as fetched (segments.py)
    DIR/state.json                 commits of the groups; cluster and topic ids, by which the marks in Redis are named

One task tails every topic. It writes each batch to the page cache at once and flushes once a second. SIGKILL
therefore loses what was acknowledged in the last 0.1 s, a power loss the last one to two seconds. A regular stop loses
nothing: it refuses producers first, then reads the remaining records.

Retention (docs/decisions/0017-data-folder.md):

- items and users: until nearline has committed them; Redis has their state then;
- versions: everything; the next start keeps the newest record of each (runtime/restore.py);
- all other topics: the newest 5 MiB per partition, which is also the limit of the broker;
- the change log is not kept: mirrors load from Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from aif_stream.bus.consuming import Partition
from aif_stream.bus.groups import ALL_GROUPS, EXPLAIN_GROUPS
from aif_stream.bus.raw_log import RawLog, Stored
from aif_stream.bus.topics import ITEM_UPDATES, MODEL_UPDATES, N2O_ROWS, USER_UPDATES
from aif_stream.clock import monotonic_s
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.segments import Segments, disk_errors, write_whole
from aif_stream.errors import BusUnavailable, DataFolderError
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

GROUPS: Final = {**ALL_GROUPS, **EXPLAIN_GROUPS}
"""Group -> its topic."""
UNTIL_COMMITTED: Final = {topic: group for group, topic in ALL_GROUPS.items() if topic in (ITEM_UPDATES, USER_UPDATES)}
_KEEP_BYTES: Final = 5 * 1024 * 1024  # per partition; the limit of the embedded broker (broker.py)
_ALL_EVERY: Final = 8
_POLL_MS: Final = 100  # an idle fetch returns after this time; 1 % of one core
_SYNC_S: Final = 1.0
# Commits follow the acknowledgement of Redis, whose append-only file may lag by one to two seconds.
_SURE_S: Final = 10.0
_RETRY_S: Final = 0.2
_DRAIN_S: Final = 20.0


class State(msgspec.Struct, omit_defaults=True):
    """``identities``: topic -> (cluster id, topic id). ``commits``: group -> partition -> next offset."""

    identities: dict[str, tuple[str, str]] = {}
    commits: dict[str, dict[int, int]] = {}


_STATE: Final = msgspec.json.Decoder(State)


class Journal:
    """``async with Journal(broker, log, DIR, partitions) as journal:`` opens the files; ``start`` begins to tail.

    ``partitions``: base name of a topic -> number of partitions. Leaving the context reads the remaining records and
    closes the files. Raises ``DataFolderError``.
    """

    def __init__(self, broker: EmbeddedBroker, log: RawLog, directory: Path, partitions: Mapping[str, int]) -> None:
        self._broker = broker
        self._log = log
        self._directory = directory
        kept = [Partition(t, n) for t, count in partitions.items() if t != N2O_ROWS for n in range(count)]
        self.files = {partition: Segments(directory / partition.topic / str(partition.number)) for partition in kept}
        self.state = State()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._synced_s = self._sure_s = 0.0
        self._sure: dict[str, dict[int, int]] = {}

    async def __aenter__(self) -> Self:
        state = self._directory / "state.json"
        with disk_errors(state):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            if state.exists():
                try:
                    self.state = _STATE.decode(state.read_bytes())
                except msgspec.DecodeError as error:
                    hint = "restore it from a copy, or use another folder"
                    raise DataFolderError(f"{state} is damaged: {error}", mend=hint) from None
        for files in self.files.values():
            files.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        try:
            if task is not None and not task.done():
                await self._broker.refuse_producers()
                self._ending.set()
                await asyncio.wait([task], timeout=_DRAIN_S)
                if not task.done():
                    task.cancel()
                    log.error(kv("journal.unfinished", after_s=_DRAIN_S))
                await asyncio.wait([task])
            if task is not None and not task.cancelled() and (problem := task.exception()) is not None and not error:
                raise problem
        finally:
            for files in self.files.values():
                files.close()

    def start(self) -> None:
        """Tail every topic from the end of its files."""
        self._task = asyncio.create_task(self._run(), name="journal")
        self._task.add_done_callback(lambda _: self._ended.set())

    async def failed(self) -> None:
        """Wait until the journal ends; raises the error that stopped it. May be called before ``start``."""
        await self._ended.wait()
        if self._task is not None:
            self._task.result()

    async def save(self) -> None:
        """Flush all files and ``state`` to the disk."""
        await asyncio.to_thread(self._sync)

    async def _run(self) -> None:
        behind: set[Partition] = set()
        turn = 0
        while True:
            ending, turn = self._ending.is_set(), turn + 1
            # A fetch returns one batch per partition. Partitions with more are mostly fetched alone, which is faster.
            asked = behind if behind and turn % _ALL_EVERY else self.files.keys()
            try:
                found = await self._log.fetch(
                    {p: self.files[p].end for p in asked}, 0 if behind or ending else _POLL_MS
                )
                for stored in found:
                    await self._take(stored)
                behind = {stored.partition for stored in found if self.files[stored.partition].end < stored.end}
                done = ending and not behind and asked == self.files.keys()
                if done or monotonic_s() - self._synced_s > _SYNC_S:
                    await self._keep()
            except BusUnavailable as error:
                if ending:
                    raise
                log.warning(kv("journal.unreachable", problem=error))
                await asyncio.sleep(_RETRY_S)
                continue
            if done:
                return

    async def _take(self, stored: Stored) -> None:
        files = self.files[stored.partition]
        if stored.lost:
            beginning = (await self._log.beginnings([stored.partition]))[stored.partition]
            where = {"topic": stored.partition.topic, "partition": stored.partition.number, "position": files.end}
            log.error(kv("journal.records_lost", **where, beginning=beginning))
            files.begin(beginning)
        for batch in stored.batches:
            if batch.base_offset >= files.end:
                files.append(batch)

    async def _keep(self) -> None:
        """Once a second: read commits, flush, and delete files that are no longer needed."""
        for group, topic in GROUPS.items():
            wanted = [partition for partition in self.files if partition.topic == topic]
            found = await self._log.commits(group, wanted)
            self.state.commits[group] = {partition.number: offset for partition, offset in sorted(found.items())}
        await self.save()
        self._synced_s = monotonic_s()
        if self._synced_s - self._sure_s > _SURE_S:
            self._forget()
            self._sure_s, self._sure = self._synced_s, dict(self.state.commits)

    def _forget(self) -> None:
        for partition, files in self.files.items():
            if partition.topic in UNTIL_COMMITTED:
                files.drop_before(self._sure.get(UNTIL_COMMITTED[partition.topic], {}).get(partition.number, 0))
            elif partition.topic != MODEL_UPDATES:
                files.keep(_KEEP_BYTES)

    def _sync(self) -> None:
        for files in self.files.values():
            files.sync()
        write_whole(self._directory / "state.json", msgspec.json.encode(self.state))

    def _refuse_foreign(self) -> None:
        """Refuse a folder with records of a partition that this release does not have: they would be ignored."""
        for path in self._directory.glob("*/*"):
            known = path.name.isdigit() and Partition(path.parent.name, int(path.name)) in self.files
            if path.is_dir() and not known:
                raise DataFolderError(
                    f"{path} has records of a partition that this release does not have",
                    mend="use the release that wrote the folder, or another folder",
                )
