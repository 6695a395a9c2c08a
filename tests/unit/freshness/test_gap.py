"""The gap between answers and explanations: rates from counters, workers from rates, the same in table and metrics."""

from __future__ import annotations

import io
import math

from prometheus_client import REGISTRY
from rich.console import Console

from aif_stream.bus.groups import EXPLAIN_GROUPS
from aif_stream.cli.lag_gap import gap_of
from aif_stream.domain.explanations import Priority
from aif_stream.domain.freshness import Presence, Status
from aif_stream.domain.gap import Count, Counts, workers_to_close
from aif_stream.explain.pace import Pace
from aif_stream.freshness.exporter import Exporter
from aif_stream.freshness.gap import GapWatch
from aif_stream.freshness.peers import Peer
from aif_stream.freshness.report import ExplanationGap, LagReport, PartitionLag, ProbeFigures
from aif_stream.index.leases import Lease

GROUPS = dict(zip(Priority, EXPLAIN_GROUPS, strict=True))


def part(priority: Priority, position: int, end: int, lag_s: float | None = 0.0) -> PartitionLag:
    group = GROUPS[priority]
    return PartitionLag(
        group=group,
        topic=EXPLAIN_GROUPS[group],
        partition=0,
        position=position,
        end=end,
        lag_records=end - position,
        lag_s=lag_s,
        status=Status.OK,
        reason="",
        rate_per_s=0.0,
        catch_up_s=0.0,
    )


def worker(name: str, done: int, occupied_s: float, presence: Presence = Presence.LIVE, **gaps: object) -> Peer:
    facts = {"done": done, "occupied_s": occupied_s, "gaps": gaps}
    return Peer(Lease(name, True, 0.0, facts), presence)


def seen(watch: GapWatch, *looks: tuple[float, list[PartitionLag], list[Peer]]) -> ExplanationGap:
    gap = [watch.look(parts, workers, at_s) for at_s, parts, workers in looks][-1]
    assert gap is not None
    return gap


def test_a_system_without_explanations_has_no_gap() -> None:
    assert GapWatch().look([], [], 0.0) is None


def test_what_waits_its_age_and_its_rates_are_told_by_priority() -> None:
    gap = seen(
        GapWatch(),
        (0.0, [part(Priority.HIGH, 10, 10), part(Priority.LOW, 0, 100, 5.0)], []),
        (10.0, [part(Priority.HIGH, 30, 30), part(Priority.LOW, 20, 200, 15.0)], []),
    )
    high, normal, low = gap.priorities
    assert (high.waiting, high.oldest_s, high.arrival_per_s, high.service_per_s) == (0, 0.0, 2.0, 2.0)
    assert (normal.waiting, normal.arrival_per_s) == (0, 0.0)
    assert (low.waiting, low.oldest_s, low.arrival_per_s, low.service_per_s) == (180, 15.0, 10.0, 2.0)


def test_the_workers_needed_do_what_arrives_and_within_a_minute_what_waits() -> None:
    # Two workers ended 40 in 20 s of work: 2/s each. 10/s arrive and 180 wait: 13/s are needed.
    watch = GapWatch()
    gap = seen(
        watch,
        (0.0, [part(Priority.LOW, 0, 100)], [worker("a", 5, 1.0), worker("b", 0, 0.0)]),
        (10.0, [part(Priority.LOW, 20, 200)], [worker("a", 25, 11.0), worker("b", 20, 10.0)]),
    )
    assert (gap.workers, gap.worker_per_s, gap.workers_needed) == (2, 2.0, 7)
    assert workers_to_close(180, 10.0, 2.0) == 7
    assert workers_to_close(0, 0.0, 2.0) == 0
    assert workers_to_close(1, 0.0, 100.0) == 1


def test_nobody_knows_how_many_are_needed_before_one_has_worked_but_none_when_nothing_waits() -> None:
    waits = [part(Priority.HIGH, 0, 5, 1.0)]
    assert seen(GapWatch(), (0.0, waits, []), (2.0, waits, [])).workers_needed is None
    idle = [part(Priority.HIGH, 5, 5)]
    assert seen(GapWatch(), (0.0, idle, []), (2.0, idle, [worker("a", 9, 9.0)])).workers_needed == 0


