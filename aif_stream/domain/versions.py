"""Model versions as ``aif.model-updates`` tells them: full records, folded in offset order.

The topic is compacted by version, so only the last record of each version is sure to be there. Which
version is active must survive that: activations are numbered, and the highest number counts. Of two
activations that raced for one number, the first in the log wins. A canary (a ready version that answers
a share of the users) takes a number too, and holds while no activation has a higher one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec

from aif_stream.errors import BadEvent, VersionError

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
    artefact: str
    manifest_sha256: str
    created_ms: int
    activation: int = 0
    replaces: str | None = None
    note: str = ""
    percent: float = 0.0

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


_DECODER = msgspec.json.Decoder(VersionRecord)


def decode_version(value: bytes) -> VersionRecord:
    """Raises ``BadEvent`` when the value is no version record."""
    try:
        record = _DECODER.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("unreadable", f"not a version record: {error}") from None
    check_version_name(record.version)
    if not 0 <= record.percent <= 100:
        raise BadEvent("invalid", f"{record.percent:g} is no share of the users", field="percent")
    return record


def check_version_name(name: str) -> str:
    """A version names Redis keys, files and label values: letters, digits, ``. _ -``, at most 64."""
    if not _NAME.fullmatch(name):
        raise VersionError(f"{name!r:.80} is no version name", mend="use letters, digits and . _ - (64 at most)")
    return name


def in_canary(version: str, user: str, percent: float) -> bool:
    """Whether a canary of ``percent`` answers this user (canonical id).

    BLAKE2b of version and user, as a share of its range. So a user stays with one version from request to request and
    on every server; a share that grows keeps those that it had; and the next version meets other users first.
    """
    digest = blake2b(f"{version}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < percent / 100 * 2**64


@dataclass(slots=True)
class VersionBook:
    """The fold: what every process believes after reading the topic up to some offset.

    ``active`` depends on the latest record of each version alone, so that the compacted topic says the same as the
    whole one: of the versions whose latest record is an activation, the one with the highest number (the first of
    two with the same). ``activation`` is the highest number seen; the next activation takes the one after it.
    ``canary``: of the ready versions with a share of the users, the one with the highest number, if no activation has
    that number or a higher one.
    """

    records: dict[str, VersionRecord] = field(default_factory=dict)
    active: str | None = None
    canary: str | None = None
    activation: int = 0
    _arrivals: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    def apply(self, record: VersionRecord) -> bool:
        """Take one record, in offset order; True when the active version changed by it."""
        before = self.records.get(record.version)
        if before is None or _claim(before) != _claim(record):
            self._count += 1
            self._arrivals[record.version] = self._count
        self.records[record.version] = record
        self.activation = max(self.activation, record.activation)
        active = self._highest(r for r in self.records.values() if r.state is VersionState.ACTIVE)
        canary = self._highest(r for r in self.records.values() if r.state is VersionState.READY and r.percent > 0)
        if active is None or (canary is not None and canary.activation <= active.activation):
            canary = None
        self.canary = canary.version if canary else None
        changed = self.active != (active.version if active else None)
        self.active = active.version if active else None
        return changed

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
