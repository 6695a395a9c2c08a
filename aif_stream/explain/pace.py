"""What a worker got done and how long it was at work, for whoever reckons how many workers are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from aif_stream.clock import monotonic_s
from aif_stream.domain.explanations import Priority
from aif_stream.domain.freshness import RecentLags
from aif_stream.telemetry import EXPLANATION_GAP

# A worker does some tens of them a second: a minute's gaps, exactly.
_RECENT: Final = 4_096


class Pace:
    """``done`` tasks ended in ``occupied_s`` seconds in which there was at least one to work on (its waiting for live
    traffic counts: that is what a worker is worth while servers are as busy as they are)."""

    def __init__(self) -> None:
        self.done = 0
        self._occupied_s = 0.0
        self._at_work = 0
        self._since_s = 0.0
        self._gaps = {priority: RecentLags(_RECENT) for priority in Priority}

    @contextmanager
    def working(self) -> Iterator[None]:
        """A lane has something to do."""
        if not self._at_work:
            self._since_s = monotonic_s()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._occupied_s += monotonic_s() - self._since_s

    @property
    def occupied_s(self) -> float:
        return self._occupied_s + (monotonic_s() - self._since_s if self._at_work else 0.0)

    def explained(self, priority: Priority, gap_s: float) -> None:
        """A whole explanation, so long after its answer."""
        EXPLANATION_GAP.labels(priority=priority).observe(gap_s)
        self._gaps[priority].add(np.array([gap_s]), monotonic_s())

    def facts(self) -> dict[str, Any]:
        """For the lease: counters, and each priority's gaps of the last minute."""
        gaps = {priority.value: lags.read(monotonic_s()) for priority, lags in self._gaps.items()}
        return {"done": self.done, "occupied_s": round(self.occupied_s, 3), "gaps": gaps}
