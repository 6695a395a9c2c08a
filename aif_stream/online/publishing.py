"""``POST /v1/events/items``: item lines on their way to Kafka. The publisher is opened at the first one."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aif_stream.bus.lines import KINDS, parse_line
from aif_stream.bus.publisher import EventPublisher
from aif_stream.clock import now_ms
from aif_stream.domain.events import check_event_time
from aif_stream.errors import PublishError
from aif_stream.online.openapi import PublishReport, Reject
from aif_stream.settings import Settings


class ItemPublishing:
    """Kafka away at the start is no reason not to answer rank requests, so nothing is opened before it is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = asyncio.Lock()
        self._publisher: EventPublisher | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.__aexit__(kind, error, trace)

    async def items(self, lines: list[bytes], *, single: bool) -> PublishReport:
        """Publish and wait for the acknowledgements. Raises ``BadInput`` (a single line that is wrong),
        ``BusUnavailable``, ``PublishError`` (not all were acknowledged)."""
        publisher = await self._open()
        if single:
            line = parse_line(KINDS["items"], lines[0], publisher.line_limit_bytes("items"))
            check_event_time(line.event_time_ms or 0, now_ms(), self._settings.max_ahead_ms)
        summary = await publisher.publish_lines("items", lines)
        if not summary.complete:
            raise PublishError(
                f"{summary.acknowledged} of {len(lines)} events are acknowledged: {summary.problem}",
                mend="send them again: an event may be seen twice",
            )
        rejects = [Reject(reject.line, reject.problem) for reject in summary.rejects]
        return PublishReport(summary.sent, summary.acknowledged, summary.rejected, rejects)

    async def _open(self) -> EventPublisher:
        async with self._opening:
            if self._publisher is None:
                publisher = EventPublisher(self._settings, source="aif/serve")
                await publisher.__aenter__()
                self._publisher = publisher
            return self._publisher
