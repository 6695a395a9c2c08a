"""Model versions for explanations: whichever gave the score, loaded when it is asked for, the last few kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Final

from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import ArtefactError, Unexplainable
from aif_stream.model.artefact import load, manifest_sha256
from aif_stream.model.version import ModelVersion

_KEPT: Final = 3  # the active one, the one before, and one on trial


class Versions:
    """Over a book that somebody keeps up to date."""

    def __init__(self, book: VersionBook) -> None:
        self._book = book
        self._loaded: OrderedDict[str, ModelVersion] = OrderedDict()
        self._loading = asyncio.Lock()

    async def get(self, name: str) -> ModelVersion:
        """Raises ``Unexplainable`` when the version is unknown, retired, or not there as it was published."""
        record = self._book.records.get(name)
        if record is None:
            raise Unexplainable(f"version {name} is unknown: no record of it on aif.model-updates")
        if record.state is VersionState.RETIRED:
            raise Unexplainable(f"version {name} is retired: nobody can recompute its scores")
        async with self._loading:
            if name not in self._loaded:
                self._loaded[name] = await asyncio.to_thread(_load, record)
            self._loaded.move_to_end(name)
            while len(self._loaded) > _KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[name]


def _load(record: VersionRecord) -> ModelVersion:
    directory = Path(record.artefact)
    try:
        if manifest_sha256(directory) != record.manifest_sha256:
            raise Unexplainable(f"{directory} is not what was published as {record.version}")
        return load(directory)
    except ArtefactError as error:
        raise Unexplainable(f"version {record.version} cannot be loaded: {error}") from None
