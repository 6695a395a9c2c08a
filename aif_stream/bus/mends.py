"""Mended records: what a person (or a script) wants sent in a dead letter's place, checked as the consumers will."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson

from aif_stream.bus.events import behavior_from_record, event_headers, item_from_record, user_from_record
from aif_stream.bus.letters import ATTEMPTS, REDRIVEN_FROM, Letter
from aif_stream.bus.lines import KINDS, Kind, parse_line
from aif_stream.bus.salvage import UNPARSEABLE
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, USER_UPDATES
from aif_stream.clock import now_ms
from aif_stream.domain.decoding import UNDECODABLE, fault_of
from aif_stream.domain.events import EventType
from aif_stream.domain.ids import canonical_id
from aif_stream.errors import BadInput

SOURCE: Final = "aif.dlq"
_KIND_OF: Final[dict[str, Kind]] = {kind.topic: kind for kind in KINDS.values()}
_READERS: Final[dict[str, Callable[..., Any]]] = {
    ITEM_UPDATES: item_from_record,
    USER_UPDATES: user_from_record,
    BEHAVIORS: behavior_from_record,
}


class Mend(msgspec.Struct, frozen=True):
    """One line of a mend file. One of: ``line`` (as ``aif publish`` takes it), ``remove`` (an item's id), ``drop``.

    Other fields are ignored, so that a line of ``aif dlq ls --export`` with its ``line`` corrected is a mend.
    """

    letter: int
    line: msgspec.Raw = msgspec.Raw(b"null")
    remove: str | None = None
    drop: bool = False
    event_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record on its way back: what ``Producer.send`` takes, and what the readers of bus/events.py can read."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int
    partition: int
    offset: int = 0


_MEND: Final = msgspec.json.Decoder(Mend)


def read_mends(lines: Iterable[bytes]) -> dict[int, Mend]:
    """Letter number -> mend. Raises ``BadInput`` naming the line; a letter twice is refused, too."""
    found: dict[int, Mend] = {}
    for at, line in enumerate(lines, start=1):
        if not line or line.isspace():
            continue
        try:
            mend = _MEND.decode(line)
        except UNDECODABLE as error:
            raise BadInput(f"line {at}: {error}", mend='lines are {"letter": N, "line": {…}}') from None
        if mend.letter in found:
            raise BadInput(f"line {at}: letter {mend.letter} is there twice")
        found[mend.letter] = mend
    return found


def outgoing(letter: Letter, mend: Mend | None, limit_bytes: int) -> Outgoing:
    """The record to send for a letter: as it was, or mended. Raises ``BadInput`` when that cannot be built."""
    head = letter.head
    tries = [(ATTEMPTS, b"%d" % head.attempts), (REDRIVEN_FROM, b"%d" % head.number)]
    if mend is not None:
        key, value, headers = _mended(letter, mend, limit_bytes)
        return Outgoing(head.topic, key, value, [*headers, *tries], now_ms(), head.partition)
    if head.reason == UNPARSEABLE:
        raise BadInput(
            "the bytes are a stored batch of Kafka that could not be parsed, not a record",
            mend=f"publish what was at {head.topic}/{head.partition}/{head.offset} from its source, or drop this",
        )
    if head.truncated is not None:
        raise BadInput(
            f"only {head.size_bytes} of {head.truncated} bytes are here",
            mend=f"the whole record is at {head.topic}/{head.partition}/{head.offset}: publish it from its source",
        )
    return Outgoing(head.topic, letter.key, letter.value, [*letter.headers, *tries], now_ms(), head.partition)


def check(record: Outgoing, max_ahead_ms: int) -> None:
    """Raise ``BadEvent`` when the consumers of this release would make a dead letter of it again."""
    reader = _READERS.get(record.topic)
    try:
        if reader is not None:
            reader(record, max_ahead_ms)
    except Exception as error:  # noqa: BLE001  # the edge of one record
        raise fault_of(error) from None


def _mended(letter: Letter, mend: Mend, limit_bytes: int) -> tuple[bytes, bytes | None, list[tuple[str, bytes]]]:
    kind = _KIND_OF.get(letter.head.topic)
    if kind is None:
        raise BadInput(
            f"records of {letter.head.topic} are not mended by lines", mend="redrive it as it is, or drop it"
        )
    event_id = str(uuid.uuid4())
    if mend.remove is not None:
        if kind.type is not EventType.ITEM_UPSERTED:
            raise BadInput("only items are removed", field="remove")
        key = canonical_id(mend.remove, "remove").encode()
        return key, None, event_headers(EventType.ITEM_REMOVED, event_id, SOURCE, _time(letter, mend, None))
    if bytes(mend.line) == b"null":
        raise BadInput("says neither line nor remove nor drop", field="line")
    line = parse_line(kind, bytes(mend.line), limit_bytes)
    return line.key, line.value, event_headers(kind.type, event_id, SOURCE, _time(letter, mend, line.event_time_ms))


def _time(letter: Letter, mend: Mend, in_line: int | None) -> int:
    """The line's time, the mend's, the letter's own, or when its record was appended: the first that is there."""
    for time_ms in (in_line, mend.event_time_ms, letter.event_time_ms):
        if time_ms is not None:
            return time_ms
    return max(0, letter.head.appended_ms)


def export_line(letter: Letter) -> bytes:
    """A letter as one JSON line (no newline): all that is known, and ``line`` where the value is a JSON object."""
    head = letter.head
    return orjson.dumps(
        {
            "letter": head.number,
            "topic": head.topic,
            "partition": head.partition,
            "offset": head.offset,
            "reason": head.reason,
            "problem": head.problem,
            "attempts": head.attempts,
            "put_ms": head.put_ms,
            "event_time_ms": letter.event_time_ms,
            "key": text_of(letter.key),
            "value": text_of(letter.value),
            "headers": {name: text_of(data) for name, data in letter.headers},
            "line": _json_of(letter.value),
        }
    )


def text_of(data: bytes | None) -> str | None:
    """UTF-8 text as it is; other bytes as ``hex:…``."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"hex:{data.hex()}"


def _json_of(value: bytes | None) -> Any:
    """An object, or None; None too for one that is nested too deep to be written again."""
    try:
        found = orjson.loads(value or b"null")
        return orjson.Fragment(orjson.dumps(found)) if isinstance(found, dict) else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
