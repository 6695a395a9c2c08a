"""CloudEvents in headers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.clock import from_rfc3339, to_rfc3339
from aif_stream.domain.envelope import Envelope, from_headers, to_headers, type_and_time
from aif_stream.errors import BadEvent

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TIMES = st.integers(0, 253_402_300_799_999)


def quick(headers: Any) -> tuple[str, int]:
    return type_and_time(dict(headers))


HEADERS = to_headers(Envelope("aif.item.upserted", "1", "test", 1_700_000_000_123, {}))


@given(TEXT, TEXT, TEXT, TIMES, st.dictionaries(st.from_regex(r"x[a-z0-9]{1,8}", fullmatch=True), TEXT, max_size=3))
def test_an_envelope_comes_back_as_it_was_written(
    kind: str, event_id: str, source: str, time_ms: int, extensions: dict[str, str]
) -> None:
    envelope = Envelope(kind, event_id, source, time_ms, extensions)
    headers = to_headers(envelope)
    assert from_headers(headers) == envelope
    assert quick(headers) == (kind, time_ms)


@given(TIMES)
def test_times_keep_their_milliseconds(time_ms: int) -> None:
    assert from_rfc3339(to_rfc3339(time_ms)) == time_ms


@pytest.mark.parametrize("name", ["ce_type", "ce_id", "ce_source", "ce_time", "ce_specversion"])
def test_a_missing_header_is_named_by_both_readers(name: str) -> None:
    headers = [pair for pair in HEADERS if pair[0] != name]
    for read in (from_headers, quick):
        with pytest.raises(BadEvent) as caught:
            read(headers)
        assert (caught.value.reason, caught.value.field) == ("envelope", name)


def test_a_header_without_a_value_is_missing() -> None:
    headers: list[tuple[str, Any]] = [(name, None if name == "ce_time" else value) for name, value in HEADERS]
    for read in (from_headers, quick):
        with pytest.raises(BadEvent) as caught:
            read([*headers, ("trace", None)])
        assert caught.value.field == "ce_time"


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("ce_time", b"yesterday", "ce_time"),
        ("ce_time", b"2023-11-14T22:13:20", "ce_time"),
        ("ce_time", b"1969-12-31T23:59:59Z", "ce_time"),
        ("ce_time", b"9999-12-31T23:59:59-23:00x", "ce_time"),
        ("ce_specversion", b"0.3", "ce_specversion"),
        ("ce_type", b"\xff", "ce_*"),
    ],
)
def test_a_wrong_header_is_named_by_both_readers(name: str, value: bytes, field: str) -> None:
    headers = [(key, value if key == name else old) for key, old in HEADERS]
    for read in (from_headers, quick):
        with pytest.raises(BadEvent) as caught:
            read(headers)
        assert caught.value.field == field


def test_header_names_in_capitals_are_read() -> None:
    headers = [(name.upper(), value) for name, value in HEADERS]
    assert quick(headers) == ("aif.item.upserted", 1_700_000_000_123)


def test_a_time_with_an_offset_is_the_same_moment() -> None:
    assert from_rfc3339("2023-11-15T00:13:20.123456+02:00") == 1_700_000_000_123
