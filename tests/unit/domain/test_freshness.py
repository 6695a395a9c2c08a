from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.freshness import (
    STALL_AFTER_S,
    WINDOW_S,
    Presence,
    RecentLags,
    Sample,
    SourceClocks,
    Status,
    Window,
    began_ms,
    lag_s,
    watermark_age_s,
)

NOW_MS = 1_700_000_000_000


def window(*looks: tuple[int, int], every_s: float = 1.0) -> Window:
    """Looks of (position, end), one after the other."""
    made = Window()
    for i, (position, end) in enumerate(looks):
        made.add(Sample(i * every_s, position, end))
    return made


def judged(made: Window, presence: Presence = Presence.LIVE) -> Status:
    return made.judge(presence).status


def test_a_partition_that_is_caught_up_has_no_age_however_old_its_last_record_is() -> None:
    assert lag_s(Sample(0, 7, 7, NOW_MS - 3_600_000), NOW_MS) == 0


def test_the_age_of_a_partition_is_the_age_of_the_record_at_its_position() -> None:
    assert lag_s(Sample(0, 7, 9, NOW_MS - 1_500), NOW_MS) == 1.5


def test_an_age_that_cannot_be_read_is_not_known_and_neither_is_the_watermark() -> None:
    assert lag_s(Sample(0, 7, 9), NOW_MS) is None
    assert watermark_age_s([0.0, None, 3.0]) is None


def test_a_brokers_clock_that_is_ahead_makes_no_negative_age() -> None:
    assert lag_s(Sample(0, 7, 9, NOW_MS + 80), NOW_MS) == 0


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_the_watermark_is_as_old_as_the_worst_partition_and_of_now_without_any(lags: list[float]) -> None:
    assert watermark_age_s(lags) == max(lags, default=0.0)


def test_a_group_that_stands_before_records_is_a_stall_once_the_window_says_so() -> None:
    looks = [(5, 9)] * int(STALL_AFTER_S)
    assert judged(window(*looks)) is Status.OK
    assert judged(window(*looks, (5, 9))) is Status.STALL


def test_one_look_without_lag_in_the_window_is_enough_to_be_well() -> None:
    assert judged(window((5, 9), (5, 9), (5, 5), *[(5, 9)] * 7)) is Status.OK


def test_a_group_whose_lag_only_grows_while_it_works_is_warned_of() -> None:
    assert judged(window(*[(i * 10, i * 20 + 1) for i in range(8)])) is Status.WARN


def test_a_large_lag_that_shrinks_is_no_matter_for_an_alarm() -> None:
    assert judged(window(*[(i * 1000, 1_000_000) for i in range(8)])) is Status.OK


def test_nobody_there_is_a_stop_and_a_silent_process_a_stall_whatever_the_offsets_say() -> None:
    assert judged(window((5, 5)), Presence.GONE) is Status.STOP
    assert judged(window((5, 5)), Presence.STUCK) is Status.STALL


def test_nothing_is_judged_by_what_was_before_the_window_or_before_a_reset() -> None:
    made = window(*[(5, 9)] * 8)
    made.add(Sample(8, 2, 9))
    assert judged(made) is Status.OK
    made.add(Sample(9 + WINDOW_S, 3, 9))
    assert len(made.samples) == 1


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30),
    st.sampled_from([Presence.LIVE, Presence.UNKNOWN]),
)
def test_a_group_that_has_caught_up_is_well_at_once(looks: list[tuple[int, int]], presence: Presence) -> None:
    made = window(*[(position, position + lag) for position, lag in looks])
    position = made.samples[-1].position
    made.add(Sample(made.samples[-1].at_s + 0.5, position, position))
    assert judged(made, presence) is Status.OK


def test_the_time_to_catch_up_is_that_of_the_lag_at_the_windows_pace() -> None:
    assert window((0, 100), (40, 120), (80, 140)).catch_up_s == pytest.approx(3.0)
    assert window((0, 100), (40, 140)).catch_up_s is None
    assert window((0, 100), (100, 100)).catch_up_s == 0


def test_a_source_whose_events_are_later_than_their_append_is_ahead_and_forgotten_when_it_is_mended() -> None:
    clocks = SourceClocks(span_s=10)
    for second in range(5):
        clocks.note("fast", NOW_MS + 5_000, NOW_MS, second)
        clocks.note("true", NOW_MS - 20, NOW_MS, second)
    fast, true = clocks.read(5)
    assert (fast.source, fast.ahead_s, fast.skewed) == ("fast", 5.0, True)
    assert (true.source, true.ahead_s, true.delay_s, true.skewed) == ("true", 0.0, 0.02, False)
    clocks.note("fast", NOW_MS - 10, NOW_MS, 12)
    assert [(found.source, found.skewed) for found in clocks.read(16)] == [("fast", False)]


def test_names_of_sources_are_bounded() -> None:
    clocks = SourceClocks()
    for number in range(1000):
        clocks.note(f"s{number}", NOW_MS, NOW_MS, 0)
    assert len(clocks.read(0)) <= 65


@given(st.lists(st.lists(st.floats(0, 100, width=32), max_size=30), min_size=1, max_size=8))
def test_recent_quantiles_are_those_of_the_newest_lags_that_fit(batches: list[list[float]]) -> None:
    recent = RecentLags(kept=16, span_s=60)
    for batch in batches:
        recent.add(np.array(batch), 0.0)
    newest = [lag for batch in batches for lag in batch][-16:]
    found = recent.read(1.0)
    assert found.get("seen", 0) == len(newest)
    if newest:
        assert found["p50_s"] == pytest.approx(np.percentile(newest, 50), abs=1e-3)
    assert recent.read(61.0) == {}


@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_an_update_never_begins_after_the_broker_took_it(event_ms: int, append_ms: int) -> None:
    assert began_ms(event_ms, append_ms) == (event_ms if event_ms <= append_ms else append_ms)
