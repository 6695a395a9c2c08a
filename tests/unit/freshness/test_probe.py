"""When a server is first asked for an update: no later than leaves the figure right to 8 ms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.freshness.probe import first_ask_s


def test_a_server_of_which_nothing_is_known_is_asked_at_once() -> None:
    assert first_ask_s([]) == 0.0


@given(last_s=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=5))
def test_the_first_question_comes_in_half_the_shortest_time_and_within_8_ms(last_s: list[float]) -> None:
    assert first_ask_s(last_s) == pytest.approx(min(min(last_s) / 2, 0.008))
