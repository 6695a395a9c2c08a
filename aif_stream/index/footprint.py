"""What versions take in Redis, and rows that nobody speaks of: for `aif doctor`, which looks and changes nothing."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Final, NamedTuple

import hiredis

from aif_stream.index.connection import Redis
from aif_stream.index.keys import Buckets, rows_key
from aif_stream.index.refusals import checked
from aif_stream.index.wire import pack

# Keys per SCAN step: a millisecond or two of Redis, and ten million users' keys are a thousand steps.
_SCAN_STEP: Final = 10_000
_SAMPLED_BUCKETS: Final = 8
_ROWS: Final = re.compile(rb"\{n2o:\d+\}:rows:(.+)")


class Footprint(NamedTuple):
    """One version. ``row_bytes`` is measured on some buckets, field, value and hash included; 0 when unknown."""

    version: str
    rows: int
    row_bytes: float

    @property
    def bytes(self) -> float:
        return self.rows * self.row_bytes


async def footprint(redis: Redis, buckets: Buckets, version: str) -> Footprint:
    """Rows by HLEN of every bucket, bytes per row by MEMORY USAGE of some. Raises ``IndexUnavailable``."""
    places = [rows_key(bucket, version) for bucket in range(buckets.count)]
    sizes = checked(await redis.execute([pack("HLEN", place) for place in places], places))
    sampled = [(place, size) for place, size in zip(places, sizes, strict=True) if size][:_SAMPLED_BUCKETS]
    keys = [place for place, _ in sampled]
    replies = await redis.execute([pack("MEMORY", "USAGE", key, "SAMPLES", 64) for key in keys], keys)
    if not replies or any(isinstance(reply, hiredis.ReplyError) or reply is None for reply in replies):
        return Footprint(version, sum(sizes), 0.0)
    return Footprint(version, sum(sizes), sum(replies) / sum(size for _, size in sampled))


async def stored_versions(redis: Redis) -> dict[str, int]:
    """Version -> buckets that hold rows of it, by a scan of all keys in bounded steps. Raises ``IndexUnavailable``."""
    found: Counter[str] = Counter()
    for wire in await redis.wires():
        cursor = b"0"
        while True:
            command = pack("SCAN", cursor, "MATCH", "{n2o:*}:rows:*", "COUNT", _SCAN_STEP)
            ((cursor, keys),) = checked(await wire.execute([command]))
            found.update(match[1].decode() for key in keys if (match := _ROWS.fullmatch(bytes(key))))
            if cursor == b"0":
                break
            await asyncio.sleep(0)
    return dict(found)
