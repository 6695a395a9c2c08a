"""The end of a model version: checked, said, unlisted, freed (design §7).

The record comes first: from then on servers let the version go and workers drop it, and the first write that Redis
refuses for its sake takes it from the list (versions.py). Rows are freed when no server's lease names it any more.
Every step may be repeated: retiring a retired version takes up what was broken off.

An activation of the same version that is written between our look and our record is undone by the record: the version
before answers again (domain/versions.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.clock import monotonic_s
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState, check_version_name
from aif_stream.errors import VersionError
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.nearline.servers import ServerSeen, servers
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A server lets go within a second of the record, a request ends within AIF_MAX_DEADLINE_MS, a lease speaks once a
# second and outlives its process by four.
_LET_GO_S: Final = 15.0
_ASK_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Retired:
    """What retiring did. ``record`` None: an orphan, which has none. ``rows``: freed ones; ``again``: was retired."""

    version: str
    record: VersionRecord | None
    rows: int
    again: bool


async def retire_version(settings: Settings, version: str, *, orphan: bool = False) -> Retired:
    """Retire a version for good and free its rows. ``orphan``: remove rows that no record speaks of.

    Raises ``VersionError`` when it is unknown (with ``orphan``: when it is known), active or a canary, a server still
    answers with it, or one does not let it go in time (it is retired then, its rows are still there);
    ``BusUnavailable``, ``IndexUnavailable``, ``IndexRefused``.
    """
    check_version_name(version)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        book = await bus_versions.read_versions(settings)
        record = None if orphan else _may_go(book, version)
        if orphan and version in book.records:
            raise VersionError(f"version {version} has a record", mend=f"aif model retire {version}")
        await _answered_by_nobody(settings, redis, version)
        again = record is not None and record.state is VersionState.RETIRED
        if record is not None and not again:
            producer = await stack.enter_async_context(Producer(settings, "aif-retire", topics=[MODEL_UPDATES]))
            record = msgspec.structs.replace(record, state=VersionState.RETIRED)
            await bus_versions.publish_version(producer, record, "aif.rollout")
            log.info(kv("version.announced", version=version, state=record.state.value))
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        await _held_by_nobody(settings, redis, version)
        # An orphan's name may be published one day; a retired one may not.
        await (store.unlist_version(version) if orphan else store.unlist_for_good(version))
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
    if book.canary == version:
        share = book.percent_of(version)
        raise VersionError(f"version {version} answers {share:g} % of the users", mend="aif model rollback ends that")
    return record


async def _answered_by_nobody(settings: Settings, redis: Redis, version: str) -> None:
    """A server that answers with it though the records say otherwise (it could not switch) needs it."""
    using = [server for server in await servers(settings, redis) if server.answering == version]
    if using:
        raise VersionError(
            f"version {version} is still held by {_places(using)}, and answers there",
            mend="wait until it has switched (its /readyz says what keeps it), or stop it",
        )


async def _held_by_nobody(settings: Settings, redis: Redis, version: str) -> None:
    """Return when no lease names the version: servers let it go when they read the record and its requests end."""
    until_s = monotonic_s() + _LET_GO_S
    while True:
        holders = [server for server in await servers(settings, redis) if version in server.versions]
        if not holders:
            return
        if monotonic_s() > until_s:
            raise VersionError(
                f"version {version} is retired, but still held by {_places(holders)} after {_LET_GO_S:g} s:"
                " its rows stay",
                mend=f"see their logs, or stop them; then aif model retire {version} frees the rows",
            )
        await asyncio.sleep(_ASK_EVERY_S)


def _places(found: Sequence[ServerSeen]) -> str:
    return ", ".join(sorted(f"{server.name} ({server.url})" for server in found))
