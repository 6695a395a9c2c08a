"""Offsets on their way to Kafka: collected, committed every tenth of a second beside the loop, and before an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from aif_stream import clock
from aif_stream.bus.consumer import GroupConsumer, Partition
from aif_stream.errors import BusUnavailable
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A commit is a request of some milliseconds on both sides; one per batch halved the throughput (measured).
EVERY_S: Final = 0.1


class Commits:
    """Only what is done and marked is added, so a commit may come late, or be lost with the worker."""

    def __init__(self, lane: str, consumer: GroupConsumer) -> None:
        self._lane = lane
        self._consumer = consumer
        self._offsets: dict[Partition, int] = {}
        self._running: asyncio.Task[None] | None = None
        self._began_s = 0.0

    def add(self, offsets: Mapping[Partition, int]) -> None:
        self._offsets.update(offsets)

    def soon(self) -> None:
        """Begin a commit when there is something and the last one began a while ago; does not wait."""
        free = self._running is None or self._running.done()
        if self._offsets and free and clock.monotonic_s() - self._began_s >= EVERY_S:
            self._running = asyncio.create_task(self._commit(), name=f"{self._lane}-commit")

    async def now(self) -> None:
        """Everything that was added, before partitions go or the lane ends."""
        if self._running is not None:
            await asyncio.wait([self._running])
        if self._offsets:
            await self._commit()

    async def close(self) -> None:
        """Drop what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _commit(self) -> None:
        offsets, self._offsets = self._offsets, {}
        self._began_s = clock.monotonic_s()
        ours = self._consumer.assignment()
        try:
            await self._consumer.commit({p: offset for p, offset in offsets.items() if p in ours})
        except BusUnavailable as error:
            # The effects are done and marked; a later commit covers these, or the records come again.
            log.warning(kv("commit.failed", lane=self._lane, error=error))
