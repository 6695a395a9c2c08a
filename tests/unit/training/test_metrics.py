"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.training.metrics import auc, auc_draws, gauc, gauc_draws, ratio


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, clicked = np.array([float(score) for score, _ in rows]), np.array([click for _, click in rows])
    above = scores[clicked][:, None] - scores[~clicked][None]
    value = auc(scores, clicked)
    if above.size:
        assert value == pytest.approx(float((above > 0).mean() + 0.5 * (above == 0).mean()))
    else:
        assert np.isnan(value)


def test_gauc_weighs_users_by_impressions_and_skips_those_of_one_class() -> None:
    user = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    scores = np.array([1.0, 2.0, 4.0, 3.0, 2.0, 1.0, 9.0, 8.0])
    clicked = np.array([False, True, False, False, True, True, True, True])
    found = gauc(user, scores, clicked)
    assert found.value == pytest.approx((2 * 1.0 + 4 * 0.0) / 6)
    assert found.low <= found.value <= found.high


def test_no_user_with_both_classes_gives_nan() -> None:
    assert np.isnan(gauc(np.array([0, 1]), np.array([1.0, 2.0]), np.array([True, False])).value)


def test_an_interval_holds_the_value_and_narrows_with_users() -> None:
    random = np.random.default_rng(0)
    widths = []
    for users in (20, 500):
        user = np.repeat(np.arange(users), 10)
        clicked = random.random(len(user)) < 0.5
        scores = clicked + random.standard_normal(len(user))
        for metric in (gauc(user, scores, clicked), auc_draws(user, scores, clicked).metric()):
            assert metric.low < metric.value < metric.high
        widths.append(metric.high - metric.low)
    assert widths[1] < widths[0] / 2


def test_paired_differences_are_narrower_than_the_values_and_mirror_each_other() -> None:
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 10)
    clicked = random.random(len(user)) < 0.5
    easy = np.repeat(random.random(200) * 3, 10)  # some users are easier than others, for both models
    first = easy * clicked + random.standard_normal(len(user))
    second = first + 0.2 * random.standard_normal(len(user))
    a, b = (gauc_draws(user, scores, clicked) for scores in (first, second))
    gap, back, own = a.minus(b), b.minus(a), a.metric()
    assert gap.value == pytest.approx(a.value - b.value)
    assert (gap.low, gap.high) == pytest.approx((-back.high, -back.low))
    assert gap.high - gap.low < (own.high - own.low) / 2
    assert a.minus(a) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same users"):
        a.minus(auc_draws(user, first, clicked))


def test_a_ratio_weighs_users_by_their_denominator() -> None:
    found = ratio(np.array([1.0, 0.0]), np.array([1.0, 9.0]))
    assert found.value == pytest.approx(0.1)
    assert np.isnan(ratio(np.zeros(0), np.zeros(0)).metric().value)
