"""A report as metrics: lag under our names and under those of other exporters, watermarks, status, mirrors, clocks, and
the exact quantiles of freshness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from prometheus_client import Gauge

from aif_stream.bus.groups import LIVE_GROUPS
from aif_stream.domain.freshness import Status
from aif_stream.freshness.report import ExplanationGap, LagReport
from aif_stream.index.leases import MONITOR
from aif_stream.telemetry import (
    CLOCK_AHEAD,
    CONSUMER_LAG,
    CONSUMER_STATUS,
    EXPLAIN_ARRIVAL,
    EXPLAIN_BACKLOG,
    EXPLAIN_BACKLOG_AGE,
    EXPLAIN_SERVICE,
    EXPLAIN_WORKERS,
    FRESHNESS_RECENT,
    GROUP_LAG,
    GROUP_LAG_SECONDS,
    MIRROR_AGE,
    WATERMARK_AGE,
)

OVERALL: Final = "all"
"""``partition`` label of the watermark over everything."""
Labels = tuple[str, ...]
_NUMBERS: Final = {status: number for number, status in enumerate(Status)}


class Exporter:
    """``show`` sets every gauge; series of processes and sources that are no longer there end."""

    def __init__(self) -> None:
        self._shown: dict[Gauge, set[Labels]] = {MIRROR_AGE: set(), CLOCK_AHEAD: set(), FRESHNESS_RECENT: set()}

    def show(self, report: LagReport) -> None:
        for part in report.partitions:
            where = (part.group, part.topic, str(part.partition))
            age_s = _number(part.lag_s)
            CONSUMER_LAG.labels(*where).set(part.lag_records)
            GROUP_LAG.labels(*where).set(part.lag_records)
            GROUP_LAG_SECONDS.labels(*where).set(age_s)
            CONSUMER_STATUS.labels(*where).set(_NUMBERS[part.status])
            if part.group in LIVE_GROUPS:
                WATERMARK_AGE.labels(f"{part.topic}-{part.partition}").set(age_s)
        WATERMARK_AGE.labels(OVERALL).set(_number(report.watermark_age_s))
        ages: dict[Labels, float | None] = {
            (mirror.server,): mirror.applied_age_s for mirror in report.mirrors if mirror.rows is not None
        }
        self._show(MIRROR_AGE, ages)
        self._show(CLOCK_AHEAD, {(source.source,): source.ahead_s for source in report.sources})
        recent = [(lag.stage, lag.process, lag.p50_s, lag.p99_s) for lag in report.freshness]
        if report.probe.p50_s is not None:
            recent.append(("probe", MONITOR, report.probe.p50_s, report.probe.p99_s or 0.0))
        told: dict[Labels, float | None] = {(stage, process, "0.5"): p50_s for stage, process, p50_s, _ in recent}
        told |= {(stage, process, "0.99"): p99_s for stage, process, _, p99_s in recent}
        self._show(FRESHNESS_RECENT, told)
        if report.explanations is not None:
            _show_gap(report.explanations)

    def _show(self, gauge: Gauge, values: Mapping[Labels, float | None]) -> None:
        for gone in self._shown[gauge] - values.keys():
            gauge.remove(*gone)
        self._shown[gauge] = set(values)
        for labels, value in values.items():
            gauge.labels(*labels).set(_number(value))


def _show_gap(gap: ExplanationGap) -> None:
    for each in gap.priorities:
        EXPLAIN_BACKLOG.labels(each.priority).set(each.waiting)
        EXPLAIN_BACKLOG_AGE.labels(each.priority).set(_number(each.oldest_s))
        EXPLAIN_ARRIVAL.labels(each.priority).set(_number(each.arrival_per_s))
        EXPLAIN_SERVICE.labels(each.priority).set(_number(each.service_per_s))
    EXPLAIN_WORKERS.labels("there").set(gap.workers)
    EXPLAIN_WORKERS.labels("needed").set(_number(gap.workers_needed))


def _number(value: float | None) -> float:
    """Not known is not 0."""
    return math.nan if value is None else value
