"""Ids that are their own keys are read in one call; whatever else is among them is left to the careful way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.candidates import keys_and_names
from aif_stream.domain.ids import DIRECT_LIMIT, canonical_id
from aif_stream.kernels.ids import direct_keys
from aif_stream.kernels.native import Level, library

NUMBERS = st.integers(0, DIRECT_LIMIT - 1)
SURE = st.one_of(NUMBERS, st.integers(0, 10**18 - 1).map(str))
UNSURE = st.one_of(
    *(st.integers(max_value=-1), st.integers(DIRECT_LIMIT, 2**70), st.integers(10**18, 2**70).map(str)),
    *(st.sampled_from(["", "007", "00", "-1", "+1", " 1", "1 ", "1_0", "٣", "1.0", True, None, 1.0, b"1"]), st.text()),
)

compiled = pytest.mark.skipif(
    (loaded := library()) is None or loaded.objects is None, reason="no C library that reads Python's objects"
)


@compiled
@given(ids=st.lists(SURE, max_size=50))
def test_direct_ids_have_the_keys_of_the_careful_way(ids: list[int | str]) -> None:
    keys = direct_keys(ids)
    assert keys is not None
    expected, names = keys_and_names([canonical_id(each, "candidates") for each in ids])
    assert keys.dtype == np.uint64
    assert keys.tolist() == expected.tolist()
    assert names == {}


@compiled
@given(before=st.lists(SURE, max_size=5), other=UNSURE, behind=st.lists(SURE, max_size=5))
def test_one_id_that_is_anything_else_leaves_all_to_the_careful_way(
    before: list[object], other: object, behind: list[object]
) -> None:
    keys = direct_keys([*before, other, *behind])
    if keys is not None:  # text that happens to be a canonical decimal
        assert isinstance(other, str)
        assert str(int(other)) == other


def test_without_the_library_the_careful_way_has_them_all() -> None:
    assert direct_keys([1, "2"], level=Level.NUMPY) is None
