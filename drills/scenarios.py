"""What is broken, and how often. Each scenario runs beside the live load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aif_stream.index.connection import open_redis
from drills.stack import DrillStack

Scenario = Callable[[DrillStack, random.Random, int], Awaitable[dict[str, Any]]]


async def kill_workers(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """kill -9 of a worker at a random moment; another one is started in its place."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(0.5, 6.0))
        await stack.kill9(chance.choice(stack.workers))
        stack.start_worker()
    return {"kills": times}


async def rebalance(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """A third worker joins, then one of the three leaves in order."""
    for _ in range(times):
        stack.start_worker()
        await asyncio.sleep(chance.uniform(6.0, 10.0))
        await stack.stop(chance.choice(stack.workers))
        await asyncio.sleep(chance.uniform(1.0, 3.0))
    return {"joined_and_left": times}


async def redis_away(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """Redis stopped for 20 s and started again."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(2.0, 5.0))
        await stack.redis.stop()
        await asyncio.sleep(20.0)
        await stack.redis.start()
        await asyncio.sleep(5.0)
    return {"outages": times, "outage_s": 20}


async def redis_killed(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """Redis killed with -9 (AOF everysec: up to a second of writes is forgotten) and started at once."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(3.0, 6.0))
        await stack.redis.kill9()
        await stack.redis.start()
    await asyncio.sleep(3.0)
    return {"kills": times}


async def redis_emptied(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """FLUSHALL under load: rows, features, versions and marks are gone."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(3.0, 6.0))
        async with open_redis(stack.settings) as redis:
            await redis.call("FLUSHALL")
        await asyncio.sleep(5.0)
    return {"emptied": times}


async def broker_away(stack: DrillStack, chance: random.Random, times: int) -> dict[str, Any]:
    """The only broker stopped for 10 s and started again, with the same log."""
    (node,) = stack.kafka.node_ids
    for _ in range(times):
        await asyncio.sleep(chance.uniform(2.0, 5.0))
        await stack.kafka.stop(node)
        await asyncio.sleep(10.0)
        await stack.kafka.start(node)
        await asyncio.sleep(5.0)
    return {"outages": times, "outage_s": 10}


SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "kill_workers": (kill_workers, 50),
    "rebalance": (rebalance, 5),
    "redis_away": (redis_away, 1),
    "redis_killed": (redis_killed, 5),
    "redis_emptied": (redis_emptied, 2),
    "broker_away": (broker_away, 2),
}
