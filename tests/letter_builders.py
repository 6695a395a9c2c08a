"""Bad records of ten kinds, what a person would make of them, and `aif dlq` as a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aif_stream.bus.events import event_headers
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType
from tests.nearline_builders import T0_MS, item_line

Headers = list[tuple[str, bytes]]


class Bad(NamedTuple):
    """A record that no consumer can use."""

    key: bytes
    value: bytes
    headers: Headers


def _headers(time_ms: int = T0_MS, kind: EventType = EventType.ITEM_UPSERTED) -> Headers:
    return event_headers(kind, "e", "test", time_ms)


def _replaced(name: str, value: bytes | None) -> Headers:
    kept = [pair for pair in _headers() if pair[0] != name]
    return kept if value is None else [*kept, (name, value)]


def _line(name: str, **more: Any) -> bytes:
    return json.dumps({**json.loads(item_line(name)), **more}).encode()


def _key(name: str) -> bytes:
    return name.encode()


# (reason, field) of the letter -> the record of one item.
KINDS: dict[tuple[str, str], Callable[[str], Bad]] = {
    ("unreadable", ""): lambda n: Bad(_key(n), item_line(n)[:-1], _headers()),
    ("invalid", "category"): lambda n: Bad(_key(n), b'{"item_id":"%s"}' % n.encode(), _headers()),
    ("invalid", "attributes.price"): lambda n: Bad(_key(n), _line(n, attributes={"price": {}}), _headers()),
    ("invalid", "item_id"): lambda n: Bad(_key(n), _line(n, item_id=-1), _headers()),
    ("envelope", "ce_specversion"): lambda n: Bad(_key(n), item_line(n), []),
    ("envelope", "ce_time"): lambda n: Bad(_key(n), item_line(n), _replaced("ce_time", b"yesterday")),
    ("unknown-type", "ce_type"): lambda n: Bad(_key(n), item_line(n), _headers(kind=EventType.BEHAVIOR)),
    ("key", "key"): lambda n: Bad(b"not-" + n.encode(), item_line(n), _headers()),
    ("future", "event_time_ms"): lambda n: Bad(_key(n), item_line(n), _headers(now_ms() + 86_400_000)),
    ("not-finite", "content_vector"): lambda n: Bad(_key(n), _line(n, content_vector=[1e300]), _headers()),
}


def mended(exported: dict[str, Any], name: str) -> dict[str, Any]:
    """What an engineer's script makes of one exported letter: a good line, at a time that has been."""
    return {"letter": exported["letter"], "line": {**json.loads(item_line(name)), "event_time_ms": T0_MS + 1}}


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
