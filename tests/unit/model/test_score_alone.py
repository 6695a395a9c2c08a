"""A score is a function of user and row: neither the size of a batch nor the place in it changes a bit."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.row import Rows
from aif_stream.model.config import OFFLINE, Kind
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from tests.model_builders import make_history, make_items, small_config, small_version

ITEMS = 600


def _case(kind: Kind, **widths: int) -> tuple[ModelVersion, UserSide, Rows]:
    version = ModelVersion.init(msgspec.structs.replace(small_config(kind), **widths), 3, name="wide")
    version = version if widths else small_version(kind)
    items = make_items(ITEMS)
    order = np.arange(ITEMS, dtype=np.uint64)
    rows = version.item_rows(items, order, order, 1).rows
    user = version.user_side({"city": "oslo"}, make_history(items[:40]), rows[:40], np.ones(40, np.bool_))
    return version, user, rows


SERVED = [kind for kind in Kind if kind not in OFFLINE]
CASES = [*(_case(kind) for kind in SERVED), _case(Kind.AIF, width=32, hidden=64, head=32, bridges=8, tiers=8)]


@pytest.mark.parametrize("case", CASES, ids=[*(kind.value for kind in SERVED), "aif-wide"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_score_does_not_depend_on_the_batch(case: tuple[ModelVersion, UserSide, Rows], data: st.DataObject) -> None:
    version, user, rows = case
    whole = version.score(user, rows)
    seed = data.draw(st.integers(0, 2**31))
    size = data.draw(st.integers(1, ITEMS))
    some = np.random.default_rng(seed).permutation(ITEMS)[:size]
    np.testing.assert_array_equal(version.score(user, rows[some]), whole[some])
