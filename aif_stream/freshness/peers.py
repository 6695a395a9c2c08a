"""The processes of the system as the watch finds them: leases in Redis, and a knock at the door of a silent one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import aiohttp
import orjson

from aif_stream.bus.consuming import Partition
from aif_stream.clock import monotonic_s
from aif_stream.domain.freshness import Presence
from aif_stream.errors import AifError, IndexRefused, IndexUnavailable
from aif_stream.freshness.report import facts_of
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.leases import Lease, LeaseBook
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A process that answers does so within milliseconds; its collector or a full core may cost some hundred.
_KNOCK_S: Final = 1.0
_KNOCK_EVERY_S: Final = 2.0  # a look does not wait for every silent process anew
# A dead process stays in the list this long, so that people see who has gone; then its lease is put away.
_MOURN_S: Final = 60.0


class Peer(NamedTuple):
    """One process and how it is."""

    lease: Lease
    presence: Presence

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.lease.facts


class Peers:
    """Raises nothing while it watches: without Redis the last known processes are asked themselves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis: Redis | None = None
        self._stack = AsyncExitStack()
        self._known: dict[str, list[Lease]] = {}
        self._tried_s = float("-inf")
        self._opening = asyncio.Lock()
        self._knocks: dict[str, tuple[float, Presence]] = {}
        self.session: aiohttp.ClientSession
        self.problem = ""

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        self.session = await self._stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def of(self, role: str) -> list[Peer]:
        """The processes of a role, by id."""
        leases = await self._leases(role)
        return list(await asyncio.gather(*(self._look_at(role, lease) for lease in leases)))

    async def get(self, url: str, timeout_s: float = _KNOCK_S) -> dict[str, Any] | None:
        """A JSON object by HTTP; None when nobody answers with one in time."""
        try:
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=timeout_s)) as reply:
                return facts_of(orjson.loads(await reply.read())) if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
            return None

    async def _leases(self, role: str) -> list[Lease]:
        try:
            self._known[role] = await LeaseBook(await self._open()).read(role)
            self.problem = ""
        except (IndexUnavailable, IndexRefused) as error:
            if not self.problem:
                log.warning(kv("leases.unreadable", problem=error))
            self.problem = str(error)
            return [lease._replace(alive=False) for lease in self._known.get(role, [])]
        return self._known[role]

    async def _open(self) -> Redis:
        async with self._opening:  # roles are asked for at once, also the first time
            if self._redis is None:
                if monotonic_s() - self._tried_s < 1.0:
                    raise IndexUnavailable(self.problem or "Redis does not answer")
                self._tried_s = monotonic_s()
                self._redis = await self._stack.enter_async_context(open_redis(self._settings))
            return self._redis

    async def _look_at(self, role: str, lease: Lease) -> Peer:
        if lease.alive:
            return Peer(lease, Presence.LIVE)
        presence = await self._knock_now_and_then(lease.url) if lease.url else Presence.GONE
        if presence is Presence.GONE and lease.silent_s > _MOURN_S and not self.problem:
            try:
                await LeaseBook(await self._open()).drop(role, lease.id)
            except AifError as error:
                log.debug("a lease stays: %s", error)
        return Peer(lease, presence)

    async def _knock_now_and_then(self, url: str) -> Presence:
        at_s, presence = self._knocks.get(url, (float("-inf"), Presence.UNKNOWN))
        if monotonic_s() - at_s > _KNOCK_EVERY_S:
            presence = await self._knock(url)
            self._knocks[url] = monotonic_s(), presence
        return presence

    async def _knock(self, url: str) -> Presence:
        """A stopped process still has its port: the kernel takes the connection, and nobody answers."""
        try:
            async with self.session.get(f"{url}/livez", timeout=aiohttp.ClientTimeout(total=_KNOCK_S)):
                return Presence.LIVE
        except aiohttp.ClientConnectorError:
            return Presence.GONE
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
            return Presence.STUCK if connected else Presence.GONE


def presence_of(group: str, partition: Partition, workers: Iterable[Peer], members: int | None) -> Presence:
    """Of whom should read this partition: the best of those that say they hold it, else what the broker says."""
    holders = [peer.presence for peer in workers if partition.number in peer.facts.get("groups", {}).get(group, ())]
    for presence in (Presence.LIVE, Presence.STUCK):
        if presence in holders:
            return presence
    everybody = [peer.presence for peer in workers if group in peer.facts.get("groups", {})]
    if Presence.LIVE in everybody:
        # Between two assignments: whoever lives will have it, or the window shows that nobody does.
        return Presence.GONE if Presence.GONE in holders else Presence.LIVE
    if members:
        return Presence.GONE if Presence.GONE in holders else Presence.LIVE
    return Presence.STUCK if Presence.STUCK in everybody else Presence.GONE
