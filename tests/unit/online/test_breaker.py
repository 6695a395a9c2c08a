from __future__ import annotations

from aif_stream.online.breaker import Breaker


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, open_s=1.0, clock=clock)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(failures=3, open_s=1.0, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    assert opened(Clock()).state == "open"


def test_while_open_nobody_passes_and_afterwards_one_probe_at_a_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.allows()
    clock.now_s += 1.1
    assert breaker.state == "trying"
    assert breaker.allows()
    assert not breaker.allows()


def test_a_failed_probe_keeps_it_open_and_a_good_one_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 1.1
    assert breaker.allows()
    breaker.failed()
    assert breaker.state == "open"
    clock.now_s += 1.1
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert all(breaker.allows() for _ in range(10))


def test_a_probe_that_never_reports_does_not_lock_it_for_ever() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 1.1
    assert breaker.allows()
    clock.now_s += 1.1
    assert breaker.allows()
