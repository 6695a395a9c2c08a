"""Who is there: each running process keeps a lease in Redis and says in it what the watch needs to know.

    aif:lease:<role>:<id>    string  "1", expires: the process was alive when it was last set
    aif:leases:<role>        hash    id -> what it said last (JSON); removed by a clean stop, forgotten after an hour

The two together tell a process that ended (no field), one that died or hangs (a field without its key), and one that is
well. Redis' own clock decides, so that the clocks of the hosts need not agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import orjson

from aif_stream.clock import now_ms
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.keys import lease_key, leases_key
from aif_stream.index.refusals import checked
from aif_stream.index.wire import pack
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
# Four beats missed: a pause of the garbage collector or of Redis is over by then, and the watch has ten seconds left.
TTL_MS: Final = 4_000
_FORGET_MS: Final = 3_600_000

SERVE: Final = "serve"
NEARLINE: Final = "nearline"
MONITOR: Final = "monitor"
EXPLAIN: Final = "explain"


class Lease(NamedTuple):
    """One process. ``silent_s``: by its own clock, how long ago it spoke last (about; for people)."""

    id: str
    alive: bool
    silent_s: float
    facts: Mapping[str, Any]

    @property
    def url(self) -> str:
        """Where its HTTP listens; empty when it has none."""
        return str(self.facts.get("url", ""))


def process_id(settings: Settings) -> str:
    """``AIF_WORKER_ID``, or host-pid."""
    return settings.worker_id or f"{socket.gethostname()}-{os.getpid()}"


class LeaseBook:
    """Every method raises ``IndexUnavailable`` and may be repeated."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, role: str, name: str, facts: Mapping[str, Any]) -> None:
        """Be there for the next seconds."""
        said = orjson.dumps({"beat_ms": now_ms(), "facts": dict(facts)}, option=orjson.OPT_SERIALIZE_NUMPY)
        key, book = lease_key(role, name), leases_key(role)
        await self._all((pack("HSET", book, name, said), book), (pack("SET", key, b"1", "PX", TTL_MS), key))

    async def drop(self, role: str, name: str) -> None:
        """Be gone."""
        key, book = lease_key(role, name), leases_key(role)
        await self._all((pack("DEL", key), key), (pack("HDEL", book, name), book))

    async def read(self, role: str) -> list[Lease]:
        """All processes of a role that did not end cleanly, by id."""
        book = leases_key(role)
        flat = await self._redis.call("HGETALL", book)
        said = {bytes(name).decode(): orjson.loads(data) for name, data in zip(flat[0::2], flat[1::2], strict=True)}
        if not said:
            return []
        names = sorted(said)
        keys = [lease_key(role, name) for name in names]
        alive = checked(await self._redis.execute([pack("EXISTS", key) for key in keys], keys))
        now = now_ms()
        old = [n for n, there in zip(names, alive, strict=True) if not there and now - said[n]["beat_ms"] > _FORGET_MS]
        if old:
            await self._redis.call("HDEL", book, *old)
        return [
            Lease(name, bool(there), max(0, now - said[name]["beat_ms"]) / 1000, said[name]["facts"])
            for name, there in zip(names, alive, strict=True)
            if name not in old
        ]

    async def _all(self, *commands: tuple[bytes, bytes]) -> None:
        checked(await self._redis.execute([c for c, _ in commands], [key for _, key in commands]))


@asynccontextmanager
async def held_lease(
    settings: Settings, role: str, facts: Callable[[], Mapping[str, Any]]
) -> AsyncIterator[Callable[[], list[str]]]:
    """This process's lease while the body runs; given back at its end, however it ends.

    Yields why the lease cannot be written now, for ``/readyz``: as a rule nothing of this process can be written then.
    """
    problem: list[str] = []
    keeping = asyncio.create_task(keep_lease(settings, role, facts, problem), name="lease")
    try:
        yield lambda: list(problem)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def keep_lease(
    settings: Settings, role: str, facts: Callable[[], Mapping[str, Any]], problem: list[str] | None = None
) -> None:
    """Hold this process's lease until cancelled, then give it back. Redis away: logged once, tried again.

    ``problem`` holds the error while there is one."""
    name, told = process_id(settings), [] if problem is None else problem
    while True:
        try:
            async with open_redis(settings) as redis:
                book = LeaseBook(redis)
                try:
                    while True:
                        await book.put(role, name, facts())
                        told.clear()
                        await asyncio.sleep(BEAT_S)
                except asyncio.CancelledError:
                    with contextlib.suppress(IndexUnavailable, IndexRefused, TimeoutError):
                        async with asyncio.timeout(BEAT_S):
                            await book.drop(role, name)
                    raise
        except (IndexUnavailable, IndexRefused) as error:
            if told != [str(error)]:
                told[:] = [str(error)]
                log.warning(kv("lease.not_kept", role=role, problem=error))
        await asyncio.sleep(BEAT_S)
