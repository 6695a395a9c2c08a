"""Which version answers: activation, canary, rollback. Records on ``aif.model-updates``; servers follow them.

None of it looks at what a version is worth: that is the gate's affair (gate.py), which the verbs ask first.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import VersionError
from aif_stream.index.connection import open_redis
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

EVERYBODY: Final = 100.0


class Activation:
    """The steps, on open connections; see ``open_activation``."""

    def __init__(self, settings: Settings, producer: Producer, tally: RebuildTally) -> None:
        self._settings = settings
        self._producer = producer
        self._tally = tally

    async def activate(self, version: str, percent: float = EVERYBODY, note: str = "") -> VersionRecord:
        """Let a ready version answer: everybody, or as a canary ``percent`` of the users (another share replaces the
        one before). One whose every bucket is rebuilt is ready. An activation ends any canary.

        Raises ``VersionError`` when it is not ready, another version is a canary (with ``percent`` < 100), or another
        activation won the race.
        """
        book = await bus_versions.read_versions(self._settings)
        record = await self.check_ready(book, version)
        if percent < EVERYBODY:
            return await self._canary(book, record, percent, note)
        if book.active == version:
            await self._end_canary(book)
            return record
        active = msgspec.structs.replace(
            record,
            state=VersionState.ACTIVE,
            activation=book.activation + 1,
            replaces=book.active,
            percent=0.0,
            note=note,
        )
        await self.announce(active)
        now_active = (await bus_versions.read_versions(self._settings)).active
        if now_active != version:
            raise VersionError(f"version {now_active} was activated at the same time", mend="aif model list")
        return active

    async def check_ready(self, book: VersionBook, version: str) -> VersionRecord:
        """The record of a version that may answer. Raises ``VersionError`` when it may not (yet, or ever)."""
        record = known(book, version)
        state = book.state_of(version)
        if state is VersionState.REBUILDING:
            tally = await self._tally.read(version)
            if tally.missing:
                raise VersionError(
                    f"version {version} is rebuilding, not ready: {len(tally.done)} of {tally.total} buckets are done",
                    mend="wait for it: aif model status --watch",
                )
        elif state not in (VersionState.READY, VersionState.ACTIVE):
            raise VersionError(f"version {version} is {state.value}, not ready", mend="aif model status")
        return record

    async def rollback(self) -> VersionRecord:
        """End the canary, if there is one; else activate the version that the active one replaced (so a second
        rollback goes forward again). Returns the record of the version that answers everybody now.

        Raises ``VersionError`` when there is nothing to go back to.
        """
        book = await bus_versions.read_versions(self._settings)
        if book.active is not None and await self._end_canary(book):
            return book.records[book.active]
        if book.active is None or (before := book.records[book.active].replaces) is None:
            raise VersionError("there is no version to go back to", mend="aif model list")
        if before not in book.records or book.state_of(before) is VersionState.RETIRED:
            raise VersionError(
                f"there is no version to go back to: {book.active} replaced {before}, which is retired",
                mend="aif model list shows what can be activated",
            )
        return await self.activate(before)

    async def announce(self, record: VersionRecord) -> VersionRecord:
        """Write a record and wait until Kafka has it."""
        await bus_versions.publish_version(self._producer, record, "aif.rollout")
        log.info(kv("version.announced", version=record.version, state=record.state.value, percent=record.percent))
        return record

    async def _end_canary(self, book: VersionBook) -> bool:
        """Whether there was one."""
        if book.canary is None:
            return False
        await self.announce(msgspec.structs.replace(book.records[book.canary], percent=0.0))
        return True

    async def _canary(self, book: VersionBook, record: VersionRecord, percent: float, note: str) -> VersionRecord:
        if not percent > 0:
            raise VersionError(f"{percent:g} % of the users is no canary", mend="aif model rollback ends one")
        if book.active is None:
            raise VersionError("no version is active that the others could be left to", mend="activate it for all")
        if book.active == record.version:
            raise VersionError(f"version {record.version} is active: it answers everybody else", mend="aif model list")
        if book.canary not in (None, record.version):
            raise VersionError(
                f"version {book.canary} answers {book.percent_of(book.canary or ''):g} % of the users already",
                mend="one canary at a time: aif model rollback ends that one",
            )
        canary = msgspec.structs.replace(
            record,
            state=VersionState.READY,
            activation=book.activation + 1,
            replaces=book.active,
            percent=percent,
            note=note,
        )
        await self.announce(canary)
        now = await bus_versions.read_versions(self._settings)
        if now.canary != record.version:
            raise VersionError(f"version {now.canary or now.active} was activated at the same time", mend="look again")
        return canary


@asynccontextmanager
async def open_activation(settings: Settings) -> AsyncIterator[Activation]:
    """Connections for the steps. Raises ``BusUnavailable``, ``TopicError``, ``IndexUnavailable``."""
    async with (
        open_redis(settings) as redis,
        Producer(settings, "aif-activation", topics=[MODEL_UPDATES]) as producer,
    ):
        yield Activation(settings, producer, RebuildTally(redis, settings.index_buckets))


async def activate_version(
    settings: Settings, version: str, percent: float = EVERYBODY, note: str = ""
) -> VersionRecord:
    """See ``Activation.activate``; no gate is asked."""
    async with open_activation(settings) as activation:
        return await activation.activate(version, percent, note)


async def rollback_version(settings: Settings) -> VersionRecord:
    """See ``Activation.rollback``."""
    async with open_activation(settings) as activation:
        return await activation.rollback()


def known(book: VersionBook, version: str) -> VersionRecord:
    """Its record. Raises ``VersionError`` when there is none."""
    record = book.records.get(version)
    if record is None:
        raise VersionError(f"version {version} is unknown", mend="aif model list")
    return record
