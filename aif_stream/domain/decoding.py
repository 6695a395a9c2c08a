"""Foreign bytes → bounded values. Every reader of records decodes JSON, numbers and headers through this module.

A record from outside may carry anything: numbers of 5,000 digits, JSON nested 3,000 deep, headers without a value. What
decoding it raises is a fault of that record (``BadEvent``) and never ends its reader.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from aif_stream.errors import BadEvent, BadInput
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TIME_MS: Final = 253_402_300_799_999  # the end of the year 9999, the last that RFC 3339 can write
MAX_EXACT: Final = 2**53 - 1  # the largest number that Lua and JavaScript count to without rounding
MAX_COUNT: Final = 2**31 - 1
MAX_OFFSET: Final = 2**63 - 1  # Kafka's offsets are signed
_MAX_DEPTH: Final = 500
UNFORESEEN: Final = "unforeseen"
"""Reason of a dead letter whose decoding failed in a way that no check names: a fault of this program as well."""

UNDECODABLE: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""What decoding bytes raises for the bytes' sake (``UnicodeError`` is a ``ValueError``)."""


def decode_json(decoder: msgspec.json.Decoder[T], value: bytes | None, what: str) -> T:
    """JSON bytes → a struct. Raises ``BadEvent`` ("unreadable"), which says that it is not ``what``."""
    try:
        return decoder.decode(value or b"")
    except UNDECODABLE as error:
        raise BadEvent("unreadable", f"not {what}: {error!s:.300}") from None


def whole_number(digits: bytes | str | None, most: int) -> int | None:
    """0 … ``most`` in ASCII digits → the number; None for anything else. Converts no more digits than ``most`` has."""
    if digits is None or len(digits) > len(str(most)) or not (digits.isascii() and digits.isdigit()):
        return None
    number = int(digits)
    return number if number <= most else None


def check_plain(value: Any) -> None:
    """Raise ``ValueError`` for decoded JSON that cannot be written for others again: a whole number beyond 64 bits, or
    nested so deep that the next encoder, with more calls below it, would give up."""
    left = [(value, 0)]
    while left:
        part, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if isinstance(part, dict):
            left.extend((inner, depth + 1) for inner in part.values())
        elif isinstance(part, list):
            left.extend((inner, depth + 1) for inner in part)
        elif isinstance(part, int) and not -(2**63) <= part < 2**64:
            raise ValueError("a whole number is beyond 64 bits")


def check_number(headers: Mapping[str, bytes], name: str, most: int) -> None:
    """Raise ``BadEvent`` ("envelope") where header ``name`` is there and is not a number of 0 … ``most``."""
    if name in headers and whole_number(headers[name], most) is None:
        raise BadEvent("envelope", f"not a number between 0 and {most}", field=name)


def fault_of(error: Exception) -> BadEvent:
    """The fault of the record whose decoding raised ``error``; for the ``except Exception`` around one record.

    Decoding asks neither store nor bus, so no error of theirs is hidden. Running out of memory is the process's own
    trouble and is raised again.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, BadEvent):
        return error
    if isinstance(error, BadInput):
        return BadEvent("invalid", error.problem, field=error.field)
    problem = f"{type(error).__name__}: {error!s:.300}"
    if isinstance(error, UNDECODABLE):
        return BadEvent("unreadable", problem)
    log.error(kv("record.unforeseen_fault", problem=problem), exc_info=error)
    return BadEvent(UNFORESEEN, problem)
