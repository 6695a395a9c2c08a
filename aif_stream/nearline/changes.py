"""The change log of the index, as the lanes write it: rows that Redis has just acknowledged, for the mirrors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.index.changelog import LIVE, NONE_SUPERSEDED, Stamps, encode_rows

REBUILD: Final = "rebuild"
AGAIN: Final = "again"
"""Lanes of ``encode_rows`` beside its LIVE: rows of a rebuild, of winners published again; no news of their items."""

# A quarter of the topic's message limit: no record comes near it, and a usual batch (512 rows) stays whole.
_MAX_VALUE_BYTES: Final = 1 << 20


class ChangeLog:
    """Writes through a producer that the caller owns."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(
        self,
        version: str,
        layout: RowLayout,
        keys: Keys,
        rows: Rows,
        stamps: Stamps,
        *,
        lane: str = LIVE,
        superseded: NDArray[np.void] = NONE_SUPERSEDED,
    ) -> list[Awaitable[object]]:
        """Queue keys u64 (n) and Rows (n), in one record if they fit; the acknowledgements. Raises ``PublishError``.

        ``superseded``: SUPERSEDED_ENTRY (m), the batch's updates that have no row of their own.
        """
        step = max(1, _MAX_VALUE_BYTES // layout.record.itemsize)
        acks: list[Awaitable[object]] = []
        for first in range(0, len(keys), step):
            part = slice(first, first + step)
            beside = _within(superseded, first, first + step)
            headers, value = encode_rows(version, layout, keys[part], rows[part], stamps, lane=lane, superseded=beside)
            acks.append(await self._producer.send(N2O_ROWS, None, value, headers))
        return acks


def _within(superseded: NDArray[np.void], first: int, end: int) -> NDArray[np.void]:
    """Those of rows [first, end), counted from ``first``."""
    if not superseded.size:
        return superseded
    part = superseded[(superseded["row"] >= first) & (superseded["row"] < end)].copy()
    part["row"] -= first
    return part
