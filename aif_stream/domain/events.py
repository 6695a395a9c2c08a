"""The events of the source topics: types, decoding, and the rules that make one usable.

The types are msgspec structs, so that one declaration gives validation, JSON Schema and mypy's view.
What travels is the producer's own JSON: unknown fields survive because the value's bytes are stored,
never the decoded struct. Event time travels in the ``ce_time`` header alone (domain/envelope.py);
``event_time_ms`` in a value is what a line of ``aif publish`` may carry and wins when it is there.
"""

from __future__ import annotations

from enum import StrEnum
from math import hypot
from typing import Annotated, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from aif_stream.domain.decoding import MAX_TIME_MS, UNDECODABLE
from aif_stream.domain.ids import MAX_ID_CHARS, Key, canonical_id, key_of
from aif_stream.errors import BadEvent, BadInput

Id = (
    Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS, description="canonical decimals are 64-bit keys")]
    | Annotated[int, Meta(ge=0, description="the same id as its decimal string")]
)
Name = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Text = Annotated[str, Meta(max_length=1024)]
# Larger integers become the infinite float32 of a feature, or overflow on the way there.
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Attribute = Text | Whole | float | Annotated[list[Text], Meta(max_length=256)]
Attributes = dict[Text, Attribute]
TimeMs = Annotated[int, Meta(ge=0, le=MAX_TIME_MS, description="ms since the epoch, UTC")]

# An event time later than its append time by more than this is a dead letter: a producer whose clock runs
# ahead would otherwise freeze the item until real time catches up (design, invariant 2).
MAX_AHEAD_MS: Final = 5 * 60 * 1000


_PROBLEM_CHARS: Final = 300  # msgspec quotes a wrong value whole
_F32_MAX: Final = float(np.finfo(np.float32).max)


class EventType(StrEnum):
    """Value of the ``ce_type`` header."""

    ITEM_UPSERTED = "aif.item.upserted"
    ITEM_REMOVED = "aif.item.removed"
    USER_UPSERTED = "aif.user.upserted"
    BEHAVIOR = "aif.behavior.recorded"


class BehaviorKind(StrEnum):
    """What a user did with an item, weakest first."""

    EXPOSURE = "exposure"
    CLICK = "click"
    FAVOURITE = "favourite"
    CART = "cart"
    BUY = "buy"

    @property
    def code(self) -> int:
        """0 … 4, the number that a stored history carries."""
        return _KIND_CODES[self]


_KIND_CODES: Final[dict[BehaviorKind, int]] = {kind: code for code, kind in enumerate(BehaviorKind)}


class ItemUpserted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The full feature state of one item (not a patch)."""

    item_id: Id
    category: Id
    attributes: Attributes = {}
    content_vector: list[float] | None = None
    event_time_ms: TimeMs | None = None

    @property
    def key(self) -> Key:
        return key_of(canonical_id(self.item_id, "item_id"))

    def content(self) -> NDArray[np.float32] | None:
        """The content vector, f32 (V), or None. Raises ``BadEvent`` when a number is not finite in f32."""
        if self.content_vector is None:
            return None
        with np.errstate(over="ignore"):
            vector = np.asarray(self.content_vector, dtype=np.float32)
        if not np.isfinite(vector).all():
            raise BadEvent("not-finite", "numbers must be finite in 32 bits", field="content_vector")
        return vector


class UserUpserted(msgspec.Struct, frozen=True, kw_only=True):
    """A user's profile attributes (the full state)."""

    user_id: Id
    attributes: Attributes
    event_time_ms: TimeMs | None = None

    @property
    def key(self) -> Key:
        return key_of(canonical_id(self.user_id, "user_id"))


