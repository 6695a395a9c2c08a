"""Event time until visible in Redis, as a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream import clock
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import NEARLINE_SOURCE
from aif_stream.clock import from_rfc3339
from aif_stream.domain.freshness import RecentLags, SourceClocks
from aif_stream.telemetry import FRESHNESS_LAG, observe_each

# Enough to meet every producer within a second at any rate, at 0.1 µs per event of a full batch.
_CLOCKS_PER_BATCH: Final = 16
_NAME_BYTES: Final = 256  # leases and metrics carry the names
RECENT_ITEMS: Final = RecentLags()
"""This process's lags of items until Redis, as exact numbers; like a metric, one per process."""
_SOURCE_HEADER: Final = ("ce_source", NEARLINE_SOURCE.encode())


def published_again(record: Record) -> bool:
    """Whether a record is a winner published again: its event has been visible before and says nothing of lag."""
    return _SOURCE_HEADER in record.headers


def note_clocks(clocks: SourceClocks, records: Sequence[Record]) -> None:
    """Compare the event times of some records with the broker's, by producer. Unreadable ones say nothing here, nor do
    those of a source whose name is too long to be told."""
    now_s = clock.monotonic_s()
    for record in records[:: -(-len(records) // _CLOCKS_PER_BATCH) or 1]:
        headers = dict(record.headers)
        name, time = headers.get("ce_source"), headers.get("ce_time")
        if name is None or time is None or len(name) > _NAME_BYTES:
            continue
        try:
            source, event_ms = name.decode(), from_rfc3339(time.decode())
        except (ValueError, OverflowError):
            continue
        if source != NEARLINE_SOURCE:
            clocks.note(source, event_ms, record.timestamp, now_s)


def seen_in_redis(
    event_times_ms: Sequence[int] | NDArray[np.int64], now_ms: int, recent: RecentLags | None = None
) -> None:
    """Observe one batch that Redis has acknowledged at ``now_ms``. Clocks may differ: a lag is never negative.

    The times are when each update's way began (``domain.freshness.began_ms``); ``recent`` is told, too.
    """
    if not len(event_times_ms):
        return
    lags_s = np.maximum(now_ms - np.asarray(event_times_ms, dtype=np.int64), 0) / 1000
    if recent is not None:
        recent.add(lags_s, clock.monotonic_s())
    observe_each(FRESHNESS_LAG.labels("redis"), lags_s)
