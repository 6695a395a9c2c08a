"""``aif doctor``: every check, side by side; one that cannot be made is a finding, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from aif_stream.errors import AifError
from aif_stream.index.connection import Redis, open_redis
from aif_stream.runtime import bus_health, index_health, version_health
from aif_stream.runtime.findings import Finding, Level, error, failed, sorted_findings
from aif_stream.settings import Settings

# A broker that swallows packets costs 20 s per question (bus/connection.py); two of them, then the check is given up.
_DEADLINE_S: Final = 45.0
# Checks ask a few questions each over connections of their own; all at once would only crowd a small machine.
_AT_ONCE: Final = 4

OfKafka = Callable[[Settings], Awaitable[list[Finding]]]
OfRedis = Callable[[Settings, Redis], Awaitable[list[Finding]]]

_KAFKA: Final[dict[str, OfKafka]] = {
    "topics": bus_health.check_topics,
    "permissions": bus_health.check_rights,
    "clocks": bus_health.check_broker_clock,
    "versions": version_health.check_artefacts,
    "dead letters": bus_health.check_letters,
}
_REDIS: Final[dict[str, OfRedis]] = {
    "redis": index_health.check_redis,
    "memory": index_health.check_memory,
    "clocks": index_health.check_redis_clock,
}
_BOTH: Final[dict[str, OfRedis]] = {
    "marks": bus_health.check_marks,
    "rows": version_health.check_rows,
    "serve": version_health.check_servers,
}


async def examine(settings: Settings) -> list[Finding]:
    """All findings, errors first. Changes nothing but for two records that tell the broker's time (broker_clock.py)."""
    async with AsyncExitStack() as stack:
        turns = asyncio.Semaphore(_AT_ONCE)
        broker = await _made("broker", bus_health.check_broker(settings), turns)
        kafka = all(finding.level is not Level.ERROR or "leader" in finding.what for finding in broker)
        redis: Redis | None = None
        found = list(broker)
        try:
            redis = await stack.enter_async_context(open_redis(settings))
        except AifError as problem:
            found.append(failed("redis", problem))
        work = [_made("retrieval", version_health.check_retrieval(settings), turns)]
        if kafka:
            work += [_made(name, check(settings), turns) for name, check in _KAFKA.items()]
        if redis is not None:
            work += [_made(name, check(settings, redis), turns) for name, check in _REDIS.items()]
            if kafka:
                work += [_made(name, check(settings, redis), turns) for name, check in _BOTH.items()]
        for part in await asyncio.gather(*work):
            found += part
        found = _said_once(found)
        found += _not_looked_at(kafka, redis is not None)
    return sorted_findings(found)


def _said_once(found: list[Finding]) -> list[Finding]:
    """Checks that failed for want of a topic as one finding: the topics are named by their own, and mending them mends
    all of these."""
    hindered = [finding for finding in found if finding.check != "topics" and "has no topic" in finding.what]
    if not hindered:
        return found
    names = ", ".join(dict.fromkeys(finding.check for finding in hindered))
    rest = [finding for finding in found if finding not in hindered]
    return [*rest, error("doctor", f"not looked at without the missing topics: {names}", "aif topics apply")]


def _not_looked_at(kafka: bool, redis: bool) -> list[Finding]:
    names = [name for name in _KAFKA if not kafka] + [name for name in _REDIS if not redis and name not in _KAFKA]
    names += [name for name in _BOTH if not (kafka and redis)]
    skipped = [name for name in dict.fromkeys(names) if name != "redis"]
    if not skipped:
        return []
    who = " and ".join(name for name, there in (("Kafka", kafka), ("Redis", redis)) if not there)
    return [error("doctor", f"not looked at without {who}: {', '.join(skipped)}", f"mend {who} first")]


async def _made(name: str, check: Awaitable[list[Finding]], turns: asyncio.Semaphore) -> list[Finding]:
    async with turns:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                return await check
        except AifError as problem:
            return [failed(name, problem)]
        except TimeoutError:
            return [error(name, f"the check did not end within {_DEADLINE_S:.0f} s", "look at the network in between")]
