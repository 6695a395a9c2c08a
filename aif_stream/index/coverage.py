"""How much of the index a version's rows cover, counted in Redis: nothing but numbers crosses the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from aif_stream.index.connection import Redis
from aif_stream.index.keys import items_key, rows_key
from aif_stream.index.refusals import checked
from aif_stream.index.scripts import script

# Items per step: about a millisecond of Redis, in which nobody else is served.
_STEP: Final = b"500"


class Coverage(NamedTuple):
    """Of the items that are not removed: ``missing`` have no row, ``other`` one of another order than the item's, and
    ``invalid`` one that says that the version cannot use their features (counted, and no gap)."""

    living: int
    missing: int
    other: int
    invalid: int

    @property
    def share(self) -> float:
        """Of living items, those with the row that they should have; 1 while there are none."""
        return 1.0 - (self.missing + self.other) / self.living if self.living else 1.0


async def count_coverage(redis: Redis, version: str, buckets: Iterable[int]) -> Coverage:
    """Over these buckets, in bounded steps; an item that is written meanwhile may count twice.

    Raises ``IndexUnavailable``, ``IndexRefused``.
    """
    total = Coverage(0, 0, 0, 0)
    for bucket in buckets:
        keys, cursor = [items_key(bucket), rows_key(bucket, version)], b"0"
        while True:
            command = script("count_coverage").call(keys, cursor, _STEP)
            (reply,) = checked(await redis.execute([command], keys[:1]))
            cursor = bytes(reply[0])
            total = Coverage(*(sum(pair) for pair in zip(total, reply[1:], strict=True)))
            if cursor == b"0":
                break
    return total
