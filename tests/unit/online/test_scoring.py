from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.clock import monotonic_s
from aif_stream.domain.row import TOMBSTONE, VALID, empty_rows
from aif_stream.online.scoring import SLICE_ROWS, Part, best_places, part_of, rank, score_part, too_old, usable
from aif_stream.online.serving import unknown_user
from tests.model_builders import make_items, small_version

MODEL = small_version()
FAR_S = 1e12


def part(scores: list[float], first: int = 0, computed_ms: int = 1000) -> Part:
    rows = empty_rows(MODEL.layout, len(scores))
    rows["computed_ms"], rows["flags"] = computed_ms, VALID
    made = part_of(np.arange(first, first + len(scores), dtype=np.uint64), rows, np.ones(len(scores), np.bool_))
    made.scores[:] = scores
    return made


@given(st.lists(st.integers(-5, 5), max_size=40), st.lists(st.integers(-5, 5), max_size=40), st.integers(1, 30))
def test_top_k_of_several_parts_is_that_of_all_their_scores_sorted(a: list[int], b: list[int], k: int) -> None:
    found = rank([part([float(x) for x in a]), part([float(x) for x in b], first=1000)], k, now_ms=2000)
    everything = [*zip(a, range(len(a)), strict=True), *zip(b, range(1000, 1000 + len(b)), strict=True)]
    expected = sorted(((float(s), key) for s, key in everything), key=lambda pair: (-pair[0], pair[1]))[:k]
    assert list(zip(found.scores, found.keys, strict=True)) == expected
    assert found.scored == len(everything)


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0]), max_size=40), st.integers(1, 50))
def test_the_best_places_are_the_least_that_hold_any_top_k(scores: list[float], count: int) -> None:
    found = best_places(np.array(scores, np.float32), count).tolist()
    finite = sorted((score for score in scores if score > -np.inf), reverse=True)
    least = finite[:count][-1] if finite else np.inf
    assert found == [place for place, score in enumerate(scores) if score >= least and score > -np.inf]


def test_what_is_not_scored_is_not_counted_and_ages_are_of_scored_rows_alone() -> None:
    old = part([-np.inf, -np.inf], first=10, computed_ms=0)
    found = rank([part([1.0, 2.0], computed_ms=1500), old], 10, now_ms=2000)
    assert (found.scored, found.keys) == (2, [1, 0])
    assert (found.age_p50_ms, found.age_max_ms) == (500, 500)


def test_slices_give_the_scores_of_one_call_and_unusable_rows_get_none() -> None:
    items = make_items(50)
    rows = MODEL.item_rows(items, np.ones(50, np.uint64), np.ones(50, np.uint64), 1).rows
    rows = np.tile(rows, SLICE_ROWS // 50 + 30)
    made = part_of(np.arange(len(rows), dtype=np.uint64), rows, np.ones(len(rows), np.bool_))
    assert made.keys.size > SLICE_ROWS
    made.rows["flags"][3] = TOMBSTONE
    made.found[5] = False
    made.dropped[SLICE_ROWS + 1] = True
    user = unknown_user(MODEL)
    score_part(MODEL, user, made, FAR_S)
    assert made.done == len(rows)
    off = np.zeros(len(rows), np.bool_)
    off[[3, 5, SLICE_ROWS + 1]] = True
    assert np.isneginf(made.scores[off]).all()
    np.testing.assert_array_equal(made.scores[~off], MODEL.score(user, rows)[~off])  # not depending on the batch


def test_past_the_deadline_nothing_more_is_scored() -> None:
    made = part([0.0] * 10)
    made.scores[:] = -np.inf
    score_part(MODEL, unknown_user(MODEL), made, monotonic_s() - 1.0)
    assert made.done == 0
    assert rank([made], 5, now_ms=2000).scored == 0


def test_age_limits_look_at_usable_rows_only() -> None:
    made = part([0.0, 0.0, 0.0])
    made.rows["computed_ms"] = [1_000, 9_500, 1_000]
    made.rows["flags"][2] = 0
    assert usable(made).tolist() == [True, True, False]
    assert too_old(made, now_ms=10_000, limit_s=1.0).tolist() == [True, False, False]
    assert not too_old(made, now_ms=10_000, limit_s=0.0).any()
