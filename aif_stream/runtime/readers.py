"""Progress of a topic's readers. A bulk publisher on the embedded broker must wait for them: the broker drops the
oldest records beyond 5 MiB per partition, read or unread."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

import aiohttp

from aif_stream.bus.topics import USER_UPDATES
from aif_stream.bus.watch import GroupWatch
from aif_stream.errors import AifError
from aif_stream.settings import Settings

_ASK_EVERY_S: Final = 0.05
STALLED_S: Final = 120.0


class Readers:
    """Nearline (``group``; None: it does not run yet) and retrieval, on a topic without records before they started."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, topic: str, group: str | None) -> None:
        self._topic = topic
        self._watch = GroupWatch(settings, group, [topic]) if group is not None else None
        self._session = session
        self._metrics = f"{settings.retrieval_urls}/metrics"

    async def __aenter__(self) -> Self:
        if self._watch is not None:
            await self._watch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            await self._watch.__aexit__(kind, error, trace)

    async def wait_within(self, records: int) -> None:
        """Wait until every reader has read the first ``records``. Raises ``AifError`` if one makes no progress."""
        if records <= 0:
            return
        best, since_s = -1, asyncio.get_running_loop().time()
        while (read := await self._read()) < records:
            now_s = asyncio.get_running_loop().time()
            if read > best:
                best, since_s = read, now_s
            elif now_s - since_s > STALLED_S:
                raise AifError(
                    f"{self._topic}: {read:,} of {records:,} records read, none for {STALLED_S:.0f} s",
                    mend="read the logs of nearline and retrieval",
                )
            await asyncio.sleep(_ASK_EVERY_S)

    async def _read(self) -> int:
        read = 1 << 62 if self._topic == USER_UPDATES else await self._retrieval()
        if self._watch is None:
            return read
        return min(read, sum(standing.committed or 0 for standing in (await self._watch.standing()).values()))

    async def _retrieval(self) -> int:
        """Retrieval has no consumer group: its metric tells how much it has read. It does not read users."""
        wanted = f'aif_events_consumed_total{{lane="retrieval {self._topic}"}} '
        try:
            async with self._session.get(self._metrics) as reply:
                lines = (await reply.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return 0
        return next((int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted)), 0)
