from __future__ import annotations

from aif_stream.clock import monotonic_s
from aif_stream.online.deadline import Deadline, Reserve


def test_what_is_left_is_never_negative_and_never_more_than_allowed() -> None:
    past = Deadline(monotonic_s() - 2.0, monotonic_s() - 1.0)
    assert past.left_s() == 0.0
    ahead = Deadline.after(60_000)
    assert ahead.left_s(at_most_s=0.25) == 0.25
    assert 0 < ahead.left_s(reserve_s=59.0) <= 1.0
    assert ahead.left_s(reserve_s=61.0) == 0.0
    assert ahead.elapsed_ms() >= 0.0


def test_the_reserve_follows_what_scoring_takes_but_leaves_half_of_a_short_deadline() -> None:
    reserve = Reserve()
    long, short = Deadline.after(10_000), Deadline.after(4)
    first = reserve.of(long)
    assert 0 < first < 0.05
    for _ in range(100):
        reserve.observe(0.1)
    assert 0.1 < reserve.of(long) < 0.2
    assert reserve.of(short) == (short.due_s - short.started_s) / 2
