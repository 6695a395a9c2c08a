"""The end of a model version: checked, said, unlisted, freed (design §7).

The record comes first: from then on workers drop the version, and the first write that Redis refuses for its sake takes
it from the list (versions.py). Every step may be repeated: retiring a retired version takes up what was broken off.

An activation of the same version that is written between our look and our record is undone by the record: the version
before answers again (domain/versions.py).
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec

from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState, check_version_name
from aif_stream.errors import VersionError
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.nearline.servers import servers
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retired:
    """What retiring did. ``record`` None: an orphan, which has none. ``rows``: freed ones; ``again``: was retired."""

    version: str
    record: VersionRecord | None
    rows: int
    again: bool


async def retire_version(settings: Settings, version: str, *, orphan: bool = False) -> Retired:
    """Retire a version for good and free its rows. ``orphan``: remove rows that no record speaks of.

    Raises ``VersionError`` when it is unknown (with ``orphan``: when it is known), active, or a server still holds
    it; ``BusUnavailable``, ``IndexUnavailable``, ``IndexRefused``.
    """
    check_version_name(version)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        book = await bus_versions.read_versions(settings)
        record = None if orphan else _may_go(book, version)
        if orphan and version in book.records:
            raise VersionError(f"version {version} has a record", mend=f"aif model retire {version}")
        await _held_by_nobody(settings, redis, version)
        again = record is not None and record.state is VersionState.RETIRED
        if record is not None and not again:
            producer = await stack.enter_async_context(Producer(settings, "aif-retire", topics=[MODEL_UPDATES]))
            record = msgspec.structs.replace(record, state=VersionState.RETIRED)
            await bus_versions.publish_version(producer, record, "aif.rollout")
            log.info(kv("version.announced", version=version, state=record.state.value))
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        await store.unlist_version(version)
        rows = await store.count_rows(version)
        await store.remove_version(version)
        await RebuildTally(redis, settings.index_buckets).clear(version)
        log.info(kv("version.retired", version=version, rows=rows, again=again))
        return Retired(version, record, rows, again)


def _may_go(book: VersionBook, version: str) -> VersionRecord:
    record = book.records.get(version)
    if record is None:
        raise VersionError(
            f"version {version} is unknown", mend="aif model list; --orphan removes rows without a record"
        )
    if book.active == version:
        raise VersionError(f"version {version} is active", mend="activate another version first")
    return record


async def _held_by_nobody(settings: Settings, redis: Redis, version: str) -> None:
    holders = [server for server in await servers(settings, redis) if version in server.versions]
    if holders:
        names = ", ".join(sorted(f"{server.name} ({server.url})" for server in holders))
        raise VersionError(
            f"version {version} is still held by {names}",
            mend="wait until it has switched (its /readyz says what keeps it), or stop it",
        )
