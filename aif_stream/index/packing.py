"""A micro-batch as script calls: one per bucket, its arguments packed.

Why packed: a script call with thousands of arguments costs client and server per argument; three bulk
strings per bucket (items, version name, rows) cost the same whatever the batch. The beginning of each
call (command, SHA, keys) is the same for ever and is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.order import Order
from aif_stream.domain.row import TOMBSTONE, Rows
from aif_stream.index.item_codec import WriteStatus, pack_write
from aif_stream.index.keys import items_key, rows_key, versions_key
from aif_stream.index.scripts import script
from aif_stream.index.writes import Outcome, Writes
from aif_stream.kernels.native import Level
from aif_stream.kernels.writes import pack_commands


class WriteHeads:
    """The constant beginnings of write calls, per set of versions and bucket."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, ...], dict[int, tuple[bytes, bytes]]] = {}

    def of(self, versions: tuple[str, ...], buckets: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """(head, items key) per bucket."""
        known = self._heads.get(versions)
        if known is None:
            self._heads.clear()  # versions change a few times a day; those of before will not come back
            known = self._heads[versions] = {}
        for bucket in buckets:
            if bucket not in known:
                place = items_key(bucket)
                keys = [place, versions_key(bucket), *(rows_key(bucket, name) for name in versions)]
                known[bucket] = (script("write_batch").head(keys, 1 + 2 * len(versions)), place)
        return [known[bucket] for bucket in buckets]


class Groups(NamedTuple):
    """``order``: positions (B) sorted by bucket; bucket buckets[j] (n) has order[starts[j] : ends[j]]."""

    order: NDArray[np.intp]
    starts: list[int]
    ends: list[int]
    buckets: list[int]


def grouped(buckets: NDArray[np.int64]) -> Groups:
    """Group positions by their bucket (B), stable inside a bucket."""
    # numpy sorts 16-bit numbers by radix: 0.1 ms for 10,000 instead of 0.7.
    narrow = buckets.astype(np.uint16) if buckets.size and buckets.max() < 1 << 16 else buckets
    order = np.argsort(narrow, kind="stable")
    by_bucket = buckets[order]
    starts = np.flatnonzero(np.diff(by_bucket, prepend=-1)).tolist()
    ends = [*starts[1:], len(buckets)] if starts else []
    return Groups(order, starts, ends, by_bucket[starts].tolist())


def stamp_rows(writes: Writes, rows: Mapping[str, Rows], now_ms: int) -> None:
    """Make the rows of removals tombstones, in place. Raises ``ValueError`` for rows that are not of this batch."""
    removed = writes.removed
    for version, matrix in rows.items():
        if len(matrix) != len(writes):
            raise ValueError(f"{len(matrix)} rows of version {version} for {len(writes)} items")
        if removed:
            tombstones = np.zeros(len(removed), dtype=matrix.dtype)
            computed = matrix["computed_ms"][removed]
            tombstones["event_time_ms"], tombstones["offset"] = writes.times[removed], writes.offsets[removed]
            tombstones["computed_ms"] = np.where(computed == 0, np.uint64(now_ms), computed)
            tombstones["category"], tombstones["flags"] = -1, TOMBSTONE
            matrix[removed] = tombstones
        if not (
            np.array_equal(matrix["event_time_ms"], writes.times) and np.array_equal(matrix["offset"], writes.offsets)
        ):
            raise ValueError(f"the rows of version {version} carry other orders than the batch")


def pack_batch(
    writes: Writes,
    rows: Mapping[str, Rows],
    groups: Groups,
    heads: WriteHeads,
    now_ms: int,
    *,
    level: Level | None = None,
) -> tuple[list[bytes], list[bytes]]:
    """One command per bucket and the key that places it; items in the order of ``groups``.

    Raises ``BadInput`` when an order passes 2**53.
    """
    writes.check_orders()
    versions = tuple(rows)
    begun = heads.of(versions, groups.buckets)
    made = [head for head, _ in begun]
    labels = [b"$%d\r\n%s\r\n" % (len(name), name.encode()) for name in versions]
    matrices = [bytes_of(rows[name]) for name in versions]
    packed = pack_commands(writes, made, labels, matrices, (groups.order, groups.starts, groups.ends), now_ms, level)
    if packed is None:
        packed = _pack_plain(writes, made, labels, matrices, groups, now_ms)
    return packed, [place for _, place in begun]


def _pack_plain(
    writes: Writes,
    heads: list[bytes],
    labels: list[bytes],
    matrices: list[NDArray[np.uint8]],
    groups: Groups,
    now_ms: int,
) -> list[bytes]:
    """The twin of ``pack_commands``."""
    order = groups.order.tolist()
    commands: list[bytes] = []
    for head, start, end in zip(heads, groups.starts, groups.ends, strict=True):
        chosen = order[start:end]
        packed = b"".join([pack_write(writes.one(i), now_ms) for i in chosen])
        parts = [head, b"$%d\r\n%b\r\n" % (len(packed), packed)]
        for label, matrix in zip(labels, matrices, strict=True):
            blob = matrix[chosen].tobytes()
            parts += (label, b"$%d\r\n%b\r\n" % (len(blob), blob))
        commands.append(b"".join(parts))
    return commands


def bytes_of(rows: Rows) -> NDArray[np.uint8]:
    """Rows (n) as plain bytes (n, width): numpy copies structured rows field by field, seven times slower."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def read_statuses(reply: bytes, places: Sequence[int], outcome: Outcome) -> None:
    """A script's reply -> ``outcome`` at ``places`` (see write_batch.lua); all written is what it says already."""
    at, count = 0, len(places)
    if reply.count(0) == len(reply) == count:
        return
    for i in places:
        status = reply[at]
        at += 1
        outcome.status[i] = status
        if status >= WriteStatus.OLDER:
            outcome.times[i], outcome.offsets[i] = Order.unpack(reply[at : at + 16])
            at += 16
