"""Topics → memory: every replica reads the source topics whole, without a group, from their beginning."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np

from aif_stream.bus.consumer import Record
from aif_stream.bus.events import BehaviorEvent, ItemEvent, behavior_from_record, item_from_record
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES
from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.decoding import fault_of
from aif_stream.domain.freshness import PROBE_KEY
from aif_stream.domain.history import enters_history
from aif_stream.errors import BadEvent, BusUnavailable
from aif_stream.retrieval.catalogue import Catalogue
from aif_stream.retrieval.channels import Channels, rank_by_popularity
from aif_stream.retrieval.neighbours import Neighbours, build_index
from aif_stream.retrieval.recent import RecentItems
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_CONSUMED, EVENTS_SKIPPED, kv

log = logging.getLogger(__name__)

T = TypeVar("T")
_BATCH_RECORDS: Final = 2_000
_RETRY_S: Final = 1.0
# The popularity order is made anew at most this share of the time, so that a million items (0.5 s a time) cost
# little and a thousand are in order again at once.
_RANKING_SHARE: Final = 0.03
_LEAST_PAUSE_S: Final = 0.05


class Feeds:
    """Owns the catalogue's one writing thread. ``run`` never returns; readers are told through ``channels``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.catalogue = Catalogue()
        self.recent = RecentItems()
        self.neighbours = Neighbours(self.catalogue)
        self.channels = Channels(self.catalogue, self.recent, self.neighbours)
        self.behind = {ITEM_UPDATES, BEHAVIORS}
        self.ready = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, "retrieval-write")
        self._ranked = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=False, cancel_futures=True)

    async def run(self) -> None:
        """Read until cancelled; ``ready`` once everything that was there at the start is searchable."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(ITEM_UPDATES, self._take_items), name="feed-items")
            tasks.create_task(self._follow(BEHAVIORS, self._take_behaviors), name="feed-behaviors")
            tasks.create_task(self._keep_order(), name="feed-order")

    async def _follow(self, topic: str, take: Callable[[Sequence[Record]], None]) -> None:
        """One topic for ever; Kafka away: try again, what is known stays in use."""
        async with AsyncExitStack() as stack:
            reader = await self._open(topic, stack)
            ends = await reader.end_offsets()
            started_s = monotonic_s()
            while True:
                try:
                    batch = await reader.poll(_BATCH_RECORDS, 100)
                    caught_up = topic in self.behind and await reader.caught_up(ends)
                except BusUnavailable as error:
                    log.warning(kv("feed.unreachable", topic=topic, error=error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                if batch:
                    await self._write(partial(take, batch))
                    EVENTS_CONSUMED.labels(lane=f"retrieval {topic}").inc(len(batch))
                if caught_up:
                    self.behind.discard(topic)
                    log.info(kv("feed.caught_up", topic=topic, s=elapsed_ms(started_s) / 1000))

    async def _open(self, topic: str, stack: AsyncExitStack) -> LogReader:
        """A reader at the beginning. Raises ``TopicError`` when the broker has no such topic."""
        while True:
            try:
                reader = LogReader(self._settings, topic, client_id="aif-retrieval")
                return await stack.enter_async_context(reader)
            except BusUnavailable as error:
                log.warning(kv("feed.unreachable", topic=topic, error=error))
                await asyncio.sleep(_RETRY_S)

    async def _keep_order(self) -> None:
        """Refresh the popularity order and the neighbour index when they are old; the first time, say ready."""
        while True:
            started_s = monotonic_s()
            if not self.behind:
                await self._refresh()
                self.ready.set()
            busy_s = monotonic_s() - started_s
            await asyncio.sleep(max(_LEAST_PAUSE_S, busy_s / _RANKING_SHARE))

    async def _refresh(self) -> None:
        version = self.catalogue.version
        if self._ranked != version:
            self.channels.ranking = await self._write(lambda: rank_by_popularity(self.catalogue))
            self._ranked = version
        if not await self._write(self.neighbours.refresh):
            return
        generation, positions, vectors = await self._write(self.catalogue.snapshot_vectors)
        started_s = monotonic_s()
        built = await asyncio.to_thread(build_index, positions, vectors, generation)
        await self._write(lambda: self.neighbours.take(built))
        log.info(kv("neighbours.built", vectors=positions.size, ms=elapsed_ms(started_s)))

    async def _write(self, change: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, change)

    def _take_items(self, batch: Sequence[Record]) -> None:
        events: list[ItemEvent] = []
        for record in batch:
            try:
                events.append(item_from_record(record, self._settings.max_ahead_ms))
            except Exception as error:  # noqa: BLE001  # the edge of one record
                _skipped(record, fault_of(error))
        # The probe of `aif monitor` is an item for everybody but for those who look for items.
        self.catalogue.apply_items([event for event in events if event.key != PROBE_KEY])
        if not self.behind:
            self.neighbours.refresh()

    def _take_behaviors(self, batch: Sequence[Record]) -> None:
        events: list[BehaviorEvent] = []
        for record in batch:
            try:
                event = behavior_from_record(record, self._settings.max_ahead_ms)
            except Exception as error:  # noqa: BLE001  # the edge of one record
                _skipped(record, fault_of(error))
                continue
            if enters_history(event.behavior.kind):
                events.append(event)
        if not events:
            return
        # A purchase says more than a click: the kind's code, 1 (click) to 4 (buy), is its weight.
        weights = np.array([event.behavior.kind.code for event in events], np.float32)
        items = np.fromiter((event.item_key for event in events), np.uint64, len(events))
        users = np.fromiter((event.user_key for event in events), np.uint64, len(events))
        self.recent.append(users, self.catalogue.apply_popularity(items, weights))


def _skipped(record: Record, fault: BadEvent) -> None:
    """The nearline role puts it aside with its reason; here it only may not stop the stream."""
    EVENTS_SKIPPED.labels(lane="retrieval", reason="unreadable").inc()
    log.debug("skipped %s/%s/%s: %s", record.topic, record.partition, record.offset, fault)
