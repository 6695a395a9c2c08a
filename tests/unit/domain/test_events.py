"""Events: what is accepted, and which field is named when it is not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.events import (
    BehaviorKind,
    check_event_time,
    decode_behavior,
    decode_item,
    decode_user,
)
from aif_stream.errors import BadEvent

IDS = st.one_of(st.integers(0, 2**63 - 1), st.text(min_size=1, max_size=20))
ATTRIBUTES = st.dictionaries(
    st.text(max_size=10),
    st.one_of(
        st.text(max_size=10),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.text(max_size=5), max_size=4),
    ),
    max_size=5,
)
FLOATS = st.lists(st.floats(-1e30, 1e30, allow_nan=False), max_size=8)


def item_json(**changes: Any) -> bytes:
    return json.dumps({"item_id": 1, "category": "c", **changes}).encode()


@given(IDS, IDS, ATTRIBUTES, st.none() | FLOATS)
def test_an_item_comes_back_as_it_was_written(
    item_id: str | int, category: str | int, attributes: dict[str, Any], vector: list[float] | None
) -> None:
    line = {"item_id": item_id, "category": category, "attributes": attributes, "content_vector": vector}
    item = decode_item(json.dumps(line).encode())
    assert (item.item_id, item.category, item.content_vector) == (item_id, category, vector)
    assert item.attributes == attributes


def test_unknown_fields_do_not_disturb() -> None:
    assert decode_item(item_json(warehouse={"shelf": [1, 2]})).item_id == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"item_id": -1}, "item_id"),
        ({"item_id": 1.5}, "item_id"),
        ({"item_id": True}, "item_id"),
        ({"item_id": ""}, "item_id"),
        ({"item_id": None}, "item_id"),
        ({"item_id": "x" * 257}, "item_id"),
        ({"category": []}, "category"),
        ({"attributes": None}, "attributes"),
        ({"attributes": {"a": True}}, "attributes.a"),
        ({"attributes": {"ok": 1, "price": None}}, "attributes.price"),
        ({"attributes": {"tags": [1]}}, "attributes.tags[0]"),
        ({"attributes": {"n": 2**63}}, "attributes.n"),
        ({"attributes": {"x": {}}}, "attributes.x"),
        ({"content_vector": "0.1"}, "content_vector"),
        ({"content_vector": [0.1, "x"]}, "content_vector[1]"),
        ({"content_vector": [1e39]}, "content_vector"),
        ({"event_time_ms": -1}, "event_time_ms"),
        ({"event_time_ms": "now"}, "event_time_ms"),
        ({"event_time_ms": 10**18}, "event_time_ms"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadEvent) as caught:
        decode_item(item_json(**change))
    assert caught.value.field == field


def test_a_wrong_attribute_before_broken_json_is_a_bad_event_too() -> None:
    with pytest.raises(BadEvent):
        decode_item(b'{"item_id":"7","attributes":{"price":true,"title":"\\u12')


@pytest.mark.parametrize(
    ("decode", "value", "field"),
    [
        (decode_item, b'{"item_id": 1}', "category"),
        (decode_item, b'{"category": 1}', "item_id"),
        (decode_user, b'{"user_id": 1}', "attributes"),
        (decode_behavior, b'{"user_id": 1, "kind": "click"}', "item_id"),
        (decode_behavior, b'{"user_id": 1, "item_id": 2}', "kind"),
        (decode_behavior, b'{"user_id": 1, "item_id": 2, "kind": "stare"}', "kind"),
    ],
)
def test_a_missing_field_is_named(decode: Callable[[bytes], Any], value: bytes, field: str) -> None:
    with pytest.raises(BadEvent) as caught:
        decode(value)
    assert (caught.value.reason, caught.value.field) == ("invalid", field)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nope",
        b'{"item_id": 1, "category": "c"',
        b'{"item_id": 1, "category": "c"} more',
        b'{"item_id": 1, "category": "c", "attributes": {"a": NaN}}',
        b'{"item_id": 1, "category": "c", "content_vector": [Infinity]}',
        b'{"item_id": 1, "category": "\xff"}',
        b'{"item_id": 1, "category": "c", "unknown": "\xff"}',
        b'{"item_id": "\\ud800", "category": "c"}',
        b'{"item_id": 1, "category": "c", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\x00\x01\x02",
    ],
)
def test_what_is_not_json_is_unreadable(value: bytes) -> None:
    with pytest.raises(BadEvent) as caught:
        decode_item(value)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "value", [b"[]", b"7", b"null", b'"x"', b'{"item_id":1,"category":1,"content_vector":[1e400]}']
)
def test_json_that_is_no_event_is_invalid(value: bytes) -> None:
    with pytest.raises(BadEvent) as caught:
        decode_item(value)
    assert caught.value.reason == "invalid"


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_bad_event(value: bytes) -> None:
    for decode in (decode_item, decode_user, decode_behavior):
        with contextlib.suppress(BadEvent):
            decode(value)  # type: ignore[operator]


def test_the_content_vector_is_float32() -> None:
    content = decode_item(item_json(content_vector=[1, 2.5])).content()
    assert content is not None
    assert content.dtype == np.float32
    assert content.tolist() == [1.0, 2.5]
    assert decode_item(item_json()).content() is None


def test_an_event_may_be_as_late_as_it_likes_and_ahead_by_the_limit_only() -> None:
    check_event_time(0, 1_000_000)
    check_event_time(1_300_000, 1_000_000, max_ahead_ms=300_000)
    with pytest.raises(BadEvent, match="ahead of the broker") as caught:
        check_event_time(1_300_001, 1_000_000, max_ahead_ms=300_000)
    assert caught.value.reason == "future"


def test_behavior_kinds_are_numbered_from_weak_to_strong() -> None:
    assert [kind.code for kind in BehaviorKind] == [0, 1, 2, 3, 4]
    assert BehaviorKind.EXPOSURE.code == 0
