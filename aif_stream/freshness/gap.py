"""Explanations behind their answers: what waits, how fast it comes and goes, how many workers would close the gap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aif_stream.bus.groups import EXPLAIN_GROUPS
from aif_stream.domain.explanations import Priority
from aif_stream.domain.freshness import Presence
from aif_stream.domain.gap import Count, Counts, workers_to_close
from aif_stream.freshness.peers import Peer
from aif_stream.freshness.report import ExplanationGap, PartitionLag, PriorityGap, facts_of, rounded

_GROUPS: Final = dict(zip(Priority, EXPLAIN_GROUPS, strict=True))
# Less work than this says nothing about a worker's pace.
_PACE_AFTER_S: Final = 0.5


class GapWatch:
    """``look`` again and again; keeps the last half minute of the topics' and the workers' counters."""

    def __init__(self) -> None:
        self._topics: defaultdict[Priority, Counts] = defaultdict(Counts)
        self._workers: dict[str, Counts] = {}
        self._worker_per_s: float | None = None

    def look(self, parts: Sequence[PartitionLag], workers: Sequence[Peer], at_s: float) -> ExplanationGap | None:
        """None when nobody ever asked for an explanation and no worker is there."""
        there = [worker for worker in workers if worker.presence is Presence.LIVE]
        if not there and not any(part.group in EXPLAIN_GROUPS for part in parts):
            return None
        self._pace(there, at_s)
        found = [self._priority(priority, parts, there, at_s) for priority in Priority]
        waiting, arrivals = sum(each.waiting for each in found), [each.arrival_per_s for each in found]
        arrival = None if None in arrivals else sum(filter(None, arrivals))
        needed = None
        if waiting == 0 and arrival == 0:
            needed = 0
        elif arrival is not None and self._worker_per_s:
            needed = workers_to_close(waiting, arrival, self._worker_per_s)
        pace = self._worker_per_s
        return ExplanationGap(
            priorities=found,
            workers=len(there),
            worker_per_s=None if pace is None else round(pace, 2),
            workers_needed=needed,
        )

    def _pace(self, workers: Sequence[Peer], at_s: float) -> None:
        """What one worker does in a second of work; the last that was seen, while none has any."""
        for gone in self._workers.keys() - {worker.lease.id for worker in workers}:
            del self._workers[gone]
        done, occupied_s = 0.0, 0.0
        for worker in workers:
            counts = self._workers.setdefault(worker.lease.id, Counts())
            counts.add(Count(at_s, float(worker.facts.get("done", 0)), float(worker.facts.get("occupied_s", 0.0))))
            grown = counts.grown
            done, occupied_s = done + grown[0], occupied_s + grown[1]
        if done and occupied_s > _PACE_AFTER_S:
            self._worker_per_s = done / occupied_s

    def _priority(
        self, priority: Priority, parts: Sequence[PartitionLag], workers: Sequence[Peer], at_s: float
    ) -> PriorityGap:
        mine = [part for part in parts if part.group == _GROUPS[priority]]
        counts = self._topics[priority]
        counts.add(Count(at_s, sum(part.end for part in mine), sum(part.position for part in mine)))
        ages = [part.lag_s for part in mine]
        known = [age for age in ages if age is not None]
        rates = counts.per_s
        gaps = [_gaps(worker.facts, priority) for worker in workers]
        seen = [gap for gap in gaps if gap.get("seen")]
        return PriorityGap(
            priority=priority,
            waiting=sum(part.lag_records for part in mine),
            oldest_s=rounded(max(known, default=0.0)) if len(known) == len(ages) else None,
            arrival_per_s=None if rates is None else round(rates[0], 2),
            service_per_s=None if rates is None else round(rates[1], 2),
            p50_s=max((float(gap["p50_s"]) for gap in seen), default=None),
            p99_s=max((float(gap["p99_s"]) for gap in seen), default=None),
            seen=sum(int(gap["seen"]) for gap in seen),
        )


def _gaps(facts: Mapping[str, Any], priority: Priority) -> dict[str, Any]:
    return facts_of(facts_of(facts.get("gaps")).get(priority.value))
