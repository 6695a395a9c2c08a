"""What a look at the whole system found: the shape of ``aif lag --json`` and of the monitor's ``GET /v1/lag``."""

from __future__ import annotations

from typing import Any

import msgspec

from aif_stream.domain.freshness import Status


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """A group in one partition. ``lag_s`` is None when the record at ``position`` could not be read."""

    group: str
    topic: str
    partition: int
    position: int
    end: int
    lag_records: int
    lag_s: float | None
    status: Status
    reason: str
    rate_per_s: float
    catch_up_s: float | None


class ProbeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a probe's event until every server answered with it; None before the first. ``open_s``: age of the
    oldest update that some server does not answer with yet, 0 when there is none."""

    last_s: float | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    open_s: float = 0.0
    seen: int = 0
    problem: str = "no monitor runs"


class MirrorState(msgspec.Struct, frozen=True, kw_only=True):
    """One server. ``applied_age_s``: age of the oldest record of the change log that it has not applied, 0 when it has
    applied all; None when it does not answer, or has no mirror (``rows`` None: it joins from Redis)."""

    server: str
    url: str
    rows: int | None
    applied_age_s: float | None
    version: str | None
    status: Status
    reason: str


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """A producer whose clock was compared with the broker's; ``ahead_s`` > 0 cannot be true time."""

    source: str
    ahead_s: float
    delay_s: float
    skewed: bool


class StageLag(msgspec.Struct, frozen=True, kw_only=True):
    """Event time until ``stage`` ("redis" or "mirror"), of every item update of the last minute in one process."""

    stage: str
    process: str
    p50_s: float
    p99_s: float
    seen: int


class PriorityGap(msgspec.Struct, frozen=True, kw_only=True):
    """Explanations of one priority. ``waiting``: asked for and not ended; ``oldest_s``: the age of the oldest of them,
    0 when none waits. Rates are those of the last half minute, None before a second of it was seen; ``p50_s``,
    ``p99_s``: from answer to explanation in the last minute, at the worker where they were worst."""

    priority: str
    waiting: int
    oldest_s: float | None
    arrival_per_s: float | None
    service_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    seen: int


class ExplanationGap(msgspec.Struct, frozen=True, kw_only=True):
    """``worker_per_s``: what one worker ends in a second of work, as seen last; ``workers_needed``: how many would do
    what arrives and, within a minute, what waits, each on a core of its own; None: nobody knows yet."""

    priorities: list[PriorityGap]
    workers: int
    worker_per_s: float | None
    workers_needed: int | None


class LagReport(msgspec.Struct, frozen=True, kw_only=True):
    """``watermark_age_s``: everything appended longer ago than this is in Redis; None when a partition's lag is not
    known. ``as_of_ms``: when this was looked at. ``dead_letters``: by reason, since today's workers began.
    ``explanations``: None in a system where nobody asks for any."""

    partitions: list[PartitionLag]
    watermark_age_s: float | None
    probe: ProbeFigures
    mirrors: list[MirrorState]
    sources: list[SourceState]
    freshness: list[StageLag]
    as_of_ms: int
    dead_letters: dict[str, int] = {}
    explanations: ExplanationGap | None = None
    by: str = "aif lag"

    def worst_s(self) -> float | None:
        """The largest age in the report: lag, watermark, mirrors, probe. None: one that should be known is not."""
        ages = [self.watermark_age_s, *(part.lag_s for part in self.partitions)]
        ages += [mirror.applied_age_s for mirror in self.mirrors if mirror.rows is not None]
        ages += [age for age in (self.probe.last_s, self.probe.open_s) if age is not None]
        known = [age for age in ages if age is not None]
        return None if len(known) < len(ages) else max(known, default=0.0)


def encode(report: LagReport) -> bytes:
    return msgspec.json.encode(report)


def decode(body: bytes) -> LagReport:
    """Raises ``msgspec.MsgspecError``."""
    return msgspec.json.decode(body, type=LagReport)


def rounded(value: float | None) -> float | None:
    """To the millisecond: stamps have no more."""
    return None if value is None else round(value, 3)


def facts_of(data: Any) -> dict[str, Any]:
    """JSON that should be an object; {} when it is another thing."""
    return data if isinstance(data, dict) else {}
