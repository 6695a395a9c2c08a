"""The primary is demoted under load and keeps its connections: the worker finds the new one and loses nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from aif_stream.embedded.process import free_ports
from aif_stream.index.connection import open_redis
from aif_stream.nearline.role import serve_nearline
from tests.conftest import BrokerFactory
from tests.nearline_builders import T0_MS, Stack, nearline_settings, open_stack, worker
from tests.redis_pair import Pair, redis_pair
from tests.stack import eventually, topics


async def demoted(pair: Pair) -> None:
    """READONLY to every write."""
    await pair.fail_over()


async def demoted_and_cut_off(pair: Pair) -> None:
    """MASTERDOWN to everything."""
    await pair.ask(pair.second, "REPLICAOF", "NO", "ONE")
    await pair.ask(pair.first, "CONFIG", "SET", "replica-serve-stale-data", "no")
    await pair.ask(pair.first, "REPLICAOF", "127.0.0.1", 1)


async def without_replicas(pair: Pair) -> None:
    """NOREPLICAS to every write: the primary is cut off from those who elect the next one."""
    await pair.ask(pair.second, "REPLICAOF", "NO", "ONE")
    await pair.ask(pair.first, "CONFIG", "SET", "min-replicas-to-write", 1)


@pytest.mark.parametrize("demote", [demoted, demoted_and_cut_off, without_replicas])
async def test_worker_follows_a_demoted_primary_and_loses_nothing(
    embedded_broker: BrokerFactory, tmp_path: Path, demote: Callable[[Pair], Awaitable[None]]
) -> None:
    broker = await embedded_broker(topics())
    async with redis_pair() as pair:
        settings = nearline_settings(broker.bootstrap, pair.address.url, tmp_path)
        seen = dataclasses.replace(settings, redis_url=pair.second.url)
        async with worker(settings) as nearline, open_stack(settings) as stack:
            put = asyncio.create_task(_load(stack))
            await stack.has("50", T0_MS)
            await demote(pair)
            await eventually(_unready(nearline.reasons), what="the worker is not ready", within_s=30)
            pair.address.target = pair.second.port

            async def ready() -> bool:
                return not nearline.reasons()

            await eventually(ready, what="the worker is ready again", within_s=30)
            names = await put
            async with open_stack(seen) as after:
                for name in names:
                    await after.has(name, T0_MS)


async def test_idle_worker_that_cannot_write_is_not_ready(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    port, stop = free_ports(1)[0], asyncio.Event()
    settings = dataclasses.replace(nearline_settings(broker.bootstrap, redis_url, tmp_path), metrics_port=port)
    running = asyncio.create_task(serve_nearline(settings, stop))
    async with open_redis(settings) as redis, aiohttp.ClientSession() as http:

        async def readyz(status: int, word: str) -> bool:
            assert not running.done()
            try:
                async with http.get(f"http://127.0.0.1:{port}/readyz") as reply:
                    return reply.status == status and word in await reply.text()
            except aiohttp.ClientError:  # it does not listen yet
                return False

        try:
            await eventually(lambda: readyz(200, "ready"), what="the worker is ready")
            await redis.everywhere("CONFIG", "SET", "maxmemory", 1)
            await eventually(lambda: readyz(503, "raise maxmemory"), what="the worker is not ready")
            await redis.everywhere("CONFIG", "SET", "maxmemory", 0)
            await eventually(lambda: readyz(200, "ready"), what="the worker is ready again")
        finally:
            await redis.everywhere("CONFIG", "SET", "maxmemory", 0)
            stop.set()
            await running


def _unready(reasons: Callable[[], list[str]]) -> Callable[[], Awaitable[bool]]:
    async def unready() -> bool:
        return any("Redis" in reason for reason in reasons())

    return unready


async def _load(stack: Stack) -> list[str]:
    """600 items, some every 10 ms."""
    names = [str(number) for number in range(600)]
    for number in range(0, len(names), 4):
        await asyncio.gather(*(stack.put.item(name, T0_MS) for name in names[number : number + 4]))
        await asyncio.sleep(0.01)
    return names
