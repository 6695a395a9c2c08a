"""Who cannot recompute a score says why: the version is unknown, retired, or not what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import Unexplainable
from aif_stream.explain.versions import Versions
from aif_stream.model.artefact import manifest_sha256, save
from tests.model_builders import small_version


def book_of(directory: Path, *, state: VersionState = VersionState.READY, sha256: str = "") -> VersionBook:
    save(directory, small_version())
    book = VersionBook()
    book.apply(
        VersionRecord(
            version="v",
            state=state,
            artefact=str(directory),
            manifest_sha256=sha256 or manifest_sha256(directory),
            created_ms=0,
        )
    )
    return book


async def test_a_version_that_is_there_is_loaded_once(tmp_path: Path) -> None:
    versions = Versions(book_of(tmp_path / "v"))
    assert await versions.get("v") is await versions.get("v")


@pytest.mark.parametrize(
    ("name", "state", "sha256", "says"),
    [
        ("other", VersionState.READY, "", "unknown"),
        ("v", VersionState.RETIRED, "", "retired"),
        ("v", VersionState.READY, "0" * 64, "not what was published"),
    ],
)
async def test_one_that_is_not_is_named_with_the_reason(
    tmp_path: Path, name: str, state: VersionState, sha256: str, says: str
) -> None:
    with pytest.raises(Unexplainable, match=says):
        await Versions(book_of(tmp_path / "v", state=state, sha256=sha256)).get(name)


async def test_an_artefact_that_has_gone_is_named(tmp_path: Path) -> None:
    book = book_of(tmp_path / "v")
    (tmp_path / "v" / "weights.safetensors").unlink()
    with pytest.raises(Unexplainable, match="cannot be loaded"):
        await Versions(book).get("v")
