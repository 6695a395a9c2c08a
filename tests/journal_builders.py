"""An embedded broker with a journal, started again and again on one folder; and what its topics hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aif_stream.bus.raw_log import RawLog
from aif_stream.bus.reader import LogReader
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.journal import Journal
from aif_stream.index.connection import open_redis
from aif_stream.runtime.restore import Restore
from aif_stream.settings import Settings
from tests.nearline_builders import nearline_settings
from tests.stack import topics


@dataclass(slots=True)
class Life:
    """One start of the broker. ``items``: restored from Redis."""

    settings: Settings
    log: RawLog
    journal: Journal
    items: int
    failed: asyncio.Task[None]

    async def is_kept(self) -> bool:
        """Whether the folder has every record that the broker has."""
        ends = await self.log.ends(self.journal.files)
        return all(self.journal.files[partition].end == end for partition, end in ends.items())


async def _no_reader(_: int) -> None:
    """Nobody reads items: they fit into the broker."""


@asynccontextmanager
async def life(
    folder: Path,
    redis_url: str,
    home: Path,
    *,
    reader: Callable[[Settings], Callable[[int], Awaitable[None]]] = lambda _: _no_reader,
    partitions: Mapping[str, int] | None = None,
) -> AsyncIterator[Life]:
    """``aif up`` without its roles, as far as records are concerned. ``reader(settings)``: reads items beside it.
    ``partitions``: of topics that have another number than in their contract."""
    counts = {**topics(), **(partitions or {})}
    async with EmbeddedBroker(counts) as broker:
        settings = nearline_settings(broker.bootstrap, redis_url, home)
        async with RawLog(settings) as log, Journal(broker, log, folder, counts) as journal:
            failed = asyncio.create_task(journal.failed())
            try:
                async with open_redis(settings) as redis:
                    restore = Restore(settings, redis, log, journal, reader(settings))
                    await restore.logs()
                    await restore.items()
                    await restore.live()
                journal.start()
                yield Life(settings, log, journal, restore.count, failed)
            finally:
                failed.cancel()


async def everything(settings: Settings, topic: str) -> list[tuple[Any, ...]]:
    """(partition, offset, timestamp, key, value, headers) of every record, by partition and offset."""
    found: list[Any] = []
    async with LogReader(settings, topic) as reader:
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            found += await reader.poll()
    return sorted((r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in found)
