"""Records → events, and which dead letter a wrong one becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aif_stream.bus.dead_letters import dead_letter_headers
from aif_stream.bus.events import behavior_from_record, event_headers, item_from_record, user_from_record
from aif_stream.domain.events import BehaviorKind, EventType
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.errors import BadEvent
from tests.bus_builders import NOW_MS, FakeRecord
from tests.hostile_builders import DEEP, bad_headers, with_header

USER = FakeRecord(
    value=b'{"user_id":"u","attributes":{"age":3}}',
    key=b"u",
    headers=event_headers(EventType.USER_UPSERTED, "e", "test", NOW_MS),
)
BEHAVIOR = FakeRecord(
    value=b'{"user_id":"u","item_id":7,"kind":"click"}',
    key=b"u",
    headers=event_headers(EventType.BEHAVIOR, "e", "test", NOW_MS),
)


def test_an_item_record_is_its_event_with_the_order_of_ce_time_and_offset() -> None:
    event = item_from_record(FakeRecord())
    assert (event.key, event.id_text, event.order) == (7, "7", Order(NOW_MS, 41))
    assert event.item is not None
    assert event.item.category == "c"
    assert event.payload == FakeRecord().value


def test_the_event_time_of_a_record_is_its_header_whatever_the_value_says() -> None:
    record = FakeRecord(value=b'{"item_id":7,"category":"c","event_time_ms":5}')
    assert item_from_record(record).order.event_time_ms == NOW_MS


def test_a_null_value_is_a_removal() -> None:
    record = FakeRecord(value=None, headers=event_headers(EventType.ITEM_REMOVED, "e", "test", NOW_MS))
    event = item_from_record(record)
    assert (event.key, event.order, event.item, event.payload) == (7, Order(NOW_MS, 41), None, None)


def test_a_bare_tombstone_is_a_removal_at_its_append_time() -> None:
    event = item_from_record(FakeRecord(value=None, key="ö".encode(), headers=[("trace", b"1")]))
    assert (event.key, event.id_text, event.order) == (key_of("ö"), "ö", Order(NOW_MS + 10, 41))


def test_a_user_record_is_a_profile_and_a_null_value_forgets_it() -> None:
    event = user_from_record(USER)
    assert (event.key, event.order) == (key_of("u"), Order(NOW_MS, 41))
    assert event.user is not None
    assert event.user.attributes == {"age": 3}
    assert user_from_record(replace(USER, value=None)).user is None


def test_a_behavior_record_is_a_behavior() -> None:
    event = behavior_from_record(BEHAVIOR)
    assert (event.user_key, event.item_key, event.event_time_ms) == (key_of("u"), 7, NOW_MS)
    assert event.behavior.kind is BehaviorKind.CLICK


@pytest.mark.parametrize(
    ("record", "reason", "field"),
    [
        (FakeRecord(value=b"nope"), "unreadable", ""),
        (FakeRecord(value=b"{}"), "invalid", "item_id"),
        (FakeRecord(value=b'{"item_id":-7,"category":"c"}'), "invalid", "item_id"),
        (FakeRecord(value=b'{"item_id":7,"category":"c","content_vector":[1e39]}'), "not-finite", "content_vector"),
        (FakeRecord(headers=[]), "envelope", "ce_specversion"),
        (FakeRecord(headers=BEHAVIOR.headers), "unknown-type", "ce_type"),
        (FakeRecord(value=None), "unknown-type", "ce_type"),
        (FakeRecord(timestamp=NOW_MS - 300_001), "future", "event_time_ms"),
        (FakeRecord(key=b"8"), "key", "key"),
        (FakeRecord(key=None), "key", "key"),
        (FakeRecord(value=None, key=None, headers=[]), "invalid", "key"),
        (FakeRecord(value=None, key=b"\xff", headers=[]), "key", "key"),
        (FakeRecord(value=b'{"item_id":1' + b"0" * 300 + b',"category":"c"}'), "invalid", "item_id"),
        (FakeRecord(value=b'{"item_id":7,"category":1' + b"0" * 300 + b"}"), "invalid", "category"),
        (FakeRecord(value=None, headers=[], timestamp=2**62), "envelope", ""),
        (FakeRecord(value=DEEP), "unreadable", ""),
    ],
)
def test_a_wrong_item_record_has_a_reason_and_a_field(record: FakeRecord, reason: str, field: str) -> None:
    with pytest.raises(BadEvent) as caught:
        item_from_record(record)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("name", ["ce_specversion", "ce_type", "ce_id", "ce_source", "ce_time", "ce_foo", "CE_FOO"])
@pytest.mark.parametrize("value", [None, b"\xff\xfe"])
def test_an_attribute_that_is_no_text_spoils_the_envelope(name: str, value: bytes | None) -> None:
    for record, read in ((FakeRecord(), item_from_record), (USER, user_from_record), (BEHAVIOR, behavior_from_record)):
        wrong = replace(record, headers=with_header(record.headers, name, value))
        with pytest.raises(BadEvent) as caught:
            read(wrong)
        assert caught.value.reason == "envelope"
        dead_letter_headers(wrong, reason="envelope", problem=str(caught.value), attempts=1)


def test_tries_that_are_no_numbers_spoil_the_envelope() -> None:
    for record, read in ((FakeRecord(), item_from_record), (USER, user_from_record), (BEHAVIOR, behavior_from_record)):
        for kind, headers in bad_headers(record.headers, "aif_attempts", "aif_redriven_from"):
            wrong = replace(record, headers=headers)
            with pytest.raises(BadEvent) as caught:
                read(wrong)
            assert caught.value.reason == "envelope", kind
            said = dict(dead_letter_headers(wrong, reason="envelope", problem="p", attempts=1))
            assert (said["aif_attempts"], "aif_redriven_from" in said) == (b"1", False), kind


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (replace(BEHAVIOR, value=None), "empty"),
        (replace(BEHAVIOR, value=b'{"user_id":"u","item_id":7,"kind":"stare"}'), "invalid"),
        (replace(BEHAVIOR, key=b"7"), "key"),
        (replace(BEHAVIOR, headers=USER.headers), "unknown-type"),
    ],
)
def test_a_wrong_behavior_record_has_a_reason(record: FakeRecord, reason: str) -> None:
    with pytest.raises(BadEvent) as caught:
        behavior_from_record(record)
    assert caught.value.reason == reason


def test_a_dead_letter_keeps_the_record_s_headers_and_says_where_and_why() -> None:
    record = FakeRecord(value=None)
    headers = dead_letter_headers(record, reason="future", problem="ö" * 5_000, attempts=2)
    assert headers[: len(record.headers)] == list(record.headers)
    said = dict(headers)
    assert said["aif_topic"] == b"aif.item-updates"
    assert (said["aif_partition"], said["aif_offset"], said["aif_attempts"]) == (b"3", b"41", b"2")
    assert (said["aif_reason"], said["aif_null_value"]) == (b"future", b"1")
    assert len(said["aif_problem"]) <= 2_048
    assert said["aif_problem"].decode().startswith("ö")
