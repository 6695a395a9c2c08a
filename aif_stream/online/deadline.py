"""One deadline per request; every wait takes its share of what is left."""

from __future__ import annotations

from dataclasses import dataclass

from aif_stream.clock import elapsed_ms, monotonic_s


@dataclass(frozen=True, slots=True)
class Deadline:
    """Monotonic seconds: when the request began and when its answer is due."""

    started_s: float
    due_s: float

    @classmethod
    def after(cls, ms: float) -> Deadline:
        """Due ``ms`` from now."""
        now_s = monotonic_s()
        return cls(now_s, now_s + ms / 1000.0)

    def left_s(self, reserve_s: float = 0.0, at_most_s: float = float("inf")) -> float:
        """Seconds until it is due, less what later stages need; never negative, never more than ``at_most_s``."""
        return min(max(0.0, self.due_s - reserve_s - monotonic_s()), at_most_s)

    def elapsed_ms(self) -> float:
        """Milliseconds since the request began."""
        return elapsed_ms(self.started_s)


class Reserve:
    """How much of a deadline join and scoring will need: a slowly moving average, with a margin.

    Without it a request that waits for retrieval to its last millisecond would have no time left to score.
    """

    # Enough for a top-k and the JSON of a thousand items when nothing has been measured yet.
    _LEAST_S = 0.005
    _WEIGHT = 0.1
    _MARGIN = 1.5

    def __init__(self) -> None:
        self._mean_s = 0.0

    def observe(self, seconds: float) -> None:
        """Take in what one request needed after retrieval."""
        self._mean_s += self._WEIGHT * (seconds - self._mean_s)

    def of(self, deadline: Deadline) -> float:
        """Seconds to keep back; never more than half of the whole deadline."""
        return min(max(self._LEAST_S, self._MARGIN * self._mean_s), (deadline.due_s - deadline.started_s) / 2)
