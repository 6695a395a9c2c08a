"""What the monitor tells dashboards beside its report: the last minutes, the versions, what was put aside."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final

import msgspec

from aif_stream.bus.groups import LIVE_GROUPS
from aif_stream.bus.versions import VersionFollower
from aif_stream.clock import monotonic_s
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import AifError
from aif_stream.freshness.report import LagReport
from aif_stream.index.connection import open_redis
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

HISTORY_S: Final = 600  # one point a second
_RETRY_S: Final = 2.0


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One look, for a chart. Ages in seconds, None where nobody knows. ``lag_records``: of the groups that make the
    watermark; explanations and rebuilds that wait hold back no update."""

    at_ms: int
    watermark_age_s: float | None
    lag_records: int
    mirror_age_s: float | None
    probe_s: float | None


class History:
    """The looks of the last ten minutes."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=HISTORY_S)
        self.last: LagReport | None = None

    def add(self, report: LagReport) -> None:
        ages = [mirror.applied_age_s for mirror in report.mirrors if mirror.rows is not None]
        known = [age for age in ages if age is not None]
        self.last = report
        self._points.append(
            Point(
                report.as_of_ms,
                report.watermark_age_s,
                sum(part.lag_records for part in report.partitions if part.group in LIVE_GROUPS),
                max(known, default=0.0) if len(known) == len(ages) else None,
                report.probe.last_s if report.probe.open_s < 1.0 else report.probe.open_s,
            )
        )

    def since(self, at_ms: int) -> list[Point]:
        """Points later than this."""
        return [point for point in self._points if point.at_ms > at_ms]


class RebuildState(msgspec.Struct, frozen=True):
    """Buckets done and in all; ``eta_s`` from the pace since it was first looked at."""

    done: int
    total: int
    eta_s: float | None


class Versions:
    """Every version that is not retired, with the progress of those being rebuilt. ``run`` until cancelled."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._book = VersionBook()
        self._rebuilds: dict[str, RebuildState] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def view(self) -> list[dict[str, Any]]:
        return [
            {
                "version": record.version,
                "state": self._book.state_of(record.version).value,
                "created_ms": record.created_ms,
                "rebuild": self._rebuilds.get(record.version),
            }
            for record in self._book.live()
        ]

    async def run(self) -> None:
        while True:
            try:
                async with (
                    VersionFollower(self._settings, self._on_record) as follower,
                    open_redis(self._settings) as r,
                ):
                    self._book = follower.book
                    tally = RebuildTally(r, self._settings.index_buckets)
                    while True:
                        await self._look(tally)
                        await asyncio.sleep(1.0)
            except AifError as error:
                log.warning(kv("overview.versions_unknown", problem=error))
            await asyncio.sleep(_RETRY_S)

    async def _on_record(self, book: VersionBook, _: VersionRecord) -> None:
        self._book = book

    async def _look(self, tally: RebuildTally) -> None:
        rebuilding = [r.version for r in self._book.live() if r.state is VersionState.REBUILDING]
        for version in rebuilding:
            found = await tally.read(version)
            done = len(found.done)
            begun_s, had = self._begun.setdefault(version, (monotonic_s(), done))
            pace = (done - had) / max(monotonic_s() - begun_s, 1e-3)
            eta_s = round((found.total - done) / pace, 1) if pace > 0 else None
            self._rebuilds[version] = RebuildState(done, found.total, eta_s)
        for version in self._rebuilds.keys() - set(rebuilding):
            del self._rebuilds[version]
            self._begun.pop(version, None)
