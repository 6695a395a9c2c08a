"""One dead letter as people and programs read it, and what becomes of all of them: open, claimed, handled.

The topic is its own book: who handles letters appends *markers* beside them (docs/decisions/0007). It has one
partition, so everybody folds the same order, and of two claims for one letter the first in the log has it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from aif_stream.bus.consumer import Record
from aif_stream.bus.producer import Headers
from aif_stream.domain.decoding import MAX_COUNT, MAX_OFFSET, MAX_TIME_MS, decode_json, whole_number
from aif_stream.domain.envelope import from_headers
from aif_stream.errors import BadEvent

MARKER: Final = "aif_marker"
ATTEMPTS: Final = "aif_attempts"
REDRIVEN_FROM: Final = "aif_redriven_from"
OWN: Final = "aif_"
MAX_TRIES: Final = 1_000_000
TRIES_HEADERS: Final = {ATTEMPTS: MAX_TRIES, REDRIVEN_FROM: MAX_OFFSET}
"""What a redrive adds to a record, and the largest number that each may hold."""

# A claim that is neither settled nor released after this long was left by a process that died: a redrive claims at
# most what it sends within 30 s (redrive.py), and waits 30 s for acknowledgements.
LEASE_MS: Final = 5 * 60 * 1000
_TEXT_BYTES: Final = 4_096  # of a header that is shown; ours are shorter
_FIELD: Final = re.compile(r"[\w.*\[\]-]{1,80}")


@dataclass(frozen=True, slots=True)
class Head:
    """A letter without its bytes. ``number`` is its offset in the dead-letter topic; ``topic`` the source's base name.

    ``put_ms`` and ``appended_ms``: append times here and in the source. ``truncated``: bytes of the whole value when
    only its first part fitted, else None.
    """

    number: int
    put_ms: int
    topic: str
    partition: int
    offset: int
    appended_ms: int
    reason: str
    problem: str
    attempts: int
    redriven_from: int | None
    truncated: int | None
    size_bytes: int

    @property
    def field(self) -> str:
        """The field that the problem names, "" when it names none: it tells kinds of one reason apart."""
        name, colon, _ = self.problem.partition(": ")
        return name if colon and _FIELD.fullmatch(name) else ""


@dataclass(frozen=True, slots=True)
class Letter:
    """The record as it was in its source. ``headers`` are its own, without ours."""

    head: Head
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def event_time_ms(self) -> int | None:
        """``ce_time``; None when the headers do not tell one."""
        try:
            return from_headers(self.headers).time_ms
        except BadEvent:
            return None


def head_of(record: Record, prefix: str) -> Head:
    """Read our headers; a record that somebody else put here has reason "unlabelled" and no topic.

    Its headers may hold anything: what is no number, or beyond what such a number can be, counts as missing.
    """
    own = {name: data for name, data in record.headers if name.startswith(OWN) and data is not None}
    put_ms = min(max(0, record.timestamp), MAX_TIME_MS)

    def text(name: str, default: str = "") -> str:
        return own[name][:_TEXT_BYTES].decode("utf-8", "replace") if name in own else default

    def number(name: str, default: int, most: int = MAX_OFFSET) -> int:
        found = whole_number(own.get(name), most)
        return default if found is None else found

    return Head(
        number=record.offset,
        put_ms=put_ms,
        topic=text("aif_topic").removeprefix(prefix),
        partition=number("aif_partition", 0, MAX_COUNT),
        offset=number("aif_offset", 0),
        appended_ms=number("aif_timestamp", put_ms, MAX_TIME_MS),
        reason=text("aif_reason", "unlabelled"),
        problem=text("aif_problem"),
        attempts=number(ATTEMPTS, 1, MAX_TRIES),
        redriven_from=whole_number(own.get(REDRIVEN_FROM), MAX_OFFSET),
        truncated=number("aif_truncated", 0) if "aif_truncated" in own else None,
        size_bytes=len(record.value or b""),
    )


def letter_of(record: Record, prefix: str) -> Letter:
    """The whole letter; a tombstone's null value is put back."""
    names = {name for name, _ in record.headers}
    headers = tuple((name, data) for name, data in record.headers if not name.startswith(OWN))
    return Letter(
        head_of(record, prefix), record.key, None if "aif_null_value" in names else (record.value or b""), headers
    )


