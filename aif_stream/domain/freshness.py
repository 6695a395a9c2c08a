"""The arithmetic of freshness: watermarks from positions, status from a sliding window, skewed clocks by source.

Pure: no I/O, no clock; callers say what time it is. Nothing here is interpolated: an age is the time since the append
of a record that is there, or 0 when there is none.

The statuses follow Burrow's rules (github.com/linkedin/Burrow/wiki/Consumer-Lag-Evaluation-Rules): no threshold on
offsets or lag, only what the last seconds looked like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import key_of
from aif_stream.domain.quantiles import quantiles
from aif_stream.domain.window import RATE_AFTER_S, SlidingWindow

PROBE_ITEM: Final = "aif:probe"
"""Id of the item that ``aif monitor`` updates. Reserved: retrieval never names it, a server ranks it alone or not at
all, request logs and training data leave it out."""
PROBE_USER: Final = "aif:probe"
"""The user as whom it is ranked: without profile, history, or behaviors."""
PROBE_KEY: Final = key_of(PROBE_ITEM)

WINDOW_S: Final = 10.0
# Two of these looks away from a false alarm (a batch takes milliseconds), ten seconds within the fifteen promised.
STALL_AFTER_S: Final = 5.0
# Hosts that keep time by NTP agree within a tenth of this. Less is not told from the broker's own error.
SKEW_S: Final = 0.5
SKEW_WINDOW_S: Final = 10.0
RECENT_S: Final = 60.0
_RECENT: Final = 65_536  # a minute at 1,000 updates/s, half a minute at 2,000; 768 KiB
_MAX_SOURCES: Final = 64  # names are the producers' own; a hundred of them would be an id by mistake
_OTHERS: Final = "(others)"


class Status(StrEnum):
    """From good to bad."""

    OK = "OK"
    WARN = "WARN"
    STALL = "STALL"
    STOP = "STOP"


class Presence(StrEnum):
    """What is known of the process that should read a partition."""

    LIVE = "live"
    STUCK = "stuck"  # there, but it answers nobody
    GONE = "gone"
    UNKNOWN = "unknown"


class Sample(NamedTuple):
    """One look at a group's partition. ``next_ms``: append time of the record at ``position``; None when nobody
    could read it, or there is none."""

    at_s: float
    position: int
    end: int
    next_ms: int | None = None

    @property
    def lag_records(self) -> int:
        return max(0, self.end - self.position)

    def follows(self, before: Sample) -> bool:
        """False when the group was reset, or Redis forgot."""
        return self.position >= before.position


class Verdict(NamedTuple):
    """``reason`` is for people; empty when all is well."""

    status: Status
    reason: str = ""


def lag_s(sample: Sample, now_ms: int) -> float | None:
    """Age of the oldest record that is not done; 0 when all are; None when that record could not be read.

    The clocks of broker and reader may differ a little: never negative.
    """
    if not sample.lag_records:
        return 0.0
    return None if sample.next_ms is None else max(0, now_ms - sample.next_ms) / 1000


def watermark_age_s(lags_s: Iterable[float | None]) -> float | None:
    """Everything appended longer ago than this is done: the worst of the partitions; an idle one counts as now.

    None when one of them is not known: then nothing can be promised.
    """
    worst = 0.0
    for lag in lags_s:
        if lag is None:
            return None
        worst = max(worst, lag)
    return worst


@dataclass(slots=True)
class Window(SlidingWindow[Sample]):
    """The looks of the last seconds at one partition."""

    span_s: float = WINDOW_S

    @property
    def rate_per_s(self) -> float:
        """Records done per second over the window; 0 while it is too short to tell."""
        if self.covers_s < RATE_AFTER_S:
            return 0.0
        return (self.samples[-1].position - self.samples[0].position) / self.covers_s

    @property
    def catch_up_s(self) -> float | None:
        """Seconds until the lag is gone if the last seconds go on like this; None when it does not shrink."""
        if not self.samples or not self.samples[-1].lag_records:
            return 0.0
        drained = self.samples[0].lag_records - self.samples[-1].lag_records
        return self.samples[-1].lag_records / (drained / self.covers_s) if drained > 0 else None

    def judge(self, presence: Presence) -> Verdict:
        """STOP: nobody is there. STALL: somebody is, and does not get on. WARN: falling behind. OK otherwise."""
        lags = [sample.lag_records for sample in self.samples]
        if presence is Presence.GONE:
            return Verdict(Status.STOP, "no consumer")
        if presence is Presence.STUCK:
            return Verdict(Status.STALL, "the consumer's process is there but does not answer")
        if not lags or min(lags) == 0 or self.covers_s < STALL_AFTER_S:
            return Verdict(Status.OK)
        if self.samples[-1].position == self.samples[0].position:
            return Verdict(Status.STALL, f"no progress for {self.covers_s:.0f} s")
        if lags[-1] > lags[0] and all(after >= before for before, after in pairwise(lags)):
            return Verdict(Status.WARN, "slower than its producers")
        return Verdict(Status.OK)


class SourceClock(NamedTuple):
    """How a producer's clock stands to the broker's. ``ahead_s`` > 0: its events claim to be later than their append,
    which cannot be. ``delay_s``: the least time between event and append; large for a clock that is behind as well as
    for a pipeline that is late, which from here look alike."""

    source: str
    ahead_s: float
    delay_s: float

    @property
    def skewed(self) -> bool:
        return self.ahead_s > SKEW_S


class SourceClocks:
    """Event time against append time, by ``ce_source``, over the last seconds."""

    def __init__(self, span_s: float = SKEW_WINDOW_S) -> None:
        self._span_s = span_s
        self._steps: dict[str, deque[tuple[float, int, int]]] = {}  # (second, least delay, largest lead), ms

    def note(self, source: str, event_ms: int, append_ms: int, now_s: float) -> None:
        """One record; ``now_s`` monotonic."""
        if source not in self._steps and len(self._steps) >= _MAX_SOURCES:
            source = _OTHERS
        steps = self._steps.setdefault(source, deque())
        delay, lead = append_ms - event_ms, event_ms - append_ms
        if steps and now_s - steps[-1][0] < 1.0:
            at, least, most = steps[-1]
            steps[-1] = (at, min(least, delay), max(most, lead))
        else:
            steps.append((now_s, delay, lead))
            while now_s - steps[0][0] > self._span_s:
                steps.popleft()

    def read(self, now_s: float) -> list[SourceClock]:
        """Sources heard of within the window, by name; older ones are forgotten."""
        for source in list(self._steps):
            steps = self._steps[source]
            while steps and now_s - steps[0][0] > self._span_s:
                steps.popleft()
            if not steps:
                del self._steps[source]
        return [
            SourceClock(
                source,
                max(0, *(lead for _, _, lead in steps), 0) / 1000,
                max(0, min(least for _, least, _ in steps)) / 1000,
            )
            for source, steps in sorted(self._steps.items())
        ]


class RecentLags:
    """The lags of the last minute (at most the last 65,536), for exact quantiles beside a histogram's."""

    def __init__(self, kept: int = _RECENT, span_s: float = RECENT_S) -> None:
        self._lags_s = np.zeros(kept, np.float32)
        self._at_s = np.full(kept, -np.inf)
        self._next = 0
        self._span_s = span_s

    def add(self, lags_s: NDArray[np.float64], now_s: float) -> None:
        """Lags (n) in seconds, seen now (monotonic)."""
        lags_s = lags_s[-self._at_s.size :]
        places = np.arange(self._next, self._next + lags_s.size) % self._at_s.size
        self._lags_s[places], self._at_s[places] = lags_s, now_s
        self._next = (self._next + lags_s.size) % self._at_s.size

    def read(self, now_s: float) -> dict[str, float | int]:
        """``p50_s``, ``p99_s`` and how many were ``seen``; {} when none was within the last minute."""
        recent = self._recent(now_s)
        if not recent.size:
            return {}
        p50, p99 = quantiles(recent, 0.5, 0.99)
        return {"p50_s": round(p50, 4), "p99_s": round(p99, 4), "seen": int(recent.size)}

    def histogram(self, edges_s: Sequence[float], now_s: float) -> list[int]:
        """How many lags of the last minute are below each edge and not below the one before; the last count is of those
        beyond all edges."""
        places = np.searchsorted(np.asarray(edges_s, np.float32), self._recent(now_s), side="right")
        return [int(count) for count in np.bincount(places, minlength=len(edges_s) + 1)]

    def _recent(self, now_s: float) -> NDArray[np.float32]:
        return self._lags_s[self._at_s > now_s - self._span_s]


def began_ms(event_time_ms: int, append_time_ms: int) -> int:
    """When an update's way began, for a freshness lag: its event time, but never after the broker took it.

    An event time beyond the append time is a wrong clock; taken as it is, it would hide the lag.
    """
    return min(event_time_ms, append_time_ms)
