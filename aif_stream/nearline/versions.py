"""The model versions that this worker has in memory, and their projection into Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from aif_stream.domain.row import RowLayout
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import ArtefactError
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import load
from aif_stream.model.version import ModelVersion
from aif_stream.telemetry import REBUILD_PROGRESS, ROWS_INVALID, kv

log = logging.getLogger(__name__)


class RowSource(NamedTuple):
    """A version as another process needs it."""

    artefact: Path
    layout: RowLayout


class LoadedVersions:
    """Every live version that could be loaded, by name.

    A damaged artefact is logged and its version not offered. Buckets that list it then refuse this worker's
    writes (``VersionMissing``): the lanes wait, say so, and ask here again, until it is mended or retired.
    """

    def __init__(self, store: N2OStore) -> None:
        self._store = store
        self._book = VersionBook()
        self._models: Mapping[str, ModelVersion] = {}
        self._loading = asyncio.Lock()

    @property
    def models(self) -> Mapping[str, ModelVersion]:
        """Name -> model; replaced, never changed, so that a batch may keep what it began with."""
        return self._models

    async def follow(self, book: VersionBook) -> None:
        """Load what the book newly lists, drop what is retired. Never raises for an artefact."""
        self._book = book
        async with self._loading:
            live = {record.version: record for record in book.live()}
            kept = {name: model for name, model in self._models.items() if name in live}
            for name, record in live.items():
                if name not in kept and (model := await self._load(record)) is not None:
                    kept[name] = model
            for name in self._models.keys() - kept.keys():
                log.info(kv("version.dropped", version=name))
            self._models = kept
            for name in book.records.keys() - live.keys():
                for metric in (REBUILD_PROGRESS, ROWS_INVALID):
                    with contextlib.suppress(KeyError):  # nothing was told of it here
                        metric.remove(name)

    async def bring(self, names: frozenset[str]) -> bool:
        """Try to have ``names`` (Redis lists them) loaded or, the retired ones, unlisted; True when that is so.

        A version is retired by its record first; should whoever retires it die before Redis has heard of it, every
        live write would be refused for ever. So the first worker that is refused finishes the unlisting.
        """
        retired = {name for name in names if self.state(name) is VersionState.RETIRED}
        for name in retired:
            await self._store.unlist_for_good(name)
            log.info(kv("version.unlisted", version=name))
        wanted = names - retired
        if not wanted <= self._models.keys():
            await self.follow(self._book)
        return wanted <= self._models.keys()

    def state(self, name: str) -> VersionState | None:
        """What the topic says; None when it says nothing (yet)."""
        record = self._book.records.get(name)
        return record.state if record is not None else None

    def source(self, name: str) -> RowSource | None:
        """What computes a loaded version's rows elsewhere; None when it is not (yet) loaded here."""
        if name not in self._models:
            return None
        return RowSource(Path(self._book.records[name].artefact), self._models[name].layout)

    async def restore(self) -> None:
        """Redis forgot: write down its layout again, and list the live versions for whoever replays a topic."""
        await self._store.ensure_layout()
        for record in self._book.live():
            await self._store.add_version(record.version)
            log.warning(kv("version.listed_again", version=record.version))

    async def _load(self, record: VersionRecord) -> ModelVersion | None:
        try:
            model = await asyncio.to_thread(load, Path(record.artefact))
        except ArtefactError as error:
            log.error(kv("version.unusable", version=record.version, error=error))
            return None
        if model.name != record.version:
            log.error(kv("version.misnamed", version=record.version, artefact=record.artefact, holds=model.name))
            return None
        log.info(kv("version.loaded", version=model.name, row_bytes=model.layout.dtype.itemsize))
        return model