class Step(StrEnum):
    """What a marker says about its letters."""

    CLAIM = "claim"
    HANDLED = "handled"
    RELEASED = "released"


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a marker record. ``how``: redriven, mended or dropped."""

    step: Step
    claim: str
    by: str
    how: str = ""
    letters: list[int]


_MARKER = msgspec.json.Decoder(Marker)


def marker_record(marker: Marker) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers of a marker."""
    return b"aif-marker", msgspec.json.encode(marker), [(MARKER, marker.step.value.encode())]


class LetterState(StrEnum):
    OPEN = "open"
    CLAIMED = "claimed"
    HANDLED = "handled"


@dataclass(slots=True)
class Entry:
    """One line of the book."""

    head: Head
    state: LetterState = LetterState.OPEN
    claim: str = ""
    claimed_ms: int = 0
    by: str = ""
    how: str = ""

    def free(self, now_ms: int) -> bool:
        """Whether somebody may take it: open, or claimed by one who has not been heard of for ``LEASE_MS``."""
        if self.state is LetterState.CLAIMED:
            return now_ms - self.claimed_ms > LEASE_MS
        return self.state is LetterState.OPEN


@dataclass(slots=True)
class LetterBook:
    """The fold of the topic. Only append times count in it, so that every reader comes to the same result."""

    prefix: str = ""
    entries: dict[int, Entry] = dataclasses.field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Take one record, in offset order. A marker that cannot be read changes nothing."""
        if not any(name == MARKER for name, _ in record.headers):
            self.entries[record.offset] = Entry(head_of(record, self.prefix))
            return
        try:
            marker = decode_json(_MARKER, record.value, "a marker")
        except BadEvent:
            return
        for number in marker.letters:
            entry = self.entries.get(number)
            if entry is not None:
                _mark(entry, marker, record.timestamp)

    def in_state(self, *states: LetterState) -> list[Entry]:
        """Entries in these states, by number."""
        return [entry for entry in self.entries.values() if entry.state in states]

    def held_by(self, claim: str, numbers: Iterable[int]) -> set[int]:
        """Those of ``numbers`` that this claim has got."""
        found = ((number, self.entries.get(number)) for number in numbers)
        return {n for n, e in found if e is not None and e.claim == claim and e.state is LetterState.CLAIMED}

    def handled_up_to(self, end: int) -> int:
        """The number of the first letter that is not handled; ``end`` when there is none."""
        waiting = (number for number, entry in self.entries.items() if entry.state is not LetterState.HANDLED)
        return min(waiting, default=end)


def _mark(entry: Entry, marker: Marker, at_ms: int) -> None:
    if marker.step is Step.CLAIM:
        if entry.free(at_ms):
            entry.state, entry.claim, entry.claimed_ms, entry.by = LetterState.CLAIMED, marker.claim, at_ms, marker.by
    elif marker.step is Step.HANDLED:
        # Whoever says so has done it, also when its lease had run out meanwhile.
        entry.state, entry.by, entry.how = LetterState.HANDLED, marker.by, marker.how
    elif entry.claim == marker.claim and entry.state is LetterState.CLAIMED:
        entry.state, entry.claim = LetterState.OPEN, ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; empty fields mean all. ``since_ms``: put aside at or after this time."""

    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int = 0
    numbers: frozenset[int] | None = None

    def takes(self, head: Head) -> bool:
        return (
            (not self.reasons or head.reason in self.reasons)
            and (not self.topics or head.topic in self.topics)
            and head.put_ms >= self.since_ms
            and (self.numbers is None or head.number in self.numbers)
        )


@dataclass(slots=True)
class Group:
    """Letters of one kind: source topic, reason and field. Times are append times of the letters."""

    topic: str
    reason: str
    field: str
    oldest_ms: int
    newest_ms: int
    most_attempts: int
    example: str
    numbers: list[int] = dataclasses.field(default_factory=list)


def grouped(entries: Iterable[Entry]) -> list[Group]:
    """The largest first."""
    found: dict[tuple[str, str, str], Group] = {}
    for entry in entries:
        head = entry.head
        kind = (head.topic, head.reason, head.field)
        group = found.get(kind)
        if group is None:
            group = found[kind] = Group(*kind, head.put_ms, head.put_ms, head.attempts, head.problem)
        group.oldest_ms, group.newest_ms = min(group.oldest_ms, head.put_ms), max(group.newest_ms, head.put_ms)
        group.most_attempts = max(group.most_attempts, head.attempts)
        group.numbers.append(head.number)
    return sorted(found.values(), key=lambda group: (-len(group.numbers), group.topic, group.reason, group.field))


def ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` -> ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
