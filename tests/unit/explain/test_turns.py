"""Whose turn it is: head starts, the oldest's turn and its bound, the bench's order, the gate's patience, commits."""

from __future__ import annotations

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from aif_stream.bus.consumer import Partition
from aif_stream.domain.explanations import Priority
from aif_stream.explain.bench import Bench
from aif_stream.explain.gate import LIMITS, Gate
from aif_stream.explain.offsets import Offsets
from aif_stream.explain.queues import CAPACITY, HEAD_START_S, OLDEST_EVERY, Queues, Waiting
from aif_stream.index.leases import LeaseBook
from tests.stack import eventually

PRIORITIES = st.sampled_from(list(Priority))


@given(older=st.lists(PRIORITIES, max_size=12), late_s=st.floats(0.0, 5.0))
def test_while_high_ones_never_cease_a_low_one_begins_within_the_stated_turns(
    older: list[Priority], late_s: float
) -> None:
    queues: Queues[str] = Queues()
    for number, priority in enumerate(older):
        queues.push(Waiting("older", priority, float(number)))
    queues.push(Waiting("low", Priority.LOW, 100.0))
    bound = OLDEST_EVERY * (len(older) + 1)
    for turn in range(bound):
        queues.push(Waiting("high", Priority.HIGH, 100.0 + late_s + turn / 1000))
        taken = queues.pop()
        assert taken is not None
        if taken.work == "low":
            return
    raise AssertionError(f"not within {bound} turns")


@given(
    st.lists(st.tuples(PRIORITIES, st.floats(0.0, 100.0)), min_size=2, max_size=30),
)
def test_nobody_is_overtaken_by_what_came_later_than_a_head_start(asked: list[tuple[Priority, float]]) -> None:
    queues: Queues[int] = Queues()
    for number, (priority, since_s) in enumerate(sorted(asked, key=lambda each: each[1])):
        queues.push(Waiting(number, priority, since_s))
    order = []
    while (taken := queues.pop()) is not None:
        order.append(taken)
    assert sorted(each.work for each in order) == list(range(len(asked))), "each has one turn"
    most_s = max(HEAD_START_S.values())
    for place, early in enumerate(order):
        for late in order[place + 1 :]:
            assert early.since_s - late.since_s <= most_s
            if early.priority is late.priority:
                assert early.work < late.work


def test_the_lane_for_high_ones_takes_nothing_else_and_room_is_told_by_priority() -> None:
    queues: Queues[str] = Queues()
    queues.push(Waiting("low", Priority.LOW, 0.0))
    assert queues.pop(only=Priority.HIGH) is None
    assert (queues.room(Priority.LOW), queues.room(Priority.HIGH)) == (CAPACITY - 1, CAPACITY)
    queues.push(Waiting("high", Priority.HIGH, 0.0))
    taken = queues.pop(only=Priority.HIGH)
    assert taken is not None
    assert taken.work == "high"


async def test_the_bench_computes_the_more_urgent_unit_next_and_none_that_was_given_up() -> None:
    go_on, begun = threading.Event(), asyncio.Event()
    loop, order = asyncio.get_running_loop(), list[str]()

    def first() -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(60)

    async with Bench(Gate(_nobody())) as bench:
        running = asyncio.create_task(bench.run(Priority.LOW, first))
        await begun.wait()
        units = {
            name: asyncio.create_task(bench.run(priority, lambda name=name: order.append(name)))
            for name, priority in (("low", Priority.LOW), ("gone", Priority.HIGH), ("high", Priority.HIGH))
        }

        async def all_wait() -> bool:
            return bench.waiting == len(units)

        await eventually(all_wait, what="all but the first wait")
        units["gone"].cancel()
        await asyncio.wait([units["gone"]])
        go_on.set()
        await asyncio.gather(running, units["low"], units["high"])
    assert order == ["high", "low"]


def test_the_busiest_server_counts_and_one_that_began_anew_says_nothing_yet() -> None:
    gate = Gate(_nobody())
    gate.observe({"a": {"busy_s": 10.0, "threads": 2}, "b": {"busy_s": 0.0, "threads": 2}}, 100.0)
    assert gate.busy == 0.0
    gate.observe({"a": {"busy_s": 11.0, "threads": 2}, "b": {"busy_s": 0.2, "threads": 2}}, 101.0)
    assert gate.busy == 0.5
    gate.observe({"c": {"busy_s": 99.0, "threads": 2}}, 102.0)
    assert gate.busy == 0.0


async def test_units_wait_for_busy_servers_but_never_longer_than_their_patience() -> None:
    gate = Gate(_nobody())
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    await gate.passed(Priority.LOW)
    gate.busy = 1.0
    before = REGISTRY.get_sample_value("aif_explain_gate_seconds_total") or 0.0
    async with asyncio.timeout(60):
        await gate.passed(Priority.HIGH)
    assert loop.time() - begin_s >= LIMITS[Priority.HIGH].patience_s
    stood_s = (REGISTRY.get_sample_value("aif_explain_gate_seconds_total") or 0.0) - before
    assert stood_s >= LIMITS[Priority.HIGH].patience_s


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=60))
def test_a_commit_never_passes_a_record_that_has_not_ended(steps: list[tuple[int, int]]) -> None:
    """Steps on one partition: 0 takes the next record, 1 ends one that is open, 2 commits what is due."""
    partition, offsets = Partition("t", 0), Offsets()
    taken, still_open, committed = 0, set[int](), 0
    for what, which in steps:
        if what == 0:
            offsets.take(partition, taken)
            still_open.add(taken)
            taken += 1
        elif what == 1 and still_open:
            ended = sorted(still_open)[which % len(still_open)]
            still_open.discard(ended)
            offsets.end(partition, ended)
        elif what == 2:
            due = offsets.due()
            expected = min(still_open, default=taken)
            assert due == ({partition: expected} if expected > committed else {})
            offsets.committed(due)
            committed = max(committed, due.get(partition, 0))
    offsets.forget([partition])
    assert offsets.due() == {}


def _nobody() -> LeaseBook:
    """A book that is never opened: these gates are told by hand."""
    return LeaseBook.__new__(LeaseBook)
