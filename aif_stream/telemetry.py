"""Logs and metrics: one line per batch or request, and the ``aif_*`` series of the contract.

Metrics are declared here, once, so that every role names them alike; a role only touches those it owns.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any, Final, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase

# Age and lag: from a millisecond (one hop on loopback) to a day (a worker that was away).
# Where updates usually are (below 0.1 s) a bucket is 10 ms wide at most: what a quantile read from it may be wrong by.
_LAG_BUCKETS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1),
    *(0.125, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 86400.0),
)
_STAGE_BUCKETS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02),
    *(0.025, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0),
)


class Gathers(Protocol):
    """Who keeps what it has seen and puts it into the series in one go (``flush``)."""

    def flush(self) -> None: ...


_GATHERING: Final[WeakSet[Gathers]] = WeakSet()


def gathers(who: Gathers) -> None:
    """``who.flush()`` is called before gathered series are read, as long as somebody holds it."""
    _GATHERING.add(who)


def flush_gathered() -> None:
    """Put what is still kept anywhere into its series."""
    for who in list(_GATHERING):
        who.flush()


class _GatheredHistogram(Histogram):
    """Up to date whenever it is collected, though its values come many at a time: one ``observe`` after the other costs
    2 µs for each of the eight values of a request."""

    def collect(self) -> Iterable[Metric]:
        flush_gathered()
        return super().collect()


class _GatheredCounter(Counter):
    """The same of a counter."""

    def collect(self) -> Iterable[Metric]:
        flush_gathered()
        return super().collect()


FRESHNESS_LAG = Histogram(
    "aif_freshness_lag_seconds",
    "Event time until the event is visible at a stage (redis, mirror, probe)",
    ["stage"],
    buckets=_LAG_BUCKETS_S,
)
FRESHNESS_RECENT = Gauge(
    "aif_freshness_recent_seconds",
    "The same over the last minute of one process: exact quantiles, where a histogram's are as wide as its buckets",
    ["stage", "process", "quantile"],
)
WATERMARK_AGE = Gauge(
    "aif_watermark_age_seconds", "Everything appended before now minus this is in Redis", ["partition"]
)
CONSUMER_LAG = Gauge("aif_consumer_lag_records", "Records not yet processed", ["group", "topic", "partition"])
CONSUMER_STATUS = Gauge(
    "aif_consumer_status", "0 OK, 1 WARN, 2 STALL, 3 STOP, by a sliding window", ["group", "topic", "partition"]
)
# The names that dashboards and rules of other lag exporters ask for.
GROUP_LAG = Gauge("kafka_consumergroup_group_lag", "Records not yet processed", ["group", "topic", "partition"])
GROUP_LAG_SECONDS = Gauge(
    "kafka_consumergroup_group_lag_seconds", "Age of the oldest one, not interpolated", ["group", "topic", "partition"]
)
MIRROR_AGE = Gauge("aif_mirror_applied_age_seconds", "Age of the oldest change that a mirror lacks", ["server"])
PROBE_OPEN = Gauge("aif_probe_open_seconds", "Age of the oldest probe that a server does not answer with yet")
PROBE_SEEN = Counter("aif_probes_seen_total", "Probes that every server has answered with")
CLOCK_AHEAD = Gauge(
    "aif_producer_clock_ahead_seconds", "Event time beyond append time, over the last seconds", ["source"]
)
SERVED_AGE = _GatheredHistogram("aif_served_age_seconds", "Median row age per answer", buckets=_LAG_BUCKETS_S)
RANK_SECONDS = _GatheredHistogram("aif_rank_seconds", "Rank request by stage", ["stage"], buckets=_STAGE_BUCKETS_S)
RETRIEVAL_SECONDS = Histogram(
    "aif_retrieval_seconds", "Search time of the reference upstream", ["channel"], buckets=_STAGE_BUCKETS_S
)
UPSTREAM_REFUSED = Counter(
    "aif_upstream_refused_total",
    "Connections closed because of bytes that no request asked for: unasked, surplus, another id",
    ["reason"],
)
OVERLAP_SAVED = _GatheredHistogram(
    "aif_overlap_saved_seconds", "User-side time hidden behind retrieval", buckets=_STAGE_BUCKETS_S
)
RANK_DEGRADED = Counter("aif_rank_degraded_total", "Answers that fell short, by reason", ["reason"])
RANK_SHED = Counter("aif_rank_shed_total", "Requests refused at once (503): more than could be answered in time")
IN_SERVICE = Gauge("aif_rank_in_service", "Rank requests being answered")
IN_SERVICE_LIMIT = Gauge("aif_rank_in_service_limit", "At most so many at once, by their measured cost")
LOOP_LAG = Histogram("aif_loop_lag_seconds", "How late the event loop runs what is due", buckets=_STAGE_BUCKETS_S)
USER_SIDES = Counter(
    "aif_user_sides_total", "User sides by where they came from: hit, shared with another request, computed", ["source"]
)
RANK_REQUESTS = _GatheredCounter("aif_rank_requests_total", "Rank requests by HTTP status", ["status"])
RANK_REPLAYED = Counter(
    "aif_rank_replayed_total", "Requests of aif replay by HTTP status; they are in no other count", ["status"]
)
REQUESTS_LOGGED = Counter("aif_requests_logged_total", "Answers in the request log, acknowledged by Kafka")
REQUESTS_DROPPED = Counter("aif_requests_dropped_total", "Answers not in the request log, by reason", ["reason"])
ROWS_WRITTEN = Counter("aif_rows_written_total", "N2O rows acknowledged by Redis", ["lane"])
ROWS_REJECTED_OLDER = Counter("aif_rows_rejected_older_total", "Events older than the stored one")
EVENTS_CONSUMED = Counter("aif_events_consumed_total", "Records taken from Kafka", ["lane"])
EVENTS_SKIPPED = Counter("aif_events_skipped_total", "Records that change nothing, by reason", ["lane", "reason"])
RECORDS_LOST = Counter("aif_records_lost_total", "Records that the broker dropped unread", ["topic"])
DEAD_LETTERS = Counter("aif_dead_letters_total", "Records put aside", ["reason"])
HISTORY_DROPPED = Counter("aif_history_entries_dropped_total", "History entries beyond the bound")
MIRROR_ROWS = Gauge("aif_mirror_rows", "Rows in this server's mirror", ["version"])
MODEL_VERSION = Gauge(
    "aif_model_version_info", "1 for each version that this server holds: active, canary or warm", ["version", "state"]
)
RANK_VERSION_SECONDS = _GatheredHistogram(
    "aif_rank_version_seconds",
    "Answered rank requests by the version that answered",
    ["version"],
    buckets=_STAGE_BUCKETS_S,
)
RANK_VERSION_DEGRADED = Counter(
    "aif_rank_version_degraded_total", "Answers that fell short, by the version that answered", ["version"]
)
REBUILD_PROGRESS = Gauge("aif_rebuild_progress_ratio", "Share of buckets rebuilt", ["version"])
ROWS_INVALID = Counter("aif_rows_invalid_total", "Rows marked invalid: features unusable for a version", ["version"])

EXPLAIN_FACTS = Counter("aif_explain_facts_total", "Facts of answers: kept, evicted, or not kept and why", ["outcome"])
EXPLANATIONS = Counter(
    "aif_explanations_total",
    "Explanations that ended, by final state and cache (none, exact, near)",
    ["state", "cache"],
)
EXPLANATION_GAP = Histogram(
    "aif_explanation_gap_seconds",
    "From the answer (from the asking, when that was later) to the whole explanation",
    ["priority"],
    buckets=_LAG_BUCKETS_S,
)
EXPLANATION_COARSE = Histogram(
    "aif_explanation_coarse_seconds", "The same, to the coarse part", ["priority"], buckets=_LAG_BUCKETS_S
)
EXPLAIN_BACKLOG = Gauge("aif_explanation_backlog", "Explanations asked for and not ended", ["priority"])
EXPLAIN_BACKLOG_AGE = Gauge(
    "aif_explanation_backlog_age_seconds", "Age of the oldest of them; NaN: unknown", ["priority"]
)
EXPLAIN_ARRIVAL = Gauge(
    "aif_explanation_arrival_per_second", "Explanations asked for per second, over half a minute", ["priority"]
)
EXPLAIN_SERVICE = Gauge(
    "aif_explanation_service_per_second", "Explanations ended per second, over half a minute", ["priority"]
)
EXPLAIN_WORKERS = Gauge(
    "aif_explanation_workers", "aif explain processes: there, and needed to close the gap (NaN: unknown)", ["which"]
)
EXPLAIN_SUBSCRIBERS = Gauge("aif_explanation_subscribers", "Streams (SSE, WebSocket) open at this server")
EXPLAIN_NEAR = Counter("aif_explain_near_total", "Near cache: hit, miss, compared, off", ["outcome"])
EXPLAIN_NEAR_DISAGREEMENT = Gauge(
    "aif_explain_near_disagreement_ratio", "Share of the effects that was elsewhere, mean of the last comparisons"
)
EXPLAIN_GATE = Counter("aif_explain_gate_seconds_total", "Time that explanations stood back for live traffic")


class _Still:
    """Stands in for a series that nobody wants to count."""

    def labels(self, *_: object, **__: object) -> _Still:
        return self

    def inc(self, *_: object) -> None: ...

    def collect(self) -> list[Any]:
        return []

    set = observe = set_function = remove = inc


def stand_still() -> None:
    """``AIF_METRICS=false``: from here on nothing is counted in this process. Called before a role is imported; what a
    module has imported by name already goes on."""
    for name, value in list(globals().items()):
        if isinstance(value, MetricWrapperBase):
            globals()[name] = _Still()


def observe_each(series: Histogram | _Still, values: NDArray[np.float64]) -> None:
    """Observe values (n), as ``observe`` for each of them would.

    prometheus_client takes one value at a time (2 µs, a tenth of what an event costs in all); here they are counted per
    bucket and added to the histogram's own counters. A test compares the two.
    """
    if isinstance(series, _Still) or not values.size:
        return
    places = np.searchsorted(series._upper_bounds, values, side="left")
    for bucket, count in enumerate(np.bincount(places).tolist()):
        if count:
            series._buckets[bucket].inc(count)
    series._sum.inc(float(values.sum()))


def counts(counter: Counter) -> dict[str, int]:
    """A counter of one label: its value by label."""
    found = (sample for family in counter.collect() for sample in family.samples if sample.name.endswith("_total"))
    return {next(iter(sample.labels.values())): int(sample.value) for sample in found}


class KeyValueFormatter(logging.Formatter):
    """``12:00:00.123 INFO nearline batch.written items=512 ms=9.1``: event first, then key=value."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}"
        line = f"{stamp} {record.levelname} {record.name.removeprefix('aif_stream.')} {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def configure_logging(level: str = "INFO") -> None:
    """Send the process's log to stderr in one form; stdout is for data. Called by the CLI only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These speak at INFO about every rebalance, request and library loaded; ours say it better. And at DEBUG aiokafka
    # writes every request out, the password of SASL PLAIN in it.
    for noisy in ("aiokafka", "kafka", "faust", "mode", "asyncio", "uvicorn", "faiss"):
        logging.getLogger(noisy).setLevel("WARNING")


def kv(event: str, **fields: Any) -> str:
    """One log line: ``kv("batch.written", items=3)`` -> ``batch.written items=3``."""
    return " ".join((event, *(f"{name}={_plain(value)}" for name, value in fields.items())))


def _plain(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text
