"""Lines of JSONL → records: what ``aif publish`` and ``POST /v1/events/items`` accept, and why they refuse."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, USER_UPDATES
from aif_stream.domain.events import (
    Behavior,
    EventType,
    ItemUpserted,
    UserUpserted,
    decode_behavior,
    decode_item,
    decode_user,
)
from aif_stream.domain.ids import canonical_id
from aif_stream.errors import BadInput

LineKind = Literal["items", "users", "behaviors"]

_READ_BYTES: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A checked line. ``value`` is the line's own JSON, unknown fields included; ``event_time_ms`` None means now."""

    key: bytes
    value: bytes
    event_time_ms: int | None


class Reject(NamedTuple):
    """A line that was not sent; ``line`` counts from 1."""

    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of line becomes."""

    topic: str
    type: EventType
    decode: Callable[[bytes], Any]
    id_field: str
    tokens: tuple[bytes, ...]


def _kind(topic: str, kind: EventType, decode: Callable[[bytes], Any], id_field: str, struct: Any) -> Kind:
    return Kind(topic, kind, decode, id_field, tuple(f'"{name}"'.encode() for name in struct.__struct_fields__))


KINDS: Final[dict[LineKind, Kind]] = {
    "items": _kind(ITEM_UPDATES, EventType.ITEM_UPSERTED, decode_item, "item_id", ItemUpserted),
    "users": _kind(USER_UPDATES, EventType.USER_UPSERTED, decode_user, "user_id", UserUpserted),
    "behaviors": _kind(BEHAVIORS, EventType.BEHAVIOR, decode_behavior, "user_id", Behavior),
}


def parse_line(kind: Kind, line: bytes, limit_bytes: int) -> Line:
    """Check one line. Raises ``BadInput`` with the field; ``BadEvent`` with its reason where there is one."""
    if len(line) > limit_bytes:
        raise BadInput(f"the line is longer than {limit_bytes} bytes, the most that {kind.topic} takes")
    event = kind.decode(line)
    _refuse_duplicates(kind, line, event)
    key = canonical_id(getattr(event, kind.id_field), kind.id_field).encode()
    if kind.type is EventType.BEHAVIOR:
        canonical_id(event.item_id, "item_id")
    return Line(key, line, event.event_time_ms)


def _refuse_duplicates(kind: Kind, line: bytes, event: Any) -> None:
    """A key twice in one object means different things to different readers.

    Counting is enough for nearly every line (0.8 µs): each known name at most once, and as many keys in the line as
    known names and attributes. Lines with unknown fields, or where text looks like a key, are read again with care.
    """
    found = 0
    for token in kind.tokens:
        count = line.count(token)
        if count > 1:
            break
        found += count
    else:
        if found + len(getattr(event, "attributes", ())) == line.count(b'":'):
            return
    json.loads(line, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise BadInput("the key is there twice", field=name[:64])
        seen.add(name)


def split_lines(data: bytes) -> list[bytes]:
    """The lines of a body, without their ends (``\\n`` or ``\\r\\n``); a byte order mark at the start is dropped."""
    return data.removeprefix(_BOM).replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")


class LineReader:
    """Lines of a file or pipe, read by a thread of its own: ``async for lines in reader``.

    A line beyond ``limit_bytes`` comes cut to one byte more (so that ``parse_line`` refuses it) and is never in
    memory whole. At most four chunks of 256 KiB are read ahead. A blocked read does not hold up the process's end.
    """

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        self.bytes_read = 0
        self._descriptor = descriptor
        self._limit = limit_bytes
        self._chunks: asyncio.Queue[list[bytes] | OSError | None] = asyncio.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def __aiter__(self) -> AsyncIterator[list[bytes]]:
        # A daemon: it may sit in read(2) on a terminal for ever. It holds no lock of a Python file object.
        threading.Thread(target=self._read, name="line-reader", daemon=True).start()
        return self._lines()

    async def _lines(self) -> AsyncIterator[list[bytes]]:
        try:
            while (chunk := await self._chunks.get()) is not None:
                if isinstance(chunk, OSError):
                    raise chunk
                yield chunk
        finally:
            self._closed = True

    def _read(self) -> None:
        last: list[bytes] | OSError | None = None
        try:
            rest, first = b"", True
            while data := os.read(self._descriptor, _READ_BYTES):
                self.bytes_read += len(data)
                if first:
                    data, first = data.removeprefix(_BOM), False
                *lines, rest = (rest + data).split(b"\n")
                # One byte beyond the limit is enough to know it; two, because the last may be a "\r".
                rest = rest[: self._limit + 2]
                if not self._hand_over([self._cut(line) for line in lines]):
                    return
            if rest:
                self._hand_over([self._cut(rest)])
        except OSError as error:
            last = error
        self._hand_over(last)

    def _cut(self, line: bytes) -> bytes:
        return line.removesuffix(b"\r")[: self._limit + 1]

    def _hand_over(self, chunk: list[bytes] | OSError | None) -> bool:
        """False when nobody reads any more."""
        if self._closed or self._loop.is_closed():
            return False
        try:
            asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), self._loop).result()
        except (RuntimeError, concurrent.futures.CancelledError):  # the loop has ended
            return False
        return True
