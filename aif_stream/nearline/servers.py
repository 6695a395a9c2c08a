"""The servers that are there, and which model versions each of them holds: by their leases, and by asking."""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

import aiohttp
import orjson

from aif_stream.index.connection import Redis
from aif_stream.index.leases import SERVE, LeaseBook
from aif_stream.settings import Settings

# /v1/status is answered from memory; a server on a full core may take some hundred ms.
_DEADLINE_S: Final = 2.0


class ServerSeen(NamedTuple):
    """One server. ``versions`` are those that it holds, ``answering`` the one that it answers with ("" before the
    first); ``problem`` says why it could not be asked ("" when it was).

    ``status`` is what it said about itself, {} when nothing.
    """

    name: str
    url: str
    versions: frozenset[str]
    answering: str
    problem: str
    status: dict[str, Any]


async def servers(settings: Settings, redis: Redis) -> list[ServerSeen]:
    """Every server with a living lease, and the one at ``serve_url``. Raises ``IndexUnavailable``, ``IndexRefused``."""
    leases = [lease for lease in await LeaseBook(redis).read(SERVE) if lease.alive]
    names = {lease.url.rstrip("/") or lease.id: lease for lease in leases}
    urls = {settings.serve_url.rstrip("/"), *(lease.url.rstrip("/") for lease in leases if lease.url)}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DEADLINE_S)) as session:
        asked = dict(zip(urls, await asyncio.gather(*(_ask(session, url) for url in urls)), strict=True))
    found = []
    for place in sorted({*urls, *names}):
        lease = names.get(place)
        status, problem = asked.get(place, ({}, "its lease names no address"))
        said = [status, *([dict(lease.facts)] if lease is not None else [])]
        held = frozenset(name for facts in said for name in _versions(facts))
        answering = next((str(facts["model_version"]) for facts in said if facts.get("model_version")), "")
        found.append(ServerSeen(lease.id if lease is not None else place, place, held, answering, problem, status))
    return found


def _versions(facts: dict[str, Any]) -> frozenset[str]:
    one, many = facts.get("model_version"), facts.get("model_versions", ())
    return frozenset(name for name in (one, *many) if isinstance(name, str))


async def _ask(session: aiohttp.ClientSession, url: str) -> tuple[dict[str, Any], str]:
    try:
        async with session.get(f"{url}/v1/status") as reply:
            found = orjson.loads(await reply.read())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return {}, f"{type(error).__name__}: {error}".rstrip(": ")
    if not isinstance(found, dict):
        return {}, "its status is no JSON object"
    server = found.get("server", found)
    return {**found, **(server if isinstance(server, dict) else {})}, ""
