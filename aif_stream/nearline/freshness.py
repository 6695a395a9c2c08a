"""Event time until visible in Redis, as a histogram."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aif_stream.bus.consumer import Record
from aif_stream.telemetry import FRESHNESS_LAG

NEARLINE_SOURCE: Final = "aif.nearline"
"""``ce_source`` of winners that this worker publishes again."""

_SOURCE_HEADER: Final = ("ce_source", NEARLINE_SOURCE.encode())


def published_again(record: Record) -> bool:
    """Whether a record is a winner published again: its event has been visible before and says nothing of lag."""
    return _SOURCE_HEADER in record.headers


def seen_in_redis(event_times_ms: Iterable[int], now_ms: int) -> None:
    """Observe one batch that Redis has acknowledged at ``now_ms``. Clocks may differ: a lag is never negative."""
    observe = FRESHNESS_LAG.labels("redis").observe
    for event_time_ms in event_times_ms:
        observe(max(0, now_ms - event_time_ms) / 1000)
