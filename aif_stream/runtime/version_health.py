"""The doctor's look at model versions: records, artefacts on disk, lists and rows in Redis; and at the servers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from aif_stream.bus.versions import read_versions
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import ArtefactError
from aif_stream.index.connection import Redis
from aif_stream.index.footprint import footprint, stored_versions
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import MANIFEST, WEIGHTS, manifest_sha256, read_manifest
from aif_stream.nearline.servers import ServerSeen, servers
from aif_stream.runtime.findings import Finding, error, ok, warning
from aif_stream.runtime.index_health import mib
from aif_stream.settings import Settings

_KNOCK_S = 3.0


async def check_artefacts(settings: Settings) -> list[Finding]:
    """The records, and what lies on disk for them. Raises ``BusUnavailable``, ``TopicError``."""
    book = await read_versions(settings)
    found = [finding for record in book.live() for finding in await asyncio.to_thread(_artefact, record)]
    found += [_displaced(book, name, offset) for name, offset in sorted(book.displaced.items())]
    if book.active is None:
        what = "no version is active: nothing is answered" if book.records else "no version was ever published"
        found.append(error("versions", what, "aif model publish DIR --activate"))
    found += await asyncio.to_thread(_strays, settings.models_dir, book)
    return found or [
        ok("versions", f"{book.active} is active; {len(book.live())} kept, their artefacts are whole"),
    ]


def _displaced(book: VersionBook, name: str, offset: int) -> Finding:
    what = f"the last record of {name} on aif.model-updates (offset {offset}) cannot be used"
    if name in book.records:
        what += f"; its state before, {book.state_of(name)}, stays in force until compaction"
        return warning("versions", what, "start one aif nearline or aif serve: it writes the good record again")
    again = "start a role that held it before, or publish the version again; a name that is no version does no harm"
    return warning("versions", f"{what}, and there is no earlier one", again)


def _artefact(record: VersionRecord) -> list[Finding]:
    directory = Path(record.artefact)
    again = "put the published artefact back (the same path on every host)"
    try:
        digest = manifest_sha256(directory)
        if digest != record.manifest_sha256:
            raise ArtefactError(f"{directory} is not what was published as {record.version}")
        weights = directory / WEIGHTS
        with weights.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != read_manifest(directory).weights_sha256:
                raise ArtefactError(f"{weights} is not what its manifest names")
    except (ArtefactError, OSError) as problem:
        what = problem.what if isinstance(problem, ArtefactError) else str(problem)
        return [error("versions", f"{record.version} ({record.state}): {what}", again)]
    return []


def _strays(models: Path, book: VersionBook) -> list[Finding]:
    """Directories that belong to no version that is kept."""
    found = []
    kept = {Path(record.artefact) for record in book.live()}
    for directory in sorted(models.iterdir()) if models.is_dir() else []:
        if not (directory / MANIFEST).is_file() or directory in kept:
            continue
        try:
            name = read_manifest(directory).version
        except ArtefactError as problem:
            found.append(warning("versions", f"{problem.what}", f"nobody uses it: remove {directory}"))
            continue
        if name in {record.version for record in book.live()}:
            continue  # what the version was published from
        record = book.records.get(name)
        why = "of a retired version" if record is not None else "that was never published here"
        mend = f"remove {directory}" if record is not None else f"aif model publish {directory}, or remove it"
        found.append(warning("versions", f"{directory}: an artefact {why}", mend))
    return found


async def check_rows(settings: Settings, redis: Redis) -> list[Finding]:
    """Records beside lists and rows in Redis: orphans and gaps. Raises what Kafka and Redis raise."""
    book = await read_versions(settings)
    buckets = Buckets(settings.index_buckets)
    listed = await N2OStore(redis, buckets).listings()
    stored = await stored_versions(redis)
    found = _lists(book, listed, buckets.count)
    for version in sorted(stored.keys() - {record.version for record in book.live()}):
        size = await footprint(redis, buckets, version)
        record = book.records.get(version)
        why = "which is retired" if record is not None else "which no record speaks of"
        mend = f"aif model retire {version}{'' if record is not None else ' --orphan'}"
        found.append(warning("rows", f"{size.rows:,} rows ({mib(size.bytes)}) of {version}, {why}", mend))
    return found or [ok("rows", f"every bucket lists {', '.join(sorted(listed)) or 'no version'}; no orphans")]


def _lists(book: VersionBook, listed: Mapping[str, int], buckets: int) -> list[Finding]:
    found = []
    for record in book.live():
        count = listed.get(record.version, 0)
        if count == buckets:
            continue
        what = f"{record.version} ({book.state_of(record.version)}) is listed by {count} of {buckets} buckets"
        if record.state in (VersionState.PUBLISHED, VersionState.REBUILDING):
            found.append(warning("rows", f"{what}: its roll-out was broken off", "aif model publish DIR --resume"))
        else:
            mend = "restart one aif nearline: it lists what Redis forgot; then look again"
            found.append(error("rows", f"{what}: live updates pass it by", mend))
    for version in sorted(listed.keys() - {record.version for record in book.live()}):
        known = version in book.records
        what = f"{version} is listed by {listed[version]} buckets and {'is retired' if known else 'has no record'}"
        mend = f"aif model retire {version}{'' if known else ' --orphan'}"
        found.append(error("rows", f"{what}: live writes wait for it", mend))
    return found


async def check_servers(settings: Settings, redis: Redis) -> list[Finding]:
    """Servers reachable, ready, on the active version. Raises what Kafka and Redis raise."""
    active = (await read_versions(settings)).active
    return [_server(server, active) for server in await servers(settings, redis)]


def _server(server: ServerSeen, active: str | None) -> Finding:
    who = f"aif serve at {server.url}"
    if server.problem:
        return error("serve", f"{who} does not answer: {server.problem}", "start aif serve, or set AIF_SERVE_URL")
    reasons = server.status.get("reasons") or []
    if reasons:
        return error("serve", f"{who} is not ready: {'; '.join(map(str, reasons))}", "see its log")
    held = ", ".join(sorted(server.versions)) or "none"
    if active is not None and active != server.answering:
        what = f"{who} answers with {server.answering or 'none'}, {active} is active (it holds {held})"
        return warning("serve", what, "it is switching; else see its log")
    return ok("serve", f"{who} is ready with {server.answering} (holds {held})")


async def check_retrieval(settings: Settings) -> list[Finding]:
    """Every retrieval upstream."""
    urls = [url.strip().rstrip("/") for url in settings.retrieval_urls.split(",") if url.strip()]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_KNOCK_S)) as session:
        return list(await asyncio.gather(*(_upstream(session, url) for url in urls)))


async def _upstream(session: aiohttp.ClientSession, url: str) -> Finding:
    mend = "start aif retrieval, or set AIF_RETRIEVAL_URLS"
    try:
        async with session.get(f"{url}/readyz") as reply:
            # An upstream of somebody else's need not have /readyz: that it answers is what we can ask for.
            if reply.status in (200, 404):
                return ok("retrieval", f"{url} answers")
            return error("retrieval", f"{url} is not ready ({reply.status}): {(await reply.text())[:200]}", mend)
    except (aiohttp.ClientError, TimeoutError, OSError) as problem:
        return error("retrieval", f"{url} does not answer: {type(problem).__name__}: {problem}".rstrip(": "), mend)
