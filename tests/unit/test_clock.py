"""Stamps survive the text form in which they travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.clock import from_rfc3339, to_rfc3339


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_comes_back_to_the_millisecond(ms: int) -> None:
    assert from_rfc3339(to_rfc3339(ms)) == ms


def test_an_offset_is_understood_and_its_absence_refused() -> None:
    assert from_rfc3339("2023-11-15T00:13:20.123+02:00") == from_rfc3339("2023-11-14T22:13:20.123Z")
    with pytest.raises(ValueError, match="no time zone"):
        from_rfc3339("2023-11-14T22:13:20")
