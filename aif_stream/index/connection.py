"""The way to Redis: one server or a cluster, scripts that survive its restart, errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import hiredis

from aif_stream.index.cluster import ClusterRoute
from aif_stream.index.refusals import checked
from aif_stream.index.scripts import load_commands, scripts_by_sha
from aif_stream.index.wire import Address, Reply, Wire, pack, parse_address
from aif_stream.settings import Settings


class Route(Protocol):
    """Where commands go: one server, or the node that owns a command's slot."""

    async def execute(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        """Replies in order; commands[i] goes to the owner of keys[i]."""

    async def execute_everywhere(self, commands: Sequence[bytes]) -> dict[str, list[Reply]]:
        """The same commands on every primary; replies by address."""

    async def wires(self) -> list[Wire]:
        """One connection to each primary, for questions that only a server as a whole can answer."""

    def close(self) -> None:
        """Drop all connections."""


class SingleRoute:
    """One server, one pipelined connection."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._wire = Wire(address, timeout_s, load_commands())

    async def execute(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        return await self._wire.execute(commands)

    async def execute_everywhere(self, commands: Sequence[bytes]) -> dict[str, list[Reply]]:
        return {str(self._wire.address): await self._wire.execute(commands)}

    async def wires(self) -> list[Wire]:
        return [self._wire]

    def close(self) -> None:
        self._wire.close()


class Redis:
    """What the stores of this room speak through. Safe for any number of tasks of one event loop.

    Every method raises ``IndexUnavailable`` within ``redis_timeout_s`` when Redis does not answer. All of our
    scripts may run twice with the same result, so callers simply try again.
    """

    def __init__(self, route: Route) -> None:
        self._route = route

    @property
    def clustered(self) -> bool:
        """Whether this speaks Redis Cluster."""
        return isinstance(self._route, ClusterRoute)

    async def execute(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        """Packed commands (see ``wire.pack``), ``keys[i]`` being the key that places commands[i].

        Replies in order, errors among them as ``hiredis.ReplyError``. A script that the server does not know
        is loaded and its commands are sent once more, after the others.
        """
        replies = await self._route.execute(commands, keys)
        forgotten = [
            i for i, r in enumerate(replies) if isinstance(r, hiredis.ReplyError) and str(r).startswith("NOSCRIPT")
        ]
        if forgotten:
            await self._teach({commands[i] for i in forgotten})
            again = await self._route.execute([commands[i] for i in forgotten], [keys[i] for i in forgotten])
            for i, reply in zip(forgotten, again, strict=True):
                replies[i] = reply
        return replies

    async def call(self, *args: bytes | int | str) -> Reply:
        """One command whose first argument after its name is its key; raises its error."""
        key = args[1] if len(args) > 1 else b""
        replies = await self.execute([pack(*args)], [key if isinstance(key, bytes) else str(key).encode()])
        return checked(replies)[0]

    async def everywhere(self, *args: bytes | int | str) -> dict[str, Reply]:
        """One command on every primary; raises the first error."""
        found = await self._route.execute_everywhere([pack(*args)])
        return {where: checked(replies)[0] for where, replies in found.items()}

    async def wires(self) -> list[Wire]:
        """One connection to each primary (SCAN has a cursor of its own on each)."""
        return await self._route.wires()

    async def _teach(self, commands: set[bytes]) -> None:
        known = scripts_by_sha()
        shas = {command.split(b"\r\n", 5)[4] for command in commands}
        for replies in (await self._route.execute_everywhere([known[sha].load for sha in shas])).values():
            checked(replies)

    def close(self) -> None:
        self._route.close()


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """Connect and see that Redis answers. Raises ``IndexUnavailable``, ``IndexRefused``, ``SettingsError``."""
    address = parse_address(settings.redis_url)
    route: Route
    if settings.redis_cluster:
        route = ClusterRoute(address, settings.redis_timeout_s, load_commands())
    else:
        route = SingleRoute(address, settings.redis_timeout_s)
    redis = Redis(route)
    try:
        await redis.everywhere("PING")
        yield redis
    finally:
        redis.close()
        await asyncio.sleep(0)  # lets the transports run their last callback before the loop may end


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the server that endangers the index; ``fatal`` ones should stop a start."""

    problem: str
    mend: str
    fatal: bool


async def check_server(redis: Redis) -> list[Finding]:
    """Is this Redis fit to hold the index? Reads INFO only (managed servers often forbid CONFIG)."""
    findings = []
    for where, text in (await redis.everywhere("INFO", "everything")).items():
        info = dict(line.split(":", 1) for line in bytes(text).decode().splitlines() if ":" in line)
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and int(info.get("maxmemory", "0")) > 0:
            findings.append(
                Finding(f"{where}: maxmemory-policy is {policy}: rows would vanish", "set it to noeviction", True)
            )
        if info.get("aof_enabled") != "1":
            findings.append(
                Finding(f"{where}: appendonly is off: a restart replays all topics", "set appendonly yes", False)
            )
        if info.get("redis_mode") == "cluster" and not redis.clustered:
            findings.append(Finding(f"{where} is a Redis Cluster", "set AIF_REDIS_CLUSTER=true", True))
        if tuple(map(int, info.get("redis_version", "0.0").split(".")[:2])) < (6, 2):
            findings.append(Finding(f"{where}: Redis {info.get('redis_version')}", "6.2 or later is needed", True))
    return findings
