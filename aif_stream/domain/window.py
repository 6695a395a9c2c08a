"""A sliding window: what the last seconds of counters that only grow looked like.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

RATE_AFTER_S: Final = 1.0
"""Seconds that a window has to cover before a rate is told from it."""


class Look(Protocol):
    """Counters, read at one moment."""

    @property
    def at_s(self) -> float: ...

    def follows(self, before: Self) -> bool:
        """False when a counter went back: another process, another log, a group that was reset."""
        ...


L = TypeVar("L", bound=Look)


@dataclass(slots=True)
class SlidingWindow(Generic[L]):
    """The looks of the last ``span_s`` seconds, oldest first; one that does not follow the look before it begins anew,
    for the past says nothing then."""

    span_s: float
    samples: deque[L] = field(default_factory=deque)

    def add(self, sample: L) -> None:
        if self.samples and not sample.follows(self.samples[-1]):
            self.samples.clear()
        self.samples.append(sample)
        while sample.at_s - self.samples[0].at_s > self.span_s:
            self.samples.popleft()

    @property
    def covers_s(self) -> float:
        return self.samples[-1].at_s - self.samples[0].at_s if self.samples else 0.0
