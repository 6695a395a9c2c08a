"""The comparison of two answers: nothing is different only when nothing is, and the item that changed is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.request import RankedItem
from aif_stream.replay.drift import SAME, Drift, compare, mean_interval, quantile_difference

score_lists = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30)


def answer(scores: dict[str, float], k: int) -> list[RankedItem]:
    """The first k, equal scores by id, as the server orders them."""
    best = sorted(scores.items(), key=lambda pair: (-pair[1], int(pair[0])))
    return [RankedItem(item, score) for item, score in best[:k]]


def catalogue(scores: list[float]) -> dict[str, float]:
    return {str(i): score for i, score in enumerate(scores)}


@given(scores=score_lists, k=st.integers(1, 40))
def test_the_same_answer_has_no_drift_at_all(scores: list[float], k: int) -> None:
    found = compare(answer(catalogue(scores), k), answer(catalogue(scores), k), k)
    assert (found.overlap, found.score_max_abs, found.changed) == (1.0, 0.0, {})
    drift = Drift.of(1)
    drift.add(0, found)
    assert drift.value == 0.0


@given(scores=score_lists, k=st.integers(1, 40), data=st.data())
def test_of_one_changed_item_nothing_else_is_ever_named(scores: list[float], k: int, data: st.DataObject) -> None:
    before = catalogue(scores)
    item = data.draw(st.sampled_from(sorted(before)))
    after = {**before, item: data.draw(st.floats(-6, 6, width=32))}
    found = compare(answer(before, k), answer(after, k), k)
    assert set(found.changed) <= {item}
    seen = {i.item_id for i in answer(before, k)} & {i.item_id for i in answer(after, k)}
    if item in seen and before[item] != after[item]:
        assert set(found.changed) == {item}
        assert found.score_max_abs == abs(after[item] - before[item])


@given(scores=score_lists, k=st.integers(1, 40), data=st.data())
def test_drift_is_symmetric(scores: list[float], k: int, data: st.DataObject) -> None:
    before = catalogue(scores)
    after = {item: data.draw(st.floats(-5, 5, width=32)) for item in before}
    one, other = (compare(answer(x, k), answer(y, k), k) for x, y in ((before, after), (after, before)))
    assert one.overlap == other.overlap
    assert one.score_max_abs == other.score_max_abs
    assert one.correlation == other.correlation or math.isnan(one.correlation)
    assert one.lost == other.gained


def test_an_item_that_was_pushed_out_has_not_changed_and_one_that_fell_has() -> None:
    before = {"1": 0.9, "2": 0.8, "3": 0.7, "4": 0.6}
    risen = compare(answer(before, 3), answer({**before, "4": 0.95}, 3), 3)
    assert set(risen.changed) == {"4"}
    assert (risen.lost, risen.gained) == ({"3"}, {"4"})
    assert risen.score_max_abs == pytest.approx(0.25)  # at least: it beats what was the last, 0.7
    fallen = compare(answer(before, 3), answer({**before, "1": 0.1}, 3), 3)
    assert set(fallen.changed) == {"1"}
    assert fallen.overlap == pytest.approx(2 / 3)


def test_an_item_that_was_removed_is_named() -> None:
    before = {"1": 0.9, "2": 0.8}
    found = compare(answer(before, 10), answer({"1": 0.9}, 10), 10)
    assert set(found.changed) == {"2"}


def test_reversed_order_is_a_correlation_of_minus_one() -> None:
    before = {str(i): float(i) for i in range(10)}
    found = compare(answer(before, 10), answer({item: -score for item, score in before.items()}, 10), 10)
    assert found.correlation == -1.0
    assert found.overlap == 1.0


def test_the_item_that_changed_alone_comes_before_those_that_moved_with_their_user() -> None:
    drift = Drift.of(3)
    before = {str(i): float(i) for i in range(10)}
    moved = {item: score + 0.5 for item, score in before.items()}
    drift.add(0, compare(answer(before, 10), answer(moved, 10), 10))
    drift.add(1, compare(answer(before, 10), answer({**before, "7": 7.25}, 10), 10))
    drift.add(2, SAME)
    assert drift.changed()[0].item_id == "7"
    assert drift.whole_user == 1
    assert drift.compared == 3


def test_intervals_hold_the_value_and_are_points_when_nothing_varies() -> None:
    same = mean_interval(np.full(100, 0.25))
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)
    values = np.random.default_rng(0).normal(size=400)
    found = mean_interval(values)
    assert found.low < values.mean() < found.high
    assert found.high - found.low == pytest.approx(4 * values.std() / 20, rel=0.25)


def test_a_latency_difference_between_pairs_is_found_with_its_sign() -> None:
    a = np.random.default_rng(0).exponential(10.0, 2_000)
    found = quantile_difference(a, a + 3.0, 0.5)
    assert found.value == pytest.approx(3.0)
    assert found.low <= 3.0 + 1e-9
    assert found.high >= 3.0 - 1e-9
