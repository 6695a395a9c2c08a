"""From a version's record to what can answer: the artefact checked and loaded, its kernels warm."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aif_stream.domain.row import VALID, empty_rows
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import ArtefactError
from aif_stream.model.artefact import load, manifest_sha256
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.serving import unknown_user

_WARM_ROWS: Final = 4_096  # one slice: allocators and kernels have seen the real shapes before a request comes


def wanted(book: VersionBook, most: int) -> list[VersionRecord]:
    """The versions that a server should hold, most needed first: the active one, the canary, the one that the active
    replaced (a rollback goes there), then the other rebuilt ones, newest first. At most ``most``, but always those two
    that answer."""
    rebuilt = [
        record for record in book.live() if book.state_of(record.version) in (VersionState.READY, VersionState.ACTIVE)
    ]
    active = book.records.get(book.active or "")
    answering = [name for name in (book.active, book.canary) if name is not None]
    first = [*answering, active.replaces if active is not None else None]

    def rank(record: VersionRecord) -> tuple[int, int]:
        return first.index(record.version) if record.version in first else len(first), -record.created_ms

    return sorted(rebuilt, key=rank)[: max(most, len(answering))]


def load_published(record: VersionRecord) -> ModelVersion:
    """The artefact of a record. Raises ``ArtefactError`` when it is not the one that was published."""
    directory = Path(record.artefact)
    found = manifest_sha256(directory)
    if found != record.manifest_sha256:
        raise ArtefactError(
            f"{directory} is not what was published as {record.version} (manifest {found[:12]}…, "
            f"published {record.manifest_sha256[:12]}…)",
            mend="put the published artefact back, or publish this one under a new name",
        )
    model = load(directory)
    if model.name != record.version:
        raise ArtefactError(f"{directory} holds version {model.name}, not {record.version}")
    return model


def warm(model: ModelVersion) -> UserSide:
    """The unknown user's side; scoring has run with it."""
    unknown = unknown_user(model)
    rows = empty_rows(model.layout, _WARM_ROWS)
    rows["flags"] = VALID
    for _ in range(3):
        model.score(unknown, rows)
    return unknown
