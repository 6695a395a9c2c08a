"""CloudEvents 1.0, binary mode over Kafka: the attributes are ``ce_*`` headers, the value is the data.

Source: CloudEvents Kafka protocol binding 1.0, §3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from aif_stream.clock import from_rfc3339, to_rfc3339
from aif_stream.domain.decoding import MAX_TIME_MS
from aif_stream.errors import BadEvent

Headers = Sequence[tuple[str, bytes]]
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
_CACHED_BYTES: Final = 128  # a type that is longer is none of ours, and would be kept


class Envelope(NamedTuple):
    """What the headers say. ``extensions`` are the ``ce_*`` attributes beyond the required ones."""

    type: str
    id: str
    source: str
    time_ms: int
    extensions: dict[str, str]


def to_headers(envelope: Envelope, content_type: str = JSON) -> list[tuple[str, bytes]]:
    """Headers in a fixed order, ready for a producer."""
    kind, source, content = _alike(envelope.type, envelope.source, content_type)
    return [
        ("ce_specversion", b"1.0"),
        kind,
        ("ce_id", envelope.id.encode()),
        source,
        ("ce_time", to_rfc3339(envelope.time_ms).encode()),
        *((f"ce_{name}", value.encode()) for name, value in envelope.extensions.items()),
        content,
    ]


@functools.lru_cache(maxsize=64)  # what the events of one publisher have in common
def _alike(kind: str, source: str, content_type: str) -> tuple[tuple[str, bytes], ...]:
    return ("ce_type", kind.encode()), ("ce_source", source.encode()), ("content-type", content_type.encode())


def type_and_time(headers: Mapping[str, bytes]) -> tuple[str, int]:
    """``ce_type`` and event time in ms: what a hot lane needs, at a fifth of the cost of ``from_headers``.

    ``headers``: ``dict`` of a record's. Raises ``BadEvent`` as ``from_headers`` does.
    """
    try:
        named = headers["ce_specversion"] == b"1.0" and "ce_id" in headers and "ce_source" in headers
        if named and all(map(bytes.isascii, headers.values())):  # raises for one without a value
            time_ms, kind = _time_ms(headers["ce_time"]), headers["ce_type"]
            if 0 <= time_ms <= MAX_TIME_MS and len(kind) <= _CACHED_BYTES:
                return _text(kind), time_ms
    except (KeyError, ValueError, OverflowError, AttributeError, TypeError):
        pass  # the careful reader below says what is wrong, and takes header names in capitals
    envelope = from_headers(headers.items())
    return envelope.type, envelope.time_ms


@functools.lru_cache(maxsize=64)
def _text(value: bytes) -> str:
    return value.decode()


@functools.lru_cache(maxsize=1024)  # a thousand ms: at a lane's full rate some forty events share one
def _time_ms(text: bytes) -> int:
    return from_rfc3339(text.decode())


def from_headers(headers: Iterable[tuple[str, bytes]]) -> Envelope:
    """Read the attributes back. Raises ``BadEvent`` naming the header that is missing or wrong."""
    found = {lower: value for name, value in headers if (lower := name.lower()).startswith("ce_")}
    for name, value in found.items():
        if value is None:  # Kafka allows a header without a value, whatever the types say
            raise BadEvent("envelope", "header has no value", field=name[:80])
    if found.get("ce_specversion") != b"1.0":
        raise BadEvent("envelope", "CloudEvents 1.0 is expected", field="ce_specversion")
    try:
        text = {name.removeprefix("ce_"): value.decode() for name, value in found.items()}
        time_ms = from_rfc3339(text["time"])
        envelope = Envelope(text["type"], text["id"], text["source"], time_ms, {})
    except KeyError as error:
        raise BadEvent("envelope", "header is missing", field=f"ce_{error.args[0]}") from None
    except UnicodeDecodeError:
        raise BadEvent("envelope", "headers must be UTF-8", field="ce_*") from None
    except (ValueError, OverflowError):
        raise BadEvent("envelope", "not an RFC 3339 time", field="ce_time") from None
    if not 0 <= time_ms <= MAX_TIME_MS:
        raise BadEvent("envelope", "not between 1970 and 9999", field="ce_time")
    required = {"specversion", "type", "id", "source", "time"}
    envelope.extensions.update({name: value for name, value in text.items() if name not in required})
    return envelope
