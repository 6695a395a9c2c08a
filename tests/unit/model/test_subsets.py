"""Users who differ by a few behaviors have the scores that a user side of each would give."""

from __future__ import annotations

import numpy as np
import pytest

from aif_stream.domain.history import ENTRY, KIND_BITS, History, times_ms
from aif_stream.domain.row import Rows
from aif_stream.errors import VersionError
from aif_stream.model.config import Kind
from aif_stream.model.subsets import subset_scores
from aif_stream.model.version import ModelVersion
from tests.model_builders import VARIANTS, make_history, make_items, small_version
from tests.precision import assert_close, score_bound

PROFILE = {"city": "oslo", "age": 31}


def _user(version: ModelVersion, length: int, seed: int) -> tuple[History, Rows, Rows]:
    """A history with its rows (one of them not valid), and three candidates."""
    items = make_items(length + 3, seed)
    none = np.zeros(len(items), np.uint64)
    rows = version.item_rows(items, none, none, 0).rows
    history = make_history(items[:length], seed) if length else np.empty(0, ENTRY)
    rows["flags"][1 : 2 if length > 3 else 1] = 0
    return history, rows[:length], rows[length:]


def _one_by_one(
    version: ModelVersion, profile: dict[str, object] | None, user: tuple[History, Rows, Rows], keeps: np.ndarray
) -> np.ndarray:
    history, rows, items = user
    found = []
    for keep in keeps:
        side = version.user_side(profile, history[keep], rows[keep], np.ones(int(keep.sum()), np.bool_))  # type: ignore[arg-type]
        found.append(version.score(side, items))
    return np.array(found)


@pytest.mark.parametrize("length", [0, 1, 8, 40])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_subset_scores_as_the_user_side_of_it(variant: str, length: int) -> None:
    version = small_version(**VARIANTS[variant])
    for seed, profile in enumerate((PROFILE, None)):
        user = _user(version, length, seed)
        random = np.random.default_rng(seed)
        keeps = np.concatenate([~np.eye(length, dtype=np.bool_), random.random((12, length)) < 0.4])
        keeps = np.concatenate([keeps, np.zeros((1, length), np.bool_), np.ones((1, length), np.bool_)])
        found = subset_scores(version, profile, user[0], user[1], keeps, user[2])
        expected = _one_by_one(version, profile, user, keeps)
        assert found.shape == expected.shape
        assert_close(found, expected, score_bound(version.config, expected))


@pytest.mark.parametrize("kind", [Kind.COLD, Kind.TWOTOWER])
def test_other_served_kinds_too(kind: Kind) -> None:
    version = small_version(kind)
    user = _user(version, 24, 3)
    keeps = ~np.eye(24, dtype=np.bool_)
    found = subset_scores(version, PROFILE, user[0], user[1], keeps, user[2])
    expected = _one_by_one(version, PROFILE, user, keeps)
    assert_close(found, expected, score_bound(version.config, expected))


def test_ages_count_from_the_time_that_is_given() -> None:
    version = small_version()
    history, rows, items = _user(version, 24, 5)
    later_ms = int(times_ms(history)[-1]) + 3_600_000
    newest = np.array([(later_ms << KIND_BITS, 0)], ENTRY)
    whole = np.ones(24, np.bool_)
    side = version.user_side(
        PROFILE, np.concatenate([history, newest]), np.concatenate([rows, rows[:1]]), np.append(whole, False)
    )
    found = subset_scores(version, PROFILE, history, rows, whole[None], items, newest_ms=later_ms)
    expected = version.score(side, items)
    bound = score_bound(version.config, expected)
    assert_close(found[0], expected, bound)
    younger = subset_scores(version, PROFILE, history, rows, whole[None], items)
    assert np.abs(found - younger).max() > 100 * bound


def test_a_model_that_is_never_served_is_refused() -> None:
    version = small_version(Kind.DIN)
    history, rows, items = _user(small_version(), 4, 0)
    with pytest.raises(VersionError, match="din"):
        subset_scores(version, PROFILE, history, rows, np.ones((1, 4), np.bool_), items)
