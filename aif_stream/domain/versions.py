"""Model versions as ``aif.model-updates`` tells them: full records, folded in offset order.

The topic is compacted by version, so only the last record of each version is sure to be there. Which
version is active must survive that: activations are numbered, and the highest number counts. Of two
activations that raced for one number, the first in the log wins. A canary (a ready version that answers
a share of the users) takes a number too, and holds while no activation has a higher one.

A record that cannot be used displaces its version's last good one: the next compaction removes that. So a
process that holds the good one writes it again, with the order that it had first (docs/decisions/0002).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from aif_stream.domain.decoding import MAX_EXACT, decode_json
from aif_stream.domain.events import TimeMs
from aif_stream.errors import BadEvent, VersionError

VERSION_EVENT: Final = "aif.model.version"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class VersionState(StrEnum):
    PUBLISHED = "published"
    REBUILDING = "rebuilding"
    READY = "ready"
    ACTIVE = "active"
    RETIRED = "retired"


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the topic. ``artefact`` is a directory path that every role can read.

    ``percent``: a ready version answers this share of the users (a canary); 0 for all others. ``note``: why it was
    activated though its gate fell short.
    """

    version: str
    state: VersionState
    artefact: Annotated[str, Meta(min_length=1, max_length=4096)]
    manifest_sha256: str
    created_ms: TimeMs
    activation: Annotated[int, Meta(ge=0, le=MAX_EXACT)] = 0
    replaces: str | None = None
    note: str = ""
    percent: float = 0.0

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


_DECODER = msgspec.json.Decoder(VersionRecord)


def decode_version(value: bytes) -> VersionRecord:
    """Raises ``BadEvent`` when the value is no version record."""
    record = decode_json(_DECODER, value, "a version record")
    if not is_version_name(record.version):
        raise BadEvent("invalid", f"{record.version!r:.80} is no version name", field="version")
    if "\0" in record.artefact:
        raise BadEvent("invalid", "a path holds no NUL", field="artefact")
    if not 0 <= record.percent <= 100:
        raise BadEvent("invalid", f"{record.percent:g} is no share of the users", field="percent")
    return record


def is_version_name(name: str) -> bool:
    """A version names Redis keys, files and label values: letters, digits, ``. _ -``, at most 64."""
    return _NAME.fullmatch(name) is not None


def check_version_name(name: str) -> str:
    """Raises ``VersionError`` where ``name`` is none."""
    if not is_version_name(name):
        raise VersionError(f"{name!r:.80} is no version name", mend="use letters, digits and . _ - (64 at most)")
    return name


def in_canary(version: str, user: str, percent: float) -> bool:
    """Whether a canary of ``percent`` answers this user (canonical id).

    BLAKE2b of version and user, as a share of its range. So a user stays with one version from request to request and
    on every server; a share that grows keeps those that it had; and the next version meets other users first.
    """
    digest = blake2b(f"{version}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < percent / 100 * 2**64


class LogEntry(NamedTuple):
    """A version's last good record: its bytes, and its order in the log, which is the offset that it had first."""

    value: bytes
    order: int


@dataclass(slots=True)
class VersionBook:
    """The fold: what every process believes after reading the topic up to some offset.

    ``active`` depends on the latest record of each version alone, so that the compacted topic says the same as the
    whole one: of the versions whose latest record is an activation, the one with the highest number (the first of
    two with the same). ``activation`` is the highest number seen; the next activation takes the one after it.
    ``canary``: of the ready versions with a share of the users, the one with the highest number, if no activation has
    that number or a higher one.
    ``entries``: those records as the topic carried them. ``displaced``: version -> offset of its key's last
    record, where that is another one: it cannot be used, or it is an older one that was written again too late.
    """

    records: dict[str, VersionRecord] = field(default_factory=dict)
    active: str | None = None
    canary: str | None = None
    activation: int = 0
    entries: dict[str, LogEntry] = field(default_factory=dict)
    displaced: dict[str, int] = field(default_factory=dict)
    _arrivals: dict[str, int] = field(default_factory=dict)
    _last: int = -1

    def apply(self, record: VersionRecord, entry: LogEntry | None = None) -> bool:
        """Take one record, in offset order; True when the active version changed by it.

        ``entry`` None: the record follows all others. One with a lower order than its version's own is not taken.
        """
        entry = entry or LogEntry(record.encode(), self._last + 1)
        if entry.order < self.order_of(record.version):
            return False
        self._last = max(self._last, entry.order)
        before = self.records.get(record.version)
        if before is None or _claim(before) != _claim(record):
            self._arrivals[record.version] = entry.order
        self.records[record.version], self.entries[record.version] = record, entry
        self.displaced.pop(record.version, None)
        self.activation = max(self.activation, record.activation)
        active = self._highest(r for r in self.records.values() if r.state is VersionState.ACTIVE)
        canary = self._highest(r for r in self.records.values() if r.state is VersionState.READY and r.percent > 0)
        if active is None or (canary is not None and canary.activation <= active.activation):
            canary = None
        self.canary = canary.version if canary else None
        changed = self.active != (active.version if active else None)
        self.active = active.version if active else None
        return changed

    def order_of(self, version: str) -> int:
        """The order of a version's record; -1 where there is none."""
        entry = self.entries.get(version)
        return -1 if entry is None else entry.order

    def displaced_entries(self) -> Mapping[str, LogEntry]:
        """Good records that the next compaction removes, by version: a process that holds them writes them again."""
        return {name: self.entries[name] for name in self.displaced if name in self.entries}

    def log_replaced(self) -> None:
        """The log was replaced by another one: what is known comes before everything that the new one says."""
        ranked = sorted(self._arrivals, key=lambda name: self._arrivals[name])
        self._arrivals = {name: at - len(ranked) for at, name in enumerate(ranked)}
        self.entries = {name: LogEntry(entry.value, -1) for name, entry in self.entries.items()}
        self.displaced.clear()
        self._last = -1

    def percent_of(self, version: str) -> float:
        """Share of the users that a version answers: 100 less the canary's for the active one, 0 for all others."""
        share = self.records[self.canary].percent if self.canary is not None else 0.0
        return {self.canary: share, self.active: 100.0 - share}.get(version, 0.0)

    def _highest(self, records: Iterable[VersionRecord]) -> VersionRecord | None:
        return max(records, key=lambda r: (r.activation, -self._arrivals[r.version]), default=None)

    def live(self) -> list[VersionRecord]:
        """Versions whose rows are kept up to date: all but the retired, oldest first."""
        return sorted(
            (r for r in self.records.values() if r.state is not VersionState.RETIRED),
            key=lambda r: (r.created_ms, r.version),
        )

    def state_of(self, version: str) -> VersionState:
        """A version once activated and since replaced is ready (for a rollback), whatever its record says."""
        record = self.records.get(version)
        if record is None:
            raise VersionError(f"version {version} is unknown", mend="aif model list")
        if record.state is VersionState.ACTIVE and version != self.active:
            return VersionState.READY
        return record.state


def _claim(record: VersionRecord) -> tuple[VersionState, int, float]:
    return record.state, record.activation, record.percent
