from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from aif_stream.clock import monotonic_s
from aif_stream.errors import Overloaded
from aif_stream.online import admission as admission_module
from aif_stream.online.admission import Admission
from aif_stream.settings import Settings


def admission() -> Admission:
    return Admission(Settings(deadline_ms=120.0, retrieval_budget_ms=80.0), threads=2)


def answered(
    door: Admission, times: int, busy_s: float, retrieval_s: float, own_s: float = 0.01, user_s: float = 0.0
) -> None:
    """Requests of 120 ms were answered, each taking so long beside retrieval."""
    for _ in range(times):
        began_s = monotonic_s() - retrieval_s - own_s
        door.observe(busy_s, busy_s - user_s, retrieval_s, began_s=began_s, deadline_s=0.12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The door's monotonic seconds, which a test moves."""
    now = [monotonic_s()]
    monkeypatch.setattr(admission_module, "monotonic_s", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU seconds of the process, which a test moves."""
    spent = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: spent[0])
    return spent


def test_beyond_the_limit_a_request_is_refused_at_once_counted_and_takes_no_place() -> None:
    door = admission()
    with ExitStack() as stack:
        for _ in range(door.limit(0.15)):
            stack.enter_context(door.admit(0.15))
        full = door.in_service
        for _ in range(3):
            with pytest.raises(Overloaded, match="in service"):
                stack.enter_context(door.admit(0.15))
        assert (door.in_service, door.shed) == (full, 3)
        stack.enter_context(door.admit(1.0))  # who has more time may wait longer
    assert door.in_service == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    door = admission()
    with pytest.raises(ValueError, match="no"), door.admit(0.15):
        raise ValueError("no")
    assert door.in_service == 0


def test_the_limit_follows_the_measured_cost_and_never_falls_below_two_per_thread() -> None:
    door = admission()
    answered(door, 400, busy_s=0.01, retrieval_s=0.01)
    assert door.limit(0.12) == pytest.approx(2 * (0.03 + 0.01) / 0.01, abs=1)
    answered(door, 400, busy_s=1.0, retrieval_s=0.01)
    assert door.limit(0.12) == 4


def test_the_cpu_time_of_the_event_loop_counts_where_it_is_more_than_that_of_the_threads(cpu: list[float]) -> None:
    door = Admission(Settings(), threads=1)
    for _ in range(400):
        cpu[0] += 0.005
        answered(door, 1, busy_s=0.001, retrieval_s=0.01)
    assert door.limit(0.12) == pytest.approx((0.03 + 0.01) / 0.005, abs=1)


def test_work_that_is_done_is_waited_for_by_nobody_so_there_is_room_for_as_much_more() -> None:
    door = admission()
    answered(door, 400, busy_s=0.01, retrieval_s=0.01, user_s=0.005)
    empty = door.limit(0.12)
    with ExitStack() as stack:
        stays = [stack.enter_context(door.admit(0.12)) for _ in range(empty)]
        for stay in stays:
            stay.user_done()
            stay.user_done()  # said twice is done once
        assert door.limit(0.12) == pytest.approx(1.5 * empty, abs=1)
    assert door.limit(0.12) == empty


def crowded(queue: ExitStack) -> tuple[Admission, int]:
    """A door with as many requests inside as it takes, until the queue is left; how many these are."""
    door = admission()
    answered(door, 400, busy_s=0.002, retrieval_s=0.01)
    usual = door.limit(0.12)
    for _ in range(usual):
        queue.enter_context(door.admit(0.12))
    return door, usual


def test_a_queue_that_ends_within_a_deadline_is_let_be_and_one_that_never_ends_is_shortened(clock: list[float]) -> None:
    with ExitStack() as queue:
        door, usual = crowded(queue)
        for _ in range(100):  # a burst: refused while it lasts, the queue keeps its length
            clock[0] += 0.001
            with pytest.raises(Overloaded):
                door.check(0.12)
        assert door.limit(0.12) == usual
        for _ in range(4_000):  # four seconds of it
            clock[0] += 0.001
            with pytest.raises(Overloaded):
                door.check(0.12)
        assert door.limit(0.12) <= usual / 2
    for _ in range(40):
        clock[0] += 0.12
        door.check(0.12)
    assert door.limit(0.12) == usual


def test_a_long_quiet_time_is_forgiven_at_once(clock: list[float]) -> None:
    with ExitStack() as queue:
        door, usual = crowded(queue)
        for _ in range(100):
            clock[0] += 0.12
            with pytest.raises(Overloaded):
                door.check(0.12)
    door.check(0.12)
    clock[0] += 1e6
    door.check(0.12)
    assert door.limit(0.12) == usual


def test_answers_that_take_too_long_lower_the_limit_and_it_comes_back() -> None:
    door = admission()
    answered(door, 400, busy_s=0.002, retrieval_s=0.01)
    usual = door.limit(0.12)
    answered(door, 50, busy_s=0.002, retrieval_s=0.01, own_s=0.1)
    assert door.limit(0.12) <= usual / 3
    answered(door, 200, busy_s=0.002, retrieval_s=0.01)
    assert door.limit(0.12) == usual


def test_an_upstream_that_seems_slow_raises_the_limit_slowly_and_no_further_than_its_budget() -> None:
    door = admission()
    answered(door, 400, busy_s=0.002, retrieval_s=0.01)
    before = door.limit(0.12)
    answered(door, 10, busy_s=0.01, retrieval_s=5.0)
    assert door.limit(0.12) <= before + 2
    answered(door, 2000, busy_s=0.01, retrieval_s=5.0)
    assert door.limit(0.12) <= 2 * (0.03 + 0.08) / 0.01 + 1
