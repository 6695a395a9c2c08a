"""Whether one request more is taken, or refused at once while its client can still go elsewhere.

Beyond capacity a queue grows (of the compute threads, the event loop, the core itself) until every answer is late,
those of the first comers too. So what a request would wait for is known before it is taken. Compute threads do first
what was asked first (``ComputeThreads``), so a new request is answered when its candidates are there and the work of
all those before it is done: after about max(retrieval, ahead) + cost. It is taken while

    ahead + cost <= factor · (deadline / 4 + retrieval)        ahead = N · cost - n · user

N requests in service, ``cost`` seconds of the scarcest resource for each; n of them have their user side, whose work
(``user``) is done. A count alone, N · cost, refuses bursts that mostly wait for retrieval, their work half done: a
twentieth of the requests at two thirds of the capacity (Poisson arrivals).

``cost``: the larger of wall time in threads and CPU time of the whole process, per thread: so the loop's share counts,
HTTP, JSON and refusals among it, and cores shared with others (wall time grows then).

``factor`` (1/4 … 1) is the smaller of two. One corrects what ``cost`` does not show: it falls while answers take longer
than a third of their deadline beside retrieval, and rises again slowly. The other tells a burst from overload: a queue
that ends within a deadline is a burst, and waiting is right; one that never ends serves nobody, all wait for its whole
length and no more are answered than with a short one (Nichols and Jacobson, Controlling Queue Delay, 2012). So it falls
for each deadline in which there was always more to do than ``retrieval`` (or one request) takes, for with less a core
might idle until candidates come, and rises for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aif_stream.clock import monotonic_s
from aif_stream.errors import Overloaded
from aif_stream.settings import Settings
from aif_stream.telemetry import IN_SERVICE, IN_SERVICE_LIMIT, RANK_SHED

# Of the deadline, for queue and own work: as requests leave in the order of their coming, this and retrieval are about
# the latest that one is answered, 48 ms of 150 beside a retrieval of 10. A fifth answers the last one 8 ms sooner and
# refuses .6 % of a Poisson load at two thirds of the capacity (18 of 3,000).
_QUEUE_SHARE: Final = 1 / 4
# Answers that take longer than this are late: more than the queue should take, less than the deadline. On a core
# that is shared with much else, a quarter would refuse what could still be answered well in time.
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
# Per deadline. Falling twice as fast as it rises, it settles where the queue stands for a third of the time, and is
# back from a half after two seconds (deadlines of 150 ms).
_STANDING_DOWN: Final = 0.9
_STANDING_UP: Final = 1.05


class Admission:
    """Counts requests in service. For the event loop only."""

    def __init__(self, settings: Settings, threads: int) -> None:
        """``threads`` compute, each on a core of its own."""
        self._threads = threads
        self._budget_s = settings.retrieval_budget_ms / 1000.0
        self._usual_s = settings.deadline_ms / 1000.0
        self._busy_s = _FIRST_BUSY_S
        self._cpu_s = _FIRST_BUSY_S
        self._user_s = 0.0
        self._cpu_before_s: float | None = None
        self._retrieval_s: float | None = None
        self._limit = 0  # the last one that a request was measured by
        self._prompt = 1.0  # the factor of answers in time
        self._moving = 1.0  # the factor of queues that end
        self._least_s = float("inf")  # to do since _since_s, at arrivals
        self._since_s = monotonic_s()
        self.in_service = 0
        self.with_user = 0  # of them, those whose user side is done
        self.shed = 0
        IN_SERVICE.set_function(lambda: self.in_service)
        IN_SERVICE_LIMIT.set_function(lambda: self._limit)

    def limit(self, deadline_s: float) -> int:
        """Requests in service at most, for one with this deadline to be answered within it, as far as those that are in
        service have come. Two per thread always: one at work, one waiting for it."""
        room_s = min(self._prompt, self._moving) * (_QUEUE_SHARE * deadline_s + self._away_s)
        return max(2 * self._threads, int((room_s + self._done_s) / self._cost_s + 1e-9))

    def check(self, deadline_s: float | None = None) -> int:
        """The limit. Raises ``Overloaded`` when there is no room (for a request of the usual deadline unless given)."""
        self._look()
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
    def admit(self, deadline_s: float) -> Iterator[Stay]:
        """One request's stay. Raises ``Overloaded`` at once when there is no room."""
        self._limit = self.check(deadline_s)
        stay = Stay(self)
        self.in_service += 1
        try:
            yield stay
        finally:
            self.in_service -= 1
            self.with_user -= stay.has_user

    def observe(
        self, busy_s: float, scoring_s: float, retrieval_s: float, *, began_s: float, deadline_s: float
    ) -> None:
        """What one answered request took: time in threads (``scoring_s`` of it not for the user side), waiting for the
        upstream (0: it named its own), and since ``began_s`` (monotonic) all together."""
        self._busy_s += _WEIGHT * (busy_s - self._busy_s)
        self._user_s += _WEIGHT * (max(0.0, busy_s - scoring_s) - self._user_s)
        own_s = monotonic_s() - began_s - retrieval_s
        late = own_s > _LATE_SHARE * deadline_s
        self._prompt = _bounded(self._prompt * (_FACTOR_DOWN if late else _FACTOR_UP))
        retrieval_s = min(retrieval_s, self._budget_s)
        known_s = retrieval_s if self._retrieval_s is None else self._retrieval_s
        weight = _RISE if retrieval_s > known_s else _WEIGHT
        self._retrieval_s = known_s + weight * (retrieval_s - known_s)
        self._observe_cpu()

    @property
    def _away_s(self) -> float:
        return self._budget_s if self._retrieval_s is None else self._retrieval_s

    @property
    def _cost_s(self) -> float:
        return max(self._busy_s, self._cpu_s, 1e-6) / self._threads

    @property
    def _done_s(self) -> float:
        return self.with_user * self._user_s / self._threads

    def _look(self) -> None:
        """At each arrival: does the queue ever end?"""
        self._least_s = min(self._least_s, self.in_service * self._cost_s - self._done_s)
        passed = (monotonic_s() - self._since_s) / self._usual_s
        if passed < 1.0:
            return
        standing = self._least_s > max(self._away_s, self._cost_s)
        self._moving = _bounded(self._moving * (_STANDING_DOWN if standing else _STANDING_UP ** min(passed, 100.0)))
        self._least_s, self._since_s = float("inf"), monotonic_s()

    def _observe_cpu(self) -> None:
        """CPU time of the process since the last answer: what runs between two answers belongs to one of them. An idle
        server's housekeeping does so too, but no more than the last answers' cost tenfold is believed."""
        now_s = time.process_time()
        if self._cpu_before_s is not None:
            spent_s = min(now_s - self._cpu_before_s, 10.0 * max(self._cpu_s, _FIRST_BUSY_S))
            self._cpu_s += _WEIGHT * (spent_s - self._cpu_s)
        self._cpu_before_s = now_s


def _bounded(factor: float) -> float:
    return min(1.0, max(_LEAST_FACTOR, factor))


class Stay:
    """One request between its admission and its end."""

    __slots__ = ("_door", "has_user")

    def __init__(self, door: Admission) -> None:
        self._door = door
        self.has_user = False

    def user_done(self) -> None:
        """Its user side needs no more work: computed, remembered, or given up."""
        if not self.has_user:
            self.has_user = True
            self._door.with_user += 1
