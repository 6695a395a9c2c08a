"""The gap between an answer and its explanation: how fast explanations are asked for and done, and who would close it.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from aif_stream.domain.window import RATE_AFTER_S, SlidingWindow

# Explanations take from some 10 ms to seconds: half a minute of them gives a rate, and forgets a burst soon enough.
GAP_WINDOW_S: Final = 30.0
CLOSE_WITHIN_S: Final = 60.0
"""What waits now should be done within this: a person who asked is gone after it, and a new worker needs some of it."""


class Count(NamedTuple):
    """Two counters that only grow, read at one moment."""

    at_s: float
    one: float
    other: float

    def follows(self, before: Count) -> bool:
        return self.one >= before.one and self.other >= before.other


@dataclass(slots=True)
class Counts(SlidingWindow[Count]):
    """The last half minute of two counters."""

    span_s: float = GAP_WINDOW_S

    @property
    def grown(self) -> tuple[float, float]:
        """By how much each counter grew over the window."""
        if not self.samples:
            return 0.0, 0.0
        first, last = self.samples[0], self.samples[-1]
        return last.one - first.one, last.other - first.other

    @property
    def per_s(self) -> tuple[float, float] | None:
        """The same per second; None while the window is too short to tell."""
        if self.covers_s < RATE_AFTER_S:
            return None
        one, other = self.grown
        return one / self.covers_s, other / self.covers_s


def workers_to_close(waiting: int, arrival_per_s: float, worker_per_s: float, within_s: float = CLOSE_WITHIN_S) -> int:
    """Workers that do what arrives and, within ``within_s``, what waits; each does ``worker_per_s`` > 0 while it has
    work. 0 when there is nothing to do."""
    return math.ceil((arrival_per_s + waiting / within_s) / worker_per_s)
