"""The body of a request log's record in one call: 10,000 candidates in some microseconds, the interpreter's lock held.

The five numpy calls of the plain twin give it away each, and whoever computes beside a busy event loop waits for its
return: 40 µs for 2,000 candidates, 125 for 10,000.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aif_stream.domain.ids import Keys
from aif_stream.domain.request_log import Block, Packed, pack
from aif_stream.kernels.native import Level, choose

_BLOCKS: Final[dict[int, Block]] = {2: "u16", 3: "u24", 4: "u32", 8: "u64"}
_PARTS: Final = 16  # more than channels; request_body.c says the same


def request_body(
    keys: list[Keys], best: list[int], scores: list[float], *, level: Level | None = None
) -> Packed | None:
    """What ``domain.request_log.pack`` makes of the same, which runs where there is no C library. Each part of ``keys``
    lies in one piece. ValueError when one does not, when the lists differ in length, or when an answered item is larger
    than the width of the candidates."""
    native, _ = choose(level)
    if native is None or native.objects is None:
        return pack(keys, best, scores)
    made = native.objects.request_body(keys if len(keys) <= _PARTS else [np.concatenate(keys)], best, scores)
    return None if made is None else Packed(_BLOCKS[made[0]], made[1])
