"""Three clocks: wall time for stamps that leave the process, monotonic time for durations, CPU time for costs."""

from __future__ import annotations

import functools
import sys
import time
from datetime import UTC, datetime
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Wall time in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()


def elapsed_ms(since_s: float) -> float:
    """Milliseconds since a ``monotonic_s`` reading."""
    return (time.monotonic() - since_s) * 1000.0


def cpu_ms() -> float:
    """Milliseconds of CPU that this process has spent, all threads together; only differences mean anything."""
    return time.process_time_ns() / 1e6


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has spent, all its threads together (ended ones too), in steps of nanoseconds; only
    differences mean anything. Linux tells it, by the clock id that clock_getcpuclockid(3) makes; elsewhere 0.

    Raises ``OSError`` when there is no such process.
    """
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime((~pid << 3) | 2)


def to_rfc3339(ms: int) -> str:
    """``1700000000123`` -> ``2023-11-14T22:13:20.123Z`` (the form of CloudEvents' ``time``)."""
    seconds, rest = divmod(ms, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@functools.lru_cache(maxsize=64)  # of what is written in a row many share a second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def from_rfc3339(text: str) -> int:
    """The reverse of ``to_rfc3339``; any RFC 3339 offset is accepted.

    Raises ``ValueError`` when the text is no time or carries no offset.
    """
    stamp = datetime.fromisoformat(text)
    if stamp.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    since = stamp - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000
