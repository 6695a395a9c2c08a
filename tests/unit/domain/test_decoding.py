"""Foreign bytes become bounded values, or a fault of their record."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.decoding import UNFORESEEN, check_plain, decode_json, fault_of, whole_number
from aif_stream.errors import BadEvent, BadInput
from tests.hostile_builders import DEEP


class Small(msgspec.Struct):
    n: int = 0


@given(st.integers(0, 2**70), st.integers(0, 2**64))
@settings(deadline=None)
def test_digits_are_the_number_up_to_the_bound(number: int, most: int) -> None:
    for digits in (b"%d" % number, str(number)):
        assert whole_number(digits, most) == (number if number <= most else None)


@pytest.mark.parametrize(
    "digits",
    [None, b"", b"-1", b"+1", b" 1", b"1_0", "١", "²", b"1.0", b"1e3", b"\xff", b"1\0", b"9" * 5_000, "9" * 5_000],
)
def test_what_is_no_plain_number_is_none(digits: bytes | str | None) -> None:
    assert whole_number(digits, 2**63) is None


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_decoding_json_raises_nothing_but_the_record_s_fault(value: bytes) -> None:
    with suppress(BadEvent):
        decode_json(msgspec.json.Decoder(Small), value, "a thing")


@pytest.mark.parametrize("value", [DEEP, b"[" * 100_000, b"", None, b"\xff", b'{"n":' + b"9" * 5_000 + b"}"])
def test_hostile_json_is_unreadable(value: bytes | None) -> None:
    with pytest.raises(BadEvent, match="not a thing"):
        decode_json(msgspec.json.Decoder(Small), value, "a thing")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BadEvent("key", "p"), "key"),
        (BadInput("p", field="f"), "invalid"),
        (RecursionError(), "unreadable"),
        (OverflowError(), "unreadable"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "p"), "unreadable"),
        (AttributeError("p"), UNFORESEEN),
        (KeyError("p"), UNFORESEEN),
    ],
)
def test_whatever_decoding_raises_is_the_record_s_fault(error: Exception, reason: str) -> None:
    assert fault_of(error).reason == reason


def test_running_out_of_memory_is_no_record_s_fault() -> None:
    with pytest.raises(MemoryError):
        fault_of(MemoryError())


def test_json_that_others_cannot_read_is_refused() -> None:
    check_plain({"a": [1, 2**64 - 1, -(2**63), 1.5, "x", None, True, {"b": []}]})
    deep: list[object] = []
    for _ in range(600):
        deep = [deep]
    for value in (2**64, {"a": [-(2**63) - 1]}, deep):
        with pytest.raises(ValueError, match=r"beyond|deep"):
            check_plain(value)