class Behavior(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a user did with an item."""

    user_id: Id
    item_id: Id
    kind: BehaviorKind
    event_time_ms: TimeMs | None = None

    @property
    def user_key(self) -> Key:
        return key_of(canonical_id(self.user_id, "user_id"))

    @property
    def item_key(self) -> Key:
        return key_of(canonical_id(self.item_id, "item_id"))


_T = TypeVar("_T")

_ITEM = msgspec.json.Decoder(ItemUpserted)
_USER = msgspec.json.Decoder(UserUpserted)
_BEHAVIOR = msgspec.json.Decoder(Behavior)


class _RawAttributes(msgspec.Struct):
    attributes: dict[str, msgspec.Raw]


_ATTRIBUTE = msgspec.json.Decoder(Attribute)


def decode_item(value: bytes) -> ItemUpserted:
    """JSON bytes -> item. Raises ``BadEvent`` with the field's path; numbers are finite, the category is an id."""
    item = _decode(_ITEM, value)
    if type(item.category) is not str:
        _check_id(item.category, "category")
    vector = item.content_vector
    # JSON has no NaN and no number passes the vector's length, which C sums up (64 numbers: .3 µs; min and max 1.4).
    if vector and not hypot(*vector) <= _F32_MAX:
        item.content()
    return item


def decode_user(value: bytes) -> UserUpserted:
    """JSON bytes -> user. Raises ``BadEvent`` with the field's path."""
    return _decode(_USER, value)


def decode_behavior(value: bytes) -> Behavior:
    """JSON bytes -> behavior. Raises ``BadEvent`` with the field's path."""
    return _decode(_BEHAVIOR, value)


def check_event_time(event_time_ms: int, append_time_ms: int, max_ahead_ms: int = MAX_AHEAD_MS) -> None:
    """Raise ``BadEvent`` ("future") when the event claims to be later than its append time allows."""
    ahead_ms = event_time_ms - append_time_ms
    if ahead_ms > max_ahead_ms:
        raise BadEvent(
            "future",
            f"is {ahead_ms / 1000:.0f} s ahead of the broker's clock",
            field="event_time_ms",
            mend="set the producer's clock, then redrive",
        )


def _decode(decoder: msgspec.json.Decoder[_T], value: bytes) -> _T:
    try:
        if not value.isascii():
            value.decode()  # msgspec skips unknown fields without looking at their bytes
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        problem, field = _split_path(str(error), value)
        raise BadEvent("invalid", problem[:_PROBLEM_CHARS], field=field) from None
    except UNDECODABLE as error:
        raise BadEvent("unreadable", f"not JSON: {error}") from None


def _check_id(value: str | int, field: str) -> None:
    """Raise ``BadEvent`` ("invalid") for a number that is too long for an id; JSON numbers have no limit."""
    try:
        canonical_id(value, field)
    except BadInput as error:
        raise BadEvent("invalid", error.problem, field=field) from None


def _split_path(message: str, value: bytes) -> tuple[str, str]:
    """msgspec's "Expected `int`, got `str` - at `$.a.b`" -> ("Expected `int`, got `str`", "a.b").

    msgspec writes the name of an attribute as ``[...]``; it is looked up, so that the reader finds the place.
    """
    problem, _, path = message.partition(" - at ")
    field = path.strip("`").replace("key` in `", "").removeprefix("$").removeprefix(".")
    if "missing required field" in problem:
        field = ".".join(part for part in (field, problem.rsplit("`", 2)[1]) if part)
    elif field.startswith("attributes[...]"):
        field = field.replace("[...]", f".{_wrong_attribute(value)}", 1)
    return problem, field


def _wrong_attribute(value: bytes) -> str:
    """Name of the first attribute that is none, in an event that has been refused for it."""
    try:
        attributes = msgspec.json.decode(value, type=_RawAttributes).attributes
    except UNDECODABLE:
        return "?"  # behind that attribute it is no JSON either
    for name, raw in attributes.items():
        try:
            _ATTRIBUTE.decode(raw)
        except msgspec.ValidationError:
            return name[:64]
    return "?"
