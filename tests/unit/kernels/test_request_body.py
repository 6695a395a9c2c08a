"""The body of a request log's record, made in one call, is the plain twin's to the last byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.ids import HASHED_BIT
from aif_stream.domain.request_log import pack
from aif_stream.kernels.native import Level, library
from aif_stream.kernels.request_body import request_body

compiled = pytest.mark.skipif(
    (loaded := library()) is None or loaded.objects is None, reason="no C library that reads Python's objects"
)
SCORES = st.floats(width=32, allow_nan=False)


@pytest.mark.parametrize("bits", [1, 16, 17, 24, 25, 32, 33, 62])
@given(data=st.data())
def test_every_width_is_the_plain_twins_to_the_last_byte(bits: int, data: st.DataObject) -> None:
    key = st.integers(0, 2**bits - 1)
    parts = data.draw(st.lists(st.lists(key, max_size=30), max_size=3))
    keys = [np.array(part, np.uint64) for part in parts]
    asked = [each for part in parts for each in part]
    best = data.draw(st.lists(st.sampled_from(asked), max_size=10)) if asked else []
    scores = data.draw(st.lists(SCORES, min_size=len(best), max_size=len(best)))
    assert request_body(keys, best, scores) == pack(keys, best, scores)


@pytest.mark.parametrize("level", [None, Level.NUMPY])
def test_a_hashed_key_among_the_candidates_has_no_such_body(level: Level | None) -> None:
    keys = [np.array([1, 2], np.uint64), np.array([HASHED_BIT | 3], np.uint64)]
    assert request_body(keys, [1], [0.5], level=level) is None


@pytest.mark.parametrize("parts", [0, 1, 16, 17, 40])
def test_any_number_of_parts_is_packed(parts: int) -> None:
    keys = [np.arange(number, dtype=np.uint64) for number in range(parts)]
    assert request_body(keys, [0], [0.5]) == pack(keys, [0], [0.5])


@compiled
def test_lists_that_cannot_be_an_answer_are_refused() -> None:
    keys = [np.array([1, 2], np.uint64)]
    with pytest.raises(ValueError, match="2 items, 1 scores"):
        request_body(keys, [1, 2], [0.5])
    with pytest.raises(ValueError, match="none of the candidates"):
        request_body(keys, [70_000], [0.5])
    with pytest.raises(ValueError, match="contiguous"):
        request_body([np.arange(20, dtype=np.uint64)[::2]], [2], [0.5])
    with pytest.raises(TypeError):
        request_body(keys, ["1"], [0.5])  # type: ignore[list-item]
