"""The way to Redis: one server or a cluster, scripts that survive its restart, errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import hiredis

from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.cluster import ClusterRoute
from aif_stream.index.link import Reply
from aif_stream.index.refusals import checked, leads_elsewhere
from aif_stream.index.scripts import load_commands, scripts_by_sha
from aif_stream.index.wire import ROLE, Address, Wire, is_replica, pack, parse_address
from aif_stream.settings import Settings

# A demotion is seen after so long by a role that only reads; one that writes meets the refusal at once.
_WATCH_S: Final = 1.0


class Route(Protocol):
    """Where commands go: one server, or the node that owns a command's slot."""

    @property
    def generation(self) -> int:
        """Another number after any connection was made anew, or a slot may have moved."""

    def look_again(self) -> None:
        """Resolve the address, or learn the slots, again before the next command."""

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

    @property
    def generation(self) -> int:
        return self._wire.links

    def look_again(self) -> None:
        self._wire.redial()

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
    scripts may run twice with the same result, so callers simply try again. A server that says it is not the one for
    our commands (any more) makes the next command resolve the address again, or learn the cluster's slots.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self.problem = ""  # why commands fail now, as ``watch`` saw it last; "": they do not

    @property
    def generation(self) -> int:
        """Another number after the commands may have gone to another server: a cursor from before is worth nothing."""
        return self._route.generation

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
        failed = [i for i, reply in enumerate(replies) if isinstance(reply, hiredis.ReplyError)]
        self._heed([replies[i] for i in failed])
        forgotten = [i for i in failed if str(replies[i]).startswith("NOSCRIPT")]
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
        found = await self._everywhere([pack(*args)])
        return {where: checked(replies)[0] for where, replies in found.items()}

    async def wires(self) -> list[Wire]:
        """One connection to each primary (SCAN has a cursor of its own on each)."""
        return await self._route.wires()

    async def watch(self) -> None:
        """See each second that every server is a primary that serves; ``problem`` says what is wrong. Until cancelled.

        A demoted primary keeps its connections and answers reads, from data that nobody may be bringing up to date.
        """
        while True:
            self.problem = await self._look()
            await asyncio.sleep(_WATCH_S)

    async def _look(self) -> str:
        try:
            found = await self._everywhere([pack("PING"), ROLE])
            checked([pong for pong, _ in found.values()])
        except (IndexUnavailable, IndexRefused) as error:
            return str(error)
        replicas = [where for where, (_, role) in found.items() if is_replica(role)]
        if not replicas:
            return ""
        self._route.look_again()
        return f"Redis at {', '.join(replicas)} is a replica → the address is resolved again; it must name the primary"

    async def _everywhere(self, commands: Sequence[bytes]) -> dict[str, list[Reply]]:
        found = await self._route.execute_everywhere(commands)
        self._heed([reply for replies in found.values() for reply in replies])
        return found

    def _heed(self, replies: Sequence[Reply]) -> None:
        """Errors among ``replies`` may say that commands must go elsewhere from now on."""
        if any(isinstance(reply, hiredis.ReplyError) and leads_elsewhere(reply) for reply in replies):
            self._route.look_again()

    async def _teach(self, commands: set[bytes]) -> None:
        known = scripts_by_sha()
        shas = {command.split(b"\r\n", 5)[4] for command in commands}
        for replies in (await self._everywhere([known[sha].load for sha in shas])).values():
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
    watching: asyncio.Task[None] | None = None
    try:
        await redis.everywhere("PING")
        watching = asyncio.create_task(redis.watch(), name="redis-watch")
        yield redis
    finally:
        if watching is not None:
            watching.cancel()
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
