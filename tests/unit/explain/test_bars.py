"""Bars hold what they promise: quantiles as in the tables, coverage on samples whose mean is known."""

from __future__ import annotations

import numpy as np
import pytest

from aif_stream.explain.bars import half_widths, rounds_for, student


@pytest.mark.parametrize(
    ("probability", "freedom", "table"),
    [(0.975, 7, 2.3646), (0.995, 7, 3.4995), (0.9995, 7, 5.4079), (0.975, 56, 2.0032), (0.9995, 30, 3.6460)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, table: float) -> None:
    assert student(probability, freedom) == pytest.approx(table, rel=0.01)


def test_all_bars_at_once_hold_the_mean_also_when_rounds_are_chosen_by_the_first_of_them() -> None:
    """Skewed samples, strata of very different spread: 1,000 runs, so .95 is 2.9 deviations below .967."""
    random = np.random.default_rng(5)
    spread = np.array([0.1, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0, 4.0])[:, None]
    held = 0
    for _ in range(1000):
        samples = (random.gamma(4.0, 0.5, (24, 8, 6)) - 2.0) * spread
        rounds = rounds_for(samples[:8], 0.6, 24)
        held += bool((np.abs(samples[:rounds].mean(axis=(0, 1))) <= half_widths(samples[:rounds])).all())
    assert held / 1000 >= 0.95


def test_more_rounds_are_wanted_as_the_square_of_the_width() -> None:
    pilot = np.random.default_rng(1).standard_normal((8, 8, 4))
    widest = float(half_widths(pilot).max())
    assert rounds_for(pilot, widest * 1.01, 24) == 8
    assert rounds_for(pilot, widest / 1.5, 24) == 18
    assert rounds_for(pilot, 0.0, 24) == 24
    assert rounds_for(np.zeros((8, 8, 4)), 0.0, 24) == 8
    assert np.isinf(half_widths(pilot[:1])).all()
