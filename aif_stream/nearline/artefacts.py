"""Published artefacts: checked, and copied to where every role reads them, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from aif_stream.errors import ArtefactError
from aif_stream.model.artefact import load, manifest_sha256


def install(artefact: Path, home: Path) -> Path:
    """Copy an artefact to where every role reads it, whole or not at all. Repeatable for the same artefact.

    Raises ``ArtefactError`` when ``home`` holds another one, or cannot be written.
    """
    if home.exists():
        return _same(artefact, home)
    draft: Path | None = None
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
        shutil.copytree(artefact, draft, dirs_exist_ok=True)
        draft.chmod(0o755)  # mkdtemp makes it private; other roles read it
        draft.rename(home)
    except OSError as error:
        if home.exists():  # somebody else published the name at the same moment
            return _same(artefact, home)
        raise ArtefactError(
            f"cannot copy {artefact} to {home}: {_why(error)}",
            mend=f"{_mib(artefact):.1f} MiB must fit into AIF_MODELS_DIR; then publish again, nothing was announced",
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return home


def _same(artefact: Path, home: Path) -> Path:
    if manifest_sha256(home) != manifest_sha256(artefact):
        raise ArtefactError(f"{home} holds another artefact", mend="train under a new version name")
    load(home)
    return home


def _why(error: OSError) -> str:
    """The system's words; ``copytree`` hands them over as one list for all files."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(dict.fromkeys(str(why) for *_, why in error.args[0]))
    return error.strerror or str(error)


def _mib(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 2**20
