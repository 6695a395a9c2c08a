"""How many requests may be in service at once; one more is refused at once, while an answer would still be in time.

Beyond capacity a queue grows (of the compute threads, the event loop, the core itself) until every answer is late,
those of the first comers too. With N requests in service and ``cost`` seconds of the scarcest resource for each, a new
one is answered after about N · cost (Little's law), so it is taken only while

    N < factor · (deadline / 5 + retrieval) / cost

``cost``: the larger of wall time in threads per thread, and CPU time of the whole process per core: so the loop's share
counts, HTTP, JSON and refusals among it, and cores shared with others (wall time grows then). ``factor`` (1/4 … 1)
corrects what the two do not show: it falls while answers take longer than a third of their deadline beside retrieval,
and rises again slowly. About a quarter of the answers may take longer before it settles.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aif_stream.clock import monotonic_s
from aif_stream.errors import Overloaded
from aif_stream.settings import Settings
from aif_stream.telemetry import IN_SERVICE, IN_SERVICE_LIMIT, RANK_SHED

# Of the deadline, for queue and own work: a fifth of 150 ms, beside 10 ms of retrieval, keeps the mean near 40 ms and
# leaves room for a p99 of 60. Little's law speaks of means; a third (before) gave a p99 of 246.
_QUEUE_SHARE: Final = 1 / 5
# Answers that take longer than this are late: more than the queue should take, less than the deadline. On a core
# that is shared with much else, a fifth would refuse what could still be answered well in time.
_LATE_SHARE: Final = 1 / 3
# Before anything is measured a server takes too much rather than too little: it knows better after twenty requests.
_FIRST_BUSY_S: Final = 0.001
# Twenty requests to believe a change: a burst of large requests is over sooner, a new version is there to stay.
_WEIGHT: Final = 0.05
# Retrieval seems slow to a server that is late itself. Falling is believed at once, rising slowly, or overload would
# raise its own limit.
_RISE: Final = 0.01
_FACTOR_DOWN: Final = 0.97
_FACTOR_UP: Final = 1.01
_LEAST_FACTOR: Final = 0.25


class Admission:
    """Counts requests in service. For the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._threads = settings.executor_threads
        # More threads than cores wait for each other; more cores than threads are not used.
        self._cores = min(len(os.sched_getaffinity(0)), self._threads) if hasattr(os, "sched_getaffinity") else 1
        self._budget_s = settings.retrieval_budget_ms / 1000.0
        self._usual_s = settings.deadline_ms / 1000.0
        self._busy_s = _FIRST_BUSY_S
        self._cpu_s = _FIRST_BUSY_S
        self._cpu_before_s: float | None = None
        self._retrieval_s: float | None = None
        self._factor = 1.0
        self._limit = 0  # the last one that a request was measured by
        self.in_service = 0
        self.shed = 0
        IN_SERVICE.set_function(lambda: self.in_service)
        IN_SERVICE_LIMIT.set_function(lambda: self._limit)

    def limit(self, deadline_s: float) -> int:
        """Requests in service at most, for one with this deadline to be answered within it. Two per thread always: one
        at work, one waiting for it."""
        away_s = self._budget_s if self._retrieval_s is None else self._retrieval_s
        cost_s = max(self._busy_s / self._threads, self._cpu_s / self._cores, 1e-6)
        return max(2 * self._threads, int(self._factor * (_QUEUE_SHARE * deadline_s + away_s) / cost_s + 1e-9))

    def check(self, deadline_s: float | None = None) -> int:
        """The limit. Raises ``Overloaded`` when there is no room (for a request of the usual deadline unless given)."""
        limit = self.limit(self._usual_s if deadline_s is None else deadline_s)
        if self.in_service >= limit:
            self.shed += 1
            RANK_SHED.inc()
            raise Overloaded(
                f"{self.in_service} requests are in service, more could not be answered in time",
                mend="try again after a moment, or add servers",
            )
        return limit

    @contextmanager
    def admit(self, deadline_s: float) -> Iterator[None]:
        """One request's stay. Raises ``Overloaded`` at once when there is no room."""
        self._limit = self.check(deadline_s)
        self.in_service += 1
        try:
            yield
        finally:
            self.in_service -= 1

    def observe(self, busy_s: float, retrieval_s: float, *, began_s: float, deadline_s: float) -> None:
        """What one answered request took: time in threads, waiting for the upstream (0: it named its own), and since
        ``began_s`` (monotonic) all together."""
        self._busy_s += _WEIGHT * (busy_s - self._busy_s)
        own_s = monotonic_s() - began_s - retrieval_s
        late = own_s > _LATE_SHARE * deadline_s
        self._factor = min(1.0, max(_LEAST_FACTOR, self._factor * (_FACTOR_DOWN if late else _FACTOR_UP)))
        retrieval_s = min(retrieval_s, self._budget_s)
        known_s = retrieval_s if self._retrieval_s is None else self._retrieval_s
        weight = _RISE if retrieval_s > known_s else _WEIGHT
        self._retrieval_s = known_s + weight * (retrieval_s - known_s)
        self._observe_cpu()

    def _observe_cpu(self) -> None:
        """CPU time of the process since the last answer: what runs between two answers belongs to one of them. An idle
        server's housekeeping does so too, but no more than the last answers' cost tenfold is believed."""
        now_s = time.process_time()
        if self._cpu_before_s is not None:
            spent_s = min(now_s - self._cpu_before_s, 10.0 * max(self._cpu_s, _FIRST_BUSY_S))
            self._cpu_s += _WEIGHT * (spent_s - self._cpu_s)
        self._cpu_before_s = now_s
