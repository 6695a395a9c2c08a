"""The body of a request log's record in one call: 10,000 candidates in some microseconds, the interpreter's lock held.

The five numpy calls of the plain twin give it away each, and whoever computes beside a busy event loop waits for its
return: 40 µs for 2,000 candidates, 125 for 10,000.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import numpy as np

from aif_stream.domain.ids import Keys
from aif_stream.domain.request_log import Block, Packed, pack
from aif_stream.kernels.native import Level, address, choose

_BLOCKS: Final[dict[int, Block]] = {2: "u16", 3: "u24", 4: "u32", 8: "u64"}


def request_body(
    keys: Sequence[Keys], best: list[int], scores: list[float], *, level: Level | None = None
) -> Packed | None:
    """What ``domain.request_log.pack`` makes of the same, which runs where there is no C library. ValueError when the
    lists differ in length, or an answered item is larger than the width of the candidates."""
    native, _ = choose(level)
    if native is None or native.objects is None:
        return pack(keys, best, scores)
    parts = [np.ascontiguousarray(part, np.uint64) for part in keys]
    count, bytes_each = len(parts), ctypes.c_int64()
    at = (ctypes.c_void_p * count)(*map(address, parts))
    sizes = (ctypes.c_int64 * count)(*(part.size for part in parts))
    made = native.objects.request_body(at, sizes, count, best, scores, ctypes.addressof(bytes_each))
    return None if made is None else Packed(_BLOCKS[bytes_each.value], made)
