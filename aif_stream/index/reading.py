"""Many rows out of Redis with few Python objects: packed HMGET, HSCAN in parts, joined replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import Keys
from aif_stream.domain.row import PREFIX, TOMBSTONE, RowLayout, Rows
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.connection import Redis
from aif_stream.index.link import Reply

Found = NDArray[np.bool_]

# Fields per HSCAN step: about 1 ms of Redis, in which nobody else is served.
_SCAN_FIELDS: Final = 1000
# "$8\r\n" · 8 bytes · "\r\n": one argument of HMGET as numpy packs ten thousand of them at once.
_ARGUMENT: Final = np.dtype([("size", "S4"), ("key", "<u8"), ("end", "S2")])


async def scan_hash(redis: Redis, key: bytes) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
    """All (fields, values) of a hash in parts. A field may come twice when the hash is resized meanwhile.

    Raises ``IndexUnavailable``, also when another server may have answered a part: its cursors mean other fields.
    """
    cursor, generation = b"0", redis.generation
    while True:
        after, flat = await redis.call("HSCAN", key, cursor, "COUNT", _SCAN_FIELDS)
        if redis.generation != generation:
            if cursor != b"0":
                raise IndexUnavailable(f"the connection changed while {key.decode()} was read", mend="it is read again")
            generation = redis.generation
            continue
        cursor = after
        if flat:
            yield flat[0::2], flat[1::2]
        if cursor == b"0":
            return


def rows_of(values: Sequence[bytes], layout: RowLayout) -> Rows:
    """Stored rows -> Rows (n), tombstones filled with zeros. Raises ``IndexRefused`` for another layout's rows."""
    dtype = layout.dtype
    sizes = set(map(len, values))
    if not sizes <= {dtype.itemsize, PREFIX.itemsize}:
        raise _foreign(sizes, dtype.itemsize)
    if PREFIX.itemsize in sizes:
        values = [value.ljust(dtype.itemsize, b"\0") for value in values]
    return np.frombuffer(b"".join(values), dtype=dtype)


def pack_hmget(places: Sequence[bytes], keys: Keys, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """HMGET per hash: ``keys`` (B) sorted by hash, places[j] has keys[starts[j] : ends[j]]."""
    arguments = np.empty(len(keys), dtype=_ARGUMENT)
    arguments["size"], arguments["key"], arguments["end"] = b"$8\r\n", keys, b"\r\n"
    packed, width = arguments.tobytes(), _ARGUMENT.itemsize
    return [
        b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n%b"
        % (end - start + 2, len(place), place, packed[start * width : end * width])
        for place, start, end in zip(places, starts, ends, strict=True)
    ]


def gather_rows(replies: Sequence[Reply], layout: RowLayout, order: NDArray[np.intp]) -> tuple[Rows, Found]:
    """HMGET replies (in the order of ``order``) -> Rows (B) in the caller's order, found bool (B)."""
    values: list[bytes | None] = [value for reply in replies for value in reply]
    present = cast("list[bytes]", values)
    places = order
    if None in values:
        known = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
        present = [value for value in values if value is not None]
        places = order[known]
    width = layout.dtype.itemsize
    # As plain bytes: numpy copies structured rows field by field, five times slower.
    matrix = np.zeros((len(values), width), dtype=np.uint8)
    matrix[places] = rows_of(present, layout).view(np.uint8).reshape(-1, width)
    rows: Rows = matrix.view(layout.dtype)[:, 0]
    found = np.zeros(len(values), dtype=np.bool_)
    found[places] = True
    found &= (rows["flags"] & TOMBSTONE) == 0
    return rows, found


def _foreign(sizes: set[int], expected: int) -> IndexRefused:
    return IndexRefused(
        f"Redis holds rows of {', '.join(map(str, sorted(sizes)))} bytes, this version's layout says {expected}",
        mend="a version was republished under its name with another model; publish it under a new name",
    )
