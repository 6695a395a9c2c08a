from __future__ import annotations

from contextlib import ExitStack

import pytest

from aif_stream.errors import Overloaded
from aif_stream.online.admission import Admission
from aif_stream.settings import Settings


def admission() -> Admission:
    return Admission(Settings(executor_threads=2, retrieval_budget_ms=80.0))


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
    for _ in range(400):
        door.observe(busy_s=0.01, retrieval_s=0.01)
    assert door.limit(0.12) == pytest.approx(2 * (0.04 + 0.01) / 0.01, abs=1)
    for _ in range(400):
        door.observe(busy_s=1.0, retrieval_s=0.01)
    assert door.limit(0.12) == 4


def test_an_upstream_that_seems_slow_raises_the_limit_slowly_and_no_further_than_its_budget() -> None:
    door = admission()
    for _ in range(400):
        door.observe(busy_s=0.01, retrieval_s=0.01)
    before = door.limit(0.12)
    for _ in range(10):
        door.observe(busy_s=0.01, retrieval_s=5.0)
    assert door.limit(0.12) <= before + 2
    for _ in range(2000):
        door.observe(busy_s=0.01, retrieval_s=5.0)
    assert door.limit(0.12) <= 2 * (0.04 + 0.08) / 0.01 + 1
