"""The best k and the ages of what was scored: the compiled call and its plain twin agree, ties and gaps included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.kernels.native import Level, best_level
from aif_stream.kernels.ranking import best_of

LEVELS = sorted({Level.NUMPY, best_level()})
# Few distinct scores: the last place is shared by many.
SCORE = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 0.25, 3.0]) | st.floats(-5, 5, width=32)
ROWS = st.lists(st.tuples(SCORE, st.integers(0, 2**64 - 1), st.integers(0, 50)), max_size=80)


@pytest.mark.parametrize("level", LEVELS)
@given(ROWS, st.integers(1, 90))
def test_the_best_are_in_order_with_ties_by_key_and_ages_are_those_of_the_scored(
    level: Level, rows: list[tuple[float, int, int]], k: int
) -> None:
    scores = np.array([row[0] for row in rows], np.float32)
    keys = np.array([row[1] for row in rows], np.uint64)
    stamps = np.array([row[2] for row in rows], np.uint64)
    found = best_of(scores, keys, stamps, k, level=level)
    finite = [at for at in range(len(rows)) if np.isfinite(scores[at])]
    wanted = sorted(finite, key=lambda at: (-scores[at], keys[at]))[:k]
    assert found.scored == len(finite)
    assert [(scores[at], keys[at]) for at in found.order] == [(scores[at], keys[at]) for at in wanted]
    if finite:
        ages = sorted(int(stamps[at]) for at in finite)
        assert found.oldest == ages[0]
        assert sum(found.middle) / 2 == np.median(ages)


@pytest.mark.parametrize("level", LEVELS)
@given(st.integers(1, 4000), st.integers(1, 600), st.integers(0, 9), st.sampled_from([0.0, 1e-6, 1.0, 3e38]))
def test_large_batches_of_any_spread_are_ranked_as_by_sorting(
    level: Level, n: int, k: int, seed: int, wide: float
) -> None:
    random = np.random.default_rng(seed)
    scores = (random.standard_normal(n).clip(-1, 1) * wide).astype(np.float32)
    scores[random.random(n) < 0.1] = -np.inf
    keys = random.integers(0, 2**63, n, np.uint64)
    stamps = np.where(random.random(n) < 0.5, 7, random.integers(0, 2**50, n)).astype(np.uint64)
    found, wanted = (best_of(scores, keys, stamps, k, level=one) for one in (level, Level.NUMPY))
    assert found.order.tolist() == wanted.order.tolist()
    assert (found.scored, found.middle, found.oldest) == (wanted.scored, wanted.middle, wanted.oldest)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    three, two = np.zeros(3, np.float32), np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="2 keys"):
        best_of(three, two, two, 1)
    with pytest.raises(ValueError, match="k = 0"):
        best_of(three[:2], two, two, 0)
    with pytest.raises(ValueError, match="float64"):
        best_of(np.zeros(2), two, two, 1)  # type: ignore[arg-type]
