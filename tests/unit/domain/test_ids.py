"""Ids: strings at the edge, 64-bit keys inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.ids import (
    DIRECT_LIMIT,
    HASHED_BIT,
    MAX_ID_CHARS,
    canonical_id,
    direct_id,
    is_hashed,
    key_bytes,
    key_of,
    keys_of,
)
from aif_stream.errors import BadInput


@given(st.integers(0, DIRECT_LIMIT - 1))
def test_a_canonical_decimal_is_its_own_key_and_can_be_read_back(number: int) -> None:
    key = key_of(str(number))
    assert key == number
    assert direct_id(key) == str(number)


@given(st.text(min_size=1, max_size=40))
def test_a_key_is_direct_exactly_when_the_id_is_a_canonical_decimal_below_the_limit(text: str) -> None:
    key = key_of(text)
    canonical = text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) < DIRECT_LIMIT
    assert is_hashed(key) == (not canonical)
    assert 0 <= key < 1 << 64
    assert not is_hashed(key) or key & ~HASHED_BIT < DIRECT_LIMIT


@pytest.mark.parametrize("text", ["007", "00", "-1", "+1", "1.0", " 1", "٣", "²", str(DIRECT_LIMIT), "9" * 30, "a"])
def test_anything_but_a_canonical_decimal_is_hashed(text: str) -> None:
    assert is_hashed(key_of(text))


def test_zero_is_a_canonical_decimal() -> None:
    assert key_of("0") == 0


def test_the_hash_of_an_id_never_changes() -> None:
    # Keys are in Redis and in topics: another value here means that every index must be rebuilt.
    assert key_of("sku-00912") == 9835216827708272834


def test_a_hashed_key_has_no_id_of_its_own() -> None:
    with pytest.raises(BadInput, match="is a hash"):
        direct_id(key_of("sku-1"))


@given(st.lists(st.text(min_size=1, max_size=8), max_size=20))
def test_keys_of_many_are_the_keys_of_each(ids: list[str]) -> None:
    keys = keys_of(ids)
    assert keys.dtype == np.uint64
    assert keys.tolist() == [key_of(text) for text in ids]


@given(st.integers(0, 2**64 - 1))
def test_the_redis_field_of_a_key_is_eight_little_endian_bytes(key: int) -> None:
    assert int.from_bytes(key_bytes(key), "little") == key
    assert len(key_bytes(key)) == 8


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "", "x" * (MAX_ID_CHARS + 1), 10**300, [1], {}])
def test_what_is_no_id_is_refused_with_its_field(value: object) -> None:
    with pytest.raises(BadInput) as caught:
        canonical_id(value, "item_id")
    assert caught.value.field == "item_id"


def test_a_huge_integer_is_refused_before_python_would_refuse_to_print_it() -> None:
    with pytest.raises(BadInput, match="at most 256"):
        canonical_id(10**5000, "item_id")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (7, "7"), ("7", "7"), ("007", "007"), (2**64, str(2**64))])
def test_an_id_is_kept_as_its_string(value: str | int, text: str) -> None:
    assert canonical_id(value, "item_id") == text
