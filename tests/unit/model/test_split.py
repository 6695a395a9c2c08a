"""Joint = split, on a whole request of each kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aif_stream.domain.row import Rows
from aif_stream.errors import VersionError
from aif_stream.model.config import COSINES, Kind, Part
from aif_stream.model.sequential import Sequential
from aif_stream.model.version import ModelVersion
from tests.model_builders import VARIANTS, make_history, make_items, small_version
from tests.precision import EPS16, assert_close, rounding_bound, score_bound


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def split_scores(version: ModelVersion, rows: Rows, history_rows: Rows, seed: int = 0) -> np.ndarray:
    history = make_history(make_items(len(history_rows), seed=1), seed)
    user = version.user_side({"city": "rome", "age": 30}, history, history_rows, np.ones(len(history), dtype=bool))
    return version.score(user, rows)


@pytest.mark.parametrize(("kind", "variant"), [*((k, "") for k in Kind), *((Kind.AIF, v) for v in VARIANTS if v)])
def test_split_equals_joint_with_float32_rows(kind: Kind, variant: str) -> None:
    version = small_version(kind, **VARIANTS[variant])
    seen, items = make_items(60, seed=1), make_items(300, seed=2)
    dtype = version.layout.dtype_f32
    history = make_history(seen)
    rows = version.item_side(seen, dtype).rows
    user = version.user_side({"city": "rome", "age": 30}, history, rows, np.ones(60, dtype=bool), version.units(seen))
    scores = version.score(user, version.item_side(items, dtype).rows, version.units(items))
    joint = version.joint({"city": "rome", "age": 30}, make_history(seen), seen, items)
    assert np.ptp(joint) > 0.5
    assert_close(scores, joint, score_bound(version.config, joint))


def test_cold_at_request_time_equals_joint() -> None:
    version = small_version(Kind.COLD)
    seen, items = make_items(60, seed=1), make_items(300, seed=2)
    scores = Sequential(version, [*seen, *items]).scores(make_history(seen), np.arange(60), np.arange(60, 360))
    joint = version.joint(None, make_history(seen), seen, items)
    assert_close(scores, joint, score_bound(version.config, joint))
    with pytest.raises(VersionError, match="not cold"):
        Sequential(small_version(), items)


def test_rounding_rows_to_f16_moves_scores_little_and_the_top_less() -> None:
    version = small_version()
    seen, items = make_items(60, seed=1), make_items(2000, seed=2)
    stored, seen_rows = (version.item_side(batch, version.layout.dtype).rows for batch in (items, seen))
    scores = split_scores(version, stored, seen_rows)
    joint = version.joint({"city": "rome", "age": 30}, make_history(seen), seen, items)
    assert_close(scores, joint, rounding_bound(joint, EPS16))
    top, joint_top = (set(np.argsort(-values)[:100]) for values in (scores, joint))
    assert len(top & joint_top) >= 98


def test_each_part_moves_the_score() -> None:
    seen, items = make_items(60, seed=1), make_items(50, seed=2)
    found = []
    for parts in (tuple(Part), *(tuple(p for p in Part if p is not left) for left in Part)):
        version = small_version(parts=parts)
        rows, seen_rows = (version.item_side(batch, version.layout.dtype).rows for batch in (items, seen))
        found.append(split_scores(version, rows, seen_rows))
    for scores in found[1:]:
        assert np.abs(scores - found[0]).max() > 1e-3


@pytest.mark.parametrize("kind", sorted(COSINES))
def test_an_offline_model_is_not_served_by_its_rows_alone(kind: Kind) -> None:
    version = small_version(kind)
    rows = version.item_side(make_items(5), version.layout.dtype).rows
    with pytest.raises(VersionError, match="content vectors that rows do not carry"):
        version.user_side(None, make_history(make_items(5)), rows, np.ones(5, dtype=bool))


def test_every_user_part_moves_the_score() -> None:
    version = small_version()
    seen, items = make_items(30, seed=1), make_items(50, seed=2)
    history, everything = make_history(seen), np.ones(30, dtype=bool)
    rows, seen_rows = (version.item_side(batch, version.layout.dtype).rows for batch in (items, seen))
    scores = version.score(version.user_side({"city": "rome"}, history, seen_rows, everything), rows)
    other_city = version.score(version.user_side({"city": "oslo"}, history, seen_rows, everything), rows)
    half = version.score(version.user_side({"city": "rome"}, history, seen_rows, np.arange(30) % 2 == 0), rows)
    assert np.abs(scores - other_city).max() > 1e-3
    assert np.abs(scores - half).max() > 1e-3


@pytest.mark.parametrize("kind", [Kind.COLD, Kind.TWOTOWER])
def test_of_the_profile_alone_no_history_moves_a_score(kind: Kind) -> None:
    seen, items = make_items(30, seed=1), make_items(50, seed=2)
    for user_history in (True, False):
        version = small_version(kind, user_history=user_history)
        rows, seen_rows = (version.item_side(batch, version.layout.dtype).rows for batch in (items, seen))
        history = make_history(seen)
        sides = [version.user_side({"city": "rome"}, history, seen_rows, np.full(30, here)) for here in (True, False)]
        with_history, without = (version.score(side, rows) for side in sides)
        assert (np.abs(with_history - without).max() > 1e-3) == user_history


def test_a_user_without_profile_and_history_is_scored() -> None:
    version = small_version()
    rows = version.item_side(make_items(10), version.layout.dtype).rows
    nobody = version.user_side(None, make_history([]), rows[:0], np.zeros(0, dtype=bool))
    assert np.isfinite(version.score(nobody, rows)).all()
    assert (nobody.history_used, nobody.history_stored) == (0, 0)


def test_rows_that_are_not_valid_score_minus_infinity_and_leave_the_history() -> None:
    version = small_version()
    seen, items = make_items(8, seed=1), make_items(5, seed=2)
    rows, seen_rows = (version.item_side(batch, version.layout.dtype).rows for batch in (items, seen))
    rows["flags"][2], seen_rows["flags"][3] = 0, 0
    user = version.user_side(None, make_history(seen), seen_rows, np.ones(8, dtype=bool))
    scores = version.score(user, rows)
    assert user.history_used == 7
    assert np.isneginf(scores[2])
    assert np.isfinite(np.delete(scores, 2)).all()


def test_read_only_rows_are_scored() -> None:
    version = small_version()
    rows = version.item_side(make_items(10), version.layout.dtype).rows
    from_bytes = np.frombuffer(rows.tobytes(), dtype=rows.dtype)
    user = version.user_side(None, make_history(make_items(10)), from_bytes, np.ones(10, dtype=bool))
    np.testing.assert_array_equal(version.score(user, from_bytes), version.score(user, rows))


def test_no_wall_clock_enters_a_score() -> None:
    version = small_version()
    items = make_items(20)
    rows = version.item_side(items, version.layout.dtype).rows
    history = make_history(items)
    later = history.copy()
    later["time_kind"] += np.uint64(86_400_000 * 365 * 8)
    everything = np.ones(20, dtype=bool)
    scores = [version.score(version.user_side(None, entries, rows, everything), rows) for entries in (history, later)]
    np.testing.assert_array_equal(*scores)
