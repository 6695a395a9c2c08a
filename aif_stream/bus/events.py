"""Records of the source topics → events: the envelope's headers and the value, as one checked thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from aif_stream.bus.consumer import Record
from aif_stream.bus.letters import ATTEMPTS, REDRIVEN_FROM, TRIES_HEADERS
from aif_stream.domain.decoding import MAX_TIME_MS, check_number, whole_number
from aif_stream.domain.envelope import JSON, Envelope, to_headers, type_and_time
from aif_stream.domain.events import (
    MAX_AHEAD_MS,
    Behavior,
    EventType,
    ItemUpserted,
    UserUpserted,
    check_event_time,
    decode_behavior,
    decode_item,
    decode_user,
)
from aif_stream.domain.ids import Key, canonical_id, key_of
from aif_stream.domain.order import Order
from aif_stream.errors import BadEvent, BadInput

FIRST_OFFSET: Final = "ce_firstoffset"
"""Extension attribute of a winner that was published again (a late event had come): the offset that it had first."""
NEARLINE_SOURCE: Final = "aif.nearline"
"""``ce_source`` of winners that the worker publishes again."""
_NEARLINE: Final = NEARLINE_SOURCE.encode()
_ITEM_UPSERTED, _ITEM_REMOVED, _USER_UPSERTED, _BEHAVIOR = (
    kind.value
    for kind in (EventType.ITEM_UPSERTED, EventType.ITEM_REMOVED, EventType.USER_UPSERTED, EventType.BEHAVIOR)
)


class ItemEvent(NamedTuple):
    """One state of an item. ``item`` and ``payload`` (the value's bytes as they came) are None for a removal.

    ``again``: a winner that the worker published again (``NEARLINE_SOURCE``); it was visible before.
    """

    key: Key
    id_text: str
    order: Order
    item: ItemUpserted | None
    payload: bytes | None
    again: bool = False


class UserEvent(NamedTuple):
    """One profile of a user; ``user`` and ``payload`` are None when the profile is to be forgotten."""

    key: Key
    id_text: str
    order: Order
    user: UserUpserted | None
    payload: bytes | None


class BehaviorEvent(NamedTuple):
    """One behavior with its event time."""

    user_key: Key
    item_key: Key
    event_time_ms: int
    offset: int
    behavior: Behavior


def item_from_record(record: Record, max_ahead_ms: int = MAX_AHEAD_MS) -> ItemEvent:
    """A record of ``aif.item-updates``. Raises ``BadEvent`` with the reason and the field.

    A null value is a removal; it may come without headers (then its event time is its append time).
    """
    headers, value = _headers_of(record), record.value
    again = headers.get("ce_source") == _NEARLINE
    if value is None:
        text = _key_text(record)
        time_ms = _removal_time(record, headers, _ITEM_REMOVED, max_ahead_ms)
        return ItemEvent(key_of(text), text, _order(record, headers, time_ms), None, None, again)
    time_ms = _event_time(record, headers, _ITEM_UPSERTED, max_ahead_ms)
    item = decode_item(value)
    text = _same_id(record, item.item_id, "item_id")
    return ItemEvent(key_of(text), text, _order(record, headers, time_ms), item, value, again)


def user_from_record(record: Record, max_ahead_ms: int = MAX_AHEAD_MS) -> UserEvent:
    """A record of ``aif.user-updates``. Raises ``BadEvent``. A null value forgets the profile."""
    headers = _headers_of(record)
    if record.value is None:
        text = _key_text(record)
        time_ms = _removal_time(record, headers, _USER_UPSERTED, max_ahead_ms)
        return UserEvent(key_of(text), text, _order(record, headers, time_ms), None, None)
    time_ms = _event_time(record, headers, _USER_UPSERTED, max_ahead_ms)
    user = decode_user(record.value)
    text = _same_id(record, user.user_id, "user_id")
    return UserEvent(key_of(text), text, _order(record, headers, time_ms), user, record.value)


def behavior_from_record(record: Record, max_ahead_ms: int = MAX_AHEAD_MS) -> BehaviorEvent:
    """A record of ``aif.behaviors``. Raises ``BadEvent``."""
    if record.value is None:
        raise BadEvent("empty", "a behavior has a value")
    time_ms = _event_time(record, _headers_of(record), _BEHAVIOR, max_ahead_ms)
    behavior = decode_behavior(record.value)
    user = _same_id(record, behavior.user_id, "user_id")
    item_key = key_of(_canonical(behavior.item_id, "item_id"))
    return BehaviorEvent(key_of(user), item_key, time_ms, record.offset, behavior)


def refuse_oversize(record: Record, limit_bytes: int) -> None:
    """Raise ``BadEvent`` ("too-large") when key and value pass the limit: the broker measures compressed batches, so a
    foreign producer's record may be larger than any that could be published again."""
    size = len(record.value or b"") + len(record.key or b"")
    if size > limit_bytes:
        raise BadEvent(
            "too-large", f"{size} bytes, at most {limit_bytes} are taken", mend="send what belongs to it only"
        )


def event_headers(kind: EventType, event_id: str, source: str, event_time_ms: int) -> list[tuple[str, bytes]]:
    """The headers of a record of a source topic, CloudEvents binary mode."""
    return to_headers(Envelope(kind.value, event_id, source, event_time_ms, {}), JSON)


def winner_headers(kind: EventType, event_id: str, source: str, order: Order) -> list[tuple[str, bytes]]:
    """The headers of a winner that is published again: it keeps its place among events of the same millisecond."""
    return [*event_headers(kind, event_id, source, order.event_time_ms), (FIRST_OFFSET, b"%d" % order.offset)]


def _headers_of(record: Record) -> dict[str, bytes]:
    """By name; of a repeated header the last one. Raises ``BadEvent`` where a redrive's headers are no numbers."""
    headers = dict(record.headers)
    if ATTEMPTS in headers or REDRIVEN_FROM in headers:
        for name, most in TRIES_HEADERS.items():
            check_number(headers, name, most)
    return headers


def _order(record: Record, headers: Mapping[str, bytes], time_ms: int) -> Order:
    """The event's order: its own offset, or the one that it had before it was published again.

    An offset beyond the record's own is none of this log (a copy of the topic on another cluster) and is ignored.
    """
    if FIRST_OFFSET not in headers:
        return Order(time_ms, record.offset)
    first = whole_number(headers[FIRST_OFFSET], record.offset)
    return Order(time_ms, record.offset if first is None else first)


def _event_time(record: Record, headers: Mapping[str, bytes], expected: str, max_ahead_ms: int) -> int:
    kind, time_ms = type_and_time(headers)
    if kind != expected:
        raise BadEvent("unknown-type", f"{kind:.80} is not {expected}", field="ce_type")
    if time_ms - record.timestamp > max_ahead_ms:
        check_event_time(time_ms, record.timestamp, max_ahead_ms)
    return time_ms


def _removal_time(record: Record, headers: Mapping[str, bytes], expected: str, max_ahead_ms: int) -> int:
    if not any(name.lower().startswith("ce_") for name in headers):
        if record.timestamp > MAX_TIME_MS:  # where the broker does not stamp records, their producer does
            raise BadEvent("envelope", "the record's timestamp is beyond the year 9999")
        return max(0, record.timestamp)  # a bare tombstone, from a tool that knows only Kafka
    return _event_time(record, headers, expected, max_ahead_ms)


def _key_text(record: Record) -> str:
    try:
        text = (record.key or b"").decode()
    except UnicodeDecodeError:
        raise BadEvent("key", "the record's key is not UTF-8", field="key") from None
    return _canonical(text, "key")


def _same_id(record: Record, value: str | int, field: str) -> str:
    """The id of the value, which is the record's key: else it lies in a partition where its order means nothing."""
    text = value if type(value) is str else _canonical(value, field)  # the decoder has checked its length
    if record.key != text.encode("utf-8", "surrogatepass"):
        raise BadEvent("key", f"the record's key {record.key!r:.80} is not its {field}", field="key")
    return text


def _canonical(value: str | int, field: str) -> str:
    try:
        return canonical_id(value, field)
    except BadInput as error:
        raise BadEvent("invalid", error.problem, field=error.field) from None
