"""When requests are due is fixed before the first is sent, and does not depend on answers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.replay.schedule import constant, original

times = st.lists(st.integers(0, 10**13), min_size=1, max_size=50).map(lambda values: np.array(sorted(values), np.int64))


@given(received_ms=times, speed=st.floats(0.01, 1000))
def test_original_timing_begins_at_once_keeps_its_order_and_scales_every_gap(received_ms, speed):  # type: ignore[no-untyped-def]
    due_s = original(received_ms, speed)
    assert due_s[0] == 0
    assert (np.diff(due_s) >= 0).all()
    np.testing.assert_allclose(due_s * speed * 1000, received_ms - received_ms[0], rtol=1e-9, atol=1e-3)


@given(received_ms=times)
def test_twice_the_speed_is_half_the_time(received_ms):  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(original(received_ms, 2.0) * 2, original(received_ms, 1.0))


@given(count=st.integers(1, 1000), rate=st.floats(0.1, 5000))
def test_a_constant_rate_adds_up_no_error(count: int, rate: float) -> None:
    due_s = constant(count, rate)
    assert due_s.size == count
    assert due_s[0] == 0
    assert due_s[-1] == (count - 1) / rate
