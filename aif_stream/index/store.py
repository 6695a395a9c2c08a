"""The N2O index in Redis: the published truth of items and rows.

The store is the fence (design, invariant 2): whoever writes, a live lane, a rebuild, a zombie, the scripts
compare orders inside Redis, per bucket, atomically.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import hiredis
import numpy as np

from aif_stream.clock import now_ms
from aif_stream.domain.ids import Keys
from aif_stream.domain.order import Order
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.errors import IndexRefused, VersionMissing, VersionUnlisted
from aif_stream.index import packing, reading
from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import REMOVED, ItemWrite, StoredItem, WriteResult, unpack_item
from aif_stream.index.keys import LAYOUT_KEY, Buckets, items_key, retired_key, rows_key, versions_key
from aif_stream.index.refusals import checked, error_of
from aif_stream.index.scripts import script
from aif_stream.index.wire import pack
from aif_stream.index.writes import Outcome, Writes

# Buckets touched per round trip of the slow, whole-index commands: some 10 ms of Redis at most.
_STEP: Final = 64
FORMAT: Final = 1


class N2OStore:
    """Items, rows and versions of one deployment. Safe for many tasks of one event loop.

    Every method raises ``IndexUnavailable`` when Redis does not answer and ``IndexRefused`` when it refuses;
    all of them may be repeated.
    """

    def __init__(self, redis: Redis, buckets: Buckets, *, clock: Callable[[], int] = now_ms) -> None:
        self._redis = redis
        self.buckets = buckets
        self._clock = clock
        self._heads = packing.WriteHeads()

    async def ensure_layout(self) -> None:
        """Record bucket count and format on first use. Raises ``IndexRefused`` when Redis holds another's."""
        mine = b"buckets=%d format=%d" % (self.buckets.count, FORMAT)
        await self._redis.call("SET", LAYOUT_KEY, mine, "NX")
        found = await self._redis.call("GET", LAYOUT_KEY)
        if found != mine:
            text = bytes(found or b"nothing").decode(errors="replace")
            raise IndexRefused(
                f"this Redis holds an index with {text}, the settings say {mine.decode()}",
                mend="set AIF_INDEX_BUCKETS to its count, or use another Redis (or database)",
            )

    async def write_live(self, batch: Sequence[ItemWrite], rows: Mapping[str, Rows]) -> list[WriteResult]:
        """Write a micro-batch: features and, of every version that a bucket lists, rows. Result i is of batch[i].

        ``rows[version]``: Rows (B), row i of batch[i], with batch[i]'s order. Rows of removed items are made
        tombstones in place (order, flags, ``computed_ms`` if 0), so that the change log can carry the array on.
        One script per bucket, all in one write: atomic per bucket, not over buckets. Raises ``VersionMissing``
        when a bucket lists a version that ``rows`` lacks: nothing of that bucket is written, others may be;
        load the versions and repeat the batch. ``BadInput``: an order beyond 2**53.
        """
        writes = Writes.of(batch)
        outcome = await self.write_columns(writes, rows)
        return [outcome.one(i) for i in range(len(batch))]

    async def write_columns(self, writes: Writes, rows: Mapping[str, Rows]) -> Outcome:
        """``write_live`` for a batch in columns (B)."""
        outcome = Outcome(np.zeros(len(writes), np.uint8), writes.times.copy(), writes.offsets.copy())
        if not len(writes):
            return outcome
        now = self._clock()
        packing.stamp_rows(writes, rows, now)
        groups = packing.grouped(self.buckets.of_many(writes.keys))
        commands, places = packing.pack_batch(writes, rows, groups, self._heads, now)
        replies = await self._redis.execute(commands, places)
        missing: set[str] = set()
        positions = groups.order.tolist()
        for reply, start, end in zip(replies, groups.starts, groups.ends, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                if not str(reply).startswith("VERSIONMISSING"):
                    raise error_of(reply)
                missing.update(str(reply).split()[1:])
                continue
            packing.read_statuses(reply, positions[start:end], outcome)
        if missing:
            raise VersionMissing(frozenset(missing), where="the N2O index")
        return outcome

    async def write_rebuilt(
        self, bucket: int, version: str, expected: Sequence[tuple[int, Order]], rows: Rows
    ) -> list[bool]:
        """Write rows (n) of items of one bucket, each only while the item's order is ``expected`` [(key, order)].

        False: the item changed meanwhile (the live write brought its row). A newer computation of the same order
        stays. A row flagged TOMBSTONE is stored as its prefix. Raises ``VersionUnlisted`` when the bucket does not
        list the version: nothing is written, and what was scanned before counts for nothing.
        """
        if not expected:
            return []
        packed = b"".join(key.to_bytes(8, "little") + order.pack() for key, order in expected)
        keys = [items_key(bucket), versions_key(bucket), rows_key(bucket, version)]
        command = script("write_rebuilt").call(keys, version.encode(), packed, rows.tobytes())
        (reply,) = await self._redis.execute([command], keys[:1])
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("VERSIONUNLISTED"):
            raise VersionUnlisted(version, bucket)
        return [flag == 1 for flag in checked([reply])[0]]

    async def check_listed(self, bucket: int, version: str) -> None:
        """Raises ``VersionUnlisted`` when the bucket does not list the version: no live write carries its rows."""
        if not await self._redis.call("SISMEMBER", versions_key(bucket), version):
            raise VersionUnlisted(version, bucket)

    async def read_items(self, keys: Sequence[int]) -> list[StoredItem | None]:
        """Features of items, removed ones too; None where Redis has nothing. One round trip."""
        places = [items_key(self.buckets.of(key)) for key in keys]
        commands = [pack("HGET", place, key.to_bytes(8, "little")) for place, key in zip(places, keys, strict=True)]
        replies = checked(await self._redis.execute(commands, places))
        return [None if value is None else unpack_item(key, value) for key, value in zip(keys, replies, strict=True)]

    async def scan_items(self, bucket: int) -> AsyncIterator[list[StoredItem]]:
        """All items of a bucket in parts; one may come twice when the bucket is written meanwhile."""
        async for fields, values in reading.scan_hash(self._redis, items_key(bucket)):
            keys = np.frombuffer(b"".join(fields), dtype="<u8").tolist()
            yield [unpack_item(key, value) for key, value in zip(keys, values, strict=True)]

    async def scan_rows(self, bucket: int, version: str, layout: RowLayout) -> AsyncIterator[tuple[Keys, Rows]]:
        """All rows of a bucket in parts, tombstones too: keys u64 (n), Rows (n); one may come twice."""
        async for fields, values in reading.scan_hash(self._redis, rows_key(bucket, version)):
            keys = np.frombuffer(b"".join(fields), dtype="<u8")
            yield keys, reading.rows_of(values, layout)

    async def count_rows(self, version: str) -> int:
        """Rows of a version over all buckets, tombstones too."""
        places = [rows_key(bucket, version) for bucket in range(self.buckets.count)]
        return sum(checked(await self._redis.execute([pack("HLEN", place) for place in places], places)))

    async def count_items(self) -> int:
        """Items over all buckets, removed ones too."""
        places = [items_key(bucket) for bucket in range(self.buckets.count)]
        return sum(checked(await self._redis.execute([pack("HLEN", place) for place in places], places)))

    async def read_rows(self, version: str, layout: RowLayout, keys: Keys) -> tuple[Rows, reading.Found]:
        """Rows of candidates: keys u64 (B) -> Rows (B), found bool (B). Unknown and removed items: not found, zeros
        (a removed one keeps its prefix). One round trip. Raises ``IndexRefused`` for rows of another layout."""
        groups = packing.grouped(self.buckets.of_many(keys))
        places = [rows_key(bucket, version) for bucket in groups.buckets]
        commands = reading.pack_hmget(places, keys[groups.order], groups.starts, groups.ends)
        replies = checked(await self._redis.execute(commands, places))
        return reading.gather_rows(replies, layout, groups.order)

    async def add_version(self, version: str) -> None:
        """List a version in every bucket: from the acknowledgement on each live write must carry its rows.

        Buckets where it was retired stay as they are.
        """
        name = version.encode()
        call = script("list_version").call
        await self._each_bucket(lambda b: [(versions_key(b), call([versions_key(b), retired_key(b)], name))])

    async def versions(self) -> set[str]:
        """Versions that any bucket lists: what a live writer has to bring."""
        places = [versions_key(bucket) for bucket in range(self.buckets.count)]
        replies = checked(await self._redis.execute([pack("SMEMBERS", place) for place in places], places))
        return {name.decode() for names in replies for name in names}

    async def unlist_version(self, version: str) -> None:
        """Take a version from every bucket's list: from the acknowledgement on nobody can write its rows."""
        await self._each_bucket(lambda b: [(versions_key(b), pack("SREM", versions_key(b), version))])

    async def unlist_for_good(self, version: str) -> None:
        """As ``unlist_version``, and ``add_version`` lists it in no bucket again: a worker that stood still meanwhile
        would otherwise bring it back."""
        await self._each_bucket(
            lambda b: [
                (versions_key(b), pack("SADD", retired_key(b), version)),
                (versions_key(b), pack("SREM", versions_key(b), version)),
            ]
        )

    async def remove_version(self, version: str) -> None:
        """Unlist a version everywhere, then free its rows, in bounded steps and Redis' background thread."""
        await self.unlist_version(version)
        await self._each_bucket(lambda b: [(rows_key(b, version), pack("UNLINK", rows_key(b, version)))])

    async def listings(self) -> dict[str, int]:
        """Version -> number of buckets that list it."""
        places = [versions_key(bucket) for bucket in range(self.buckets.count)]
        replies = checked(await self._redis.execute([pack("SMEMBERS", place) for place in places], places))
        return dict(Counter(name.decode() for names in replies for name in names))

    async def purge_tombstones(self, older_than_ms: int) -> int:
        """Forget removals written before ``older_than_ms`` (wall time): from then on an older event could revive
        the item, so keep them longer than the topic's ``delete.retention.ms``. Bounded steps. How many went."""
        gone = 0
        for bucket in range(self.buckets.count):
            place, versions = items_key(bucket), None
            async for fields, values in reading.scan_hash(self._redis, place):
                old = [
                    field + value[:16]
                    for field, value in zip(fields, values, strict=True)
                    if value[16] & REMOVED and _removed_before(field, value, older_than_ms)
                ]
                if not old:
                    continue
                if versions is None:
                    versions = sorted(await self._redis.call("SMEMBERS", versions_key(bucket)))
                keys = [place, *(rows_key(bucket, name.decode()) for name in versions)]
                command = script("purge_removed").call(keys, b"".join(old))
                gone += checked(await self._redis.execute([command], [place]))[0]
        return gone

    async def _each_bucket(self, commands_of: Callable[[int], list[tuple[bytes, bytes]]]) -> None:
        for first in range(0, self.buckets.count, _STEP):
            step = range(first, min(first + _STEP, self.buckets.count))
            pairs = [pair for bucket in step for pair in commands_of(bucket)]
            checked(await self._redis.execute([command for _, command in pairs], [place for place, _ in pairs]))


def _removed_before(field: bytes, value: bytes, older_than_ms: int) -> bool:
    removed_ms = unpack_item(int.from_bytes(field, "little"), value).removed_ms
    return removed_ms is not None and removed_ms < older_than_ms
