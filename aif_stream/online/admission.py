"""How many requests may be in service at once; one more is refused at once, while an answer would still be in time.

Requests queue for the compute threads. Beyond capacity the queue grows until every answer is late, those of the first
comers too. With N requests in service and each needing ``busy`` seconds of ``threads`` threads, a new one is answered
after about N · busy / threads (Little's law), so it is taken only while

    N < threads · (deadline / 3 + retrieval) / busy

``busy`` is wall time in threads, not CPU time: it grows when a core is shared with others, and the limit falls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aif_stream.errors import Overloaded
from aif_stream.settings import Settings
from aif_stream.telemetry import IN_SERVICE, IN_SERVICE_LIMIT, RANK_SHED

# Of the deadline, for the queue; the rest is for retrieval, the request's own work, and what the averages do not show.
_QUEUE_SHARE: Final = 1 / 3
# Before anything is measured a server takes too much rather than too little: it knows better after twenty requests.
_FIRST_BUSY_S: Final = 0.001
# Twenty requests to believe a change: a burst of large requests is over sooner, a new version is there to stay.
_WEIGHT: Final = 0.05
# Retrieval seems slow to a server that is late itself. Falling is believed at once, rising slowly, or overload would
# raise its own limit.
_RISE: Final = 0.01


class Admission:
    """Counts requests in service. For the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._threads = settings.executor_threads
        self._budget_s = settings.retrieval_budget_ms / 1000.0
        self._busy_s = _FIRST_BUSY_S
        self._retrieval_s: float | None = None
        self.in_service = 0
        self.shed = 0

    def limit(self, deadline_s: float) -> int:
        """Requests in service at most, for one with this deadline to be answered within it. Two per thread always: one
        at work, one waiting for it."""
        away_s = self._budget_s if self._retrieval_s is None else self._retrieval_s
        allowed = self._threads * (_QUEUE_SHARE * deadline_s + away_s) / max(self._busy_s, 1e-6)
        return max(2 * self._threads, int(allowed))

    @contextmanager
    def admit(self, deadline_s: float) -> Iterator[None]:
        """One request's stay. Raises ``Overloaded`` at once when there is no room."""
        limit = self.limit(deadline_s)
        if self.in_service >= limit:
            self.shed += 1
            RANK_SHED.inc()
            raise Overloaded(
                f"{self.in_service} requests are in service, more could not be answered in time",
                mend="try again after a moment, or add servers",
            )
        self.in_service += 1
        IN_SERVICE.set(self.in_service)
        IN_SERVICE_LIMIT.set(limit)
        try:
            yield
        finally:
            self.in_service -= 1
            IN_SERVICE.set(self.in_service)

    def observe(self, busy_s: float, retrieval_s: float) -> None:
        """What one answered request took: time in threads, and waiting for the upstream (0 when it named its own)."""
        self._busy_s += _WEIGHT * (busy_s - self._busy_s)
        retrieval_s = min(retrieval_s, self._budget_s)
        known_s = retrieval_s if self._retrieval_s is None else self._retrieval_s
        weight = _RISE if retrieval_s > known_s else _WEIGHT
        self._retrieval_s = known_s + weight * (retrieval_s - known_s)