def test_the_pace_of_workers_that_have_gone_is_remembered_and_they_are_not_counted() -> None:
    watch = GapWatch()
    idle = [part(Priority.LOW, 10, 10)]
    seen(watch, (0.0, idle, [worker("a", 0, 0.0)]), (10.0, idle, [worker("a", 40, 10.0)]))
    waits = [part(Priority.LOW, 10, 250, 3.0)]
    gap = seen(watch, (20.0, waits, [worker("a", 40, 10.0, Presence.GONE)]))
    assert (gap.workers, gap.worker_per_s) == (0, 4.0)
    assert gap.workers_needed == math.ceil((240 / 20 + 240 / 60) / 4)


def test_a_counter_that_goes_back_begins_anew() -> None:
    counts = Counts()
    for sample in (Count(0.0, 5.0, 5.0), Count(1.0, 8.0, 7.0), Count(2.0, 1.0, 1.0)):
        counts.add(sample)
    assert (counts.grown, counts.per_s) == ((0.0, 0.0), None)
    counts.add(Count(40.0, 3.0, 2.0))
    assert len(counts.samples) == 1, "what is older than the window is forgotten"


def test_gaps_are_those_of_the_worker_where_they_are_worst() -> None:
    low = {"p50_s": 0.2, "p99_s": 1.0, "seen": 3}
    slow = {"p50_s": 0.4, "p99_s": 0.9, "seen": 2}
    gap = seen(GapWatch(), (0.0, [], [worker("a", 3, 1.0, low=low), worker("b", 2, 1.0, low=slow)]))
    assert (gap.priorities[2].p50_s, gap.priorities[2].p99_s, gap.priorities[2].seen) == (0.4, 1.0, 5)
    assert gap.priorities[0].p50_s is None


def test_a_worker_counts_the_time_in_which_any_lane_was_at_work_once() -> None:
    pace = Pace()
    assert pace.occupied_s == 0.0
    with pace.working(), pace.working():
        inside = pace.occupied_s
    after = pace.occupied_s
    assert 0.0 <= inside <= after == pace.occupied_s
    pace.explained(Priority.HIGH, 0.25)
    assert pace.facts()["gaps"]["high"] == {"p50_s": 0.25, "p99_s": 0.25, "seen": 1}
    assert pace.facts()["gaps"]["low"] == {}


def test_the_table_says_how_many_workers_would_close_it() -> None:
    gap = seen(
        GapWatch(),
        (0.0, [part(Priority.LOW, 0, 100)], [worker("a", 0, 0.0)]),
        (10.0, [part(Priority.LOW, 20, 200, None)], [worker("a", 20, 10.0)]),
    )
    console = Console(width=80, record=True, file=io.StringIO())
    for line in gap_of(gap):
        console.print(line)
    text = console.export_text()
    assert "1 is there; 7 would have all of it done within 60 s (2.0/s each)" in text
    assert ["low", "180", "?", "10.0", "2.0", "–", "–"] in [line.split() for line in text.splitlines()]


def test_metrics_say_the_same_and_unknown_is_not_nothing() -> None:
    waits = [part(Priority.LOW, 0, 5, None)]
    gap = seen(GapWatch(), (0.0, waits, []))
    report = LagReport(
        partitions=[],
        watermark_age_s=0.0,
        probe=ProbeFigures(),
        mirrors=[],
        sources=[],
        freshness=[],
        as_of_ms=0,
        explanations=gap,
    )
    Exporter().show(report)

    def value(name: str, **labels: str) -> float:
        found = REGISTRY.get_sample_value(name, labels)
        assert found is not None
        return found

    assert value("aif_explanation_backlog", priority="low") == 5
    assert math.isnan(value("aif_explanation_backlog_age_seconds", priority="low"))
    assert value("aif_explanation_backlog_age_seconds", priority="high") == 0
    assert math.isnan(value("aif_explanation_workers", which="needed"))
    assert value("aif_explanation_workers", which="there") == 0
