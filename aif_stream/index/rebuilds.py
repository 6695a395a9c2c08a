"""Which buckets of a version are rebuilt: a tally in Redis that workers fill and ``aif model`` reads."""

from __future__ import annotations

from typing import NamedTuple

from aif_stream.index.connection import Redis
from aif_stream.index.keys import rebuild_busy_key, rebuild_key


class Tally(NamedTuple):
    """``done``: bucket -> items whose rows were computed in it."""

    done: dict[int, int]
    total: int

    @property
    def items(self) -> int:
        return sum(self.done.values())

    @property
    def missing(self) -> list[int]:
        """Buckets still to do."""
        return [bucket for bucket in range(self.total) if bucket not in self.done]


class RebuildTally:
    """Per version, the finished buckets. Every method raises ``IndexUnavailable`` and may be repeated."""

    def __init__(self, redis: Redis, buckets: int) -> None:
        self._redis = redis
        self._buckets = buckets

    async def finish(self, version: str, bucket: int, items: int) -> None:
        """Note a bucket as done, with the number of its items."""
        await self._redis.call("HSET", rebuild_key(version), bucket, items)

    async def read(self, version: str) -> Tally:
        flat = await self._redis.call("HGETALL", rebuild_key(version))
        done = dict(zip(map(int, flat[0::2]), map(int, flat[1::2]), strict=True))
        return Tally(done, self._buckets)

    async def finished(self, version: str, bucket: int) -> bool:
        """Whether a bucket is noted as done: its task came twice."""
        return bool(await self._redis.call("HEXISTS", rebuild_key(version), bucket))

    async def busy(self, version: str, for_ms: int) -> None:
        """A worker is at it and will say so again within ``for_ms``: nobody need give the tasks out again."""
        await self._redis.call("SET", rebuild_busy_key(version), b"1", "PX", for_ms)

    async def is_busy(self, version: str) -> bool:
        return bool(await self._redis.call("EXISTS", rebuild_busy_key(version)))

    async def clear(self, version: str) -> None:
        """Begin anew: a rebuild that was asked for again counts from zero."""
        await self._redis.call("DEL", rebuild_key(version))
