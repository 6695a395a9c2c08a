"""What each Redis server says of itself: memory, persistence, time."""

from __future__ import annotations

from typing import NamedTuple

from aif_stream.clock import now_ms
from aif_stream.index.connection import Redis


class ServerInfo(NamedTuple):
    """One primary. ``limit_bytes``: maxmemory, 0 for none. ``troubles``: what its persistence complains of."""

    where: str
    version: str
    used_bytes: int
    limit_bytes: int
    host_bytes: int
    troubles: tuple[str, ...]

    @property
    def room_bytes(self) -> int:
        """What it may take at most; 0 when it does not say."""
        return self.limit_bytes or self.host_bytes


class ServerClock(NamedTuple):
    """``ahead_ms``: how far Redis' clock is ahead of ours, true within ``within_ms``."""

    where: str
    ahead_ms: float
    within_ms: float


async def server_infos(redis: Redis) -> list[ServerInfo]:
    """Every primary. Raises ``IndexUnavailable``, ``IndexRefused`` (no right to ask INFO)."""
    return [_info(where, bytes(text)) for where, text in (await redis.everywhere("INFO", "everything")).items()]


async def server_clocks(redis: Redis) -> list[ServerClock]:
    """Every primary's TIME beside ours. Raises ``IndexUnavailable``, ``IndexRefused``."""
    await redis.everywhere("PING")
    before_ms = now_ms()
    answers = await redis.everywhere("TIME")
    after_ms = now_ms()
    middle_ms, within_ms = (before_ms + after_ms) / 2, (after_ms - before_ms) / 2 + 1
    return [
        ServerClock(where, int(seconds) * 1000 + int(micros) / 1000 - middle_ms, within_ms)
        for where, (seconds, micros) in answers.items()
    ]


def _info(where: str, text: bytes) -> ServerInfo:
    info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(name, "ok") != "ok"
    ]
    return ServerInfo(
        where,
        info.get("redis_version", ""),
        int(info.get("used_memory", 0)),
        int(info.get("maxmemory", 0)),
        int(info.get("total_system_memory", 0)),
        tuple(f"{name} is {info[name]}" for name in failed),
    )
