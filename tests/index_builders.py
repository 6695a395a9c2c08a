"""Builders for the index: items, rows whose numbers tell their order, the whole content of an index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.domain.row import VALID, RowLayout, Rows, empty_rows
from aif_stream.index.item_codec import ItemWrite, StoredItem
from aif_stream.index.store import N2OStore

LAYOUT = RowLayout(hidden=4, width=2, bridges=2, signature_bits=64)
OTHER_LAYOUT = RowLayout(hidden=8, width=2, bridges=2, signature_bits=64)
NOW_MS = 1_800_000_000_000


def item(name: str, time_ms: int, offset: int = 0, *, payload: bytes | None = b"{}") -> ItemWrite:
    return ItemWrite(key_of(name), name, Order(time_ms, offset), payload)


def removal(name: str, time_ms: int, offset: int = 0) -> ItemWrite:
    return item(name, time_ms, offset, payload=None)


def rows_for(batch: Sequence[ItemWrite], layout: RowLayout = LAYOUT, computed_ms: int = 5) -> Rows:
    """Rows (B) with the batch's orders; every number in the body is a function of the order."""
    rows = empty_rows(layout, len(batch))
    for i, write in enumerate(batch):
        rows[i]["event_time_ms"], rows[i]["offset"] = write.order
        rows[i]["h"] = write.order.event_time_ms % 1000 + write.order.offset % 64 / 64
        rows[i]["t"] = write.order.offset % 997
    rows["computed_ms"], rows["flags"] = computed_ms, VALID
    return rows


async def read_index(
    store: N2OStore, versions: Iterable[str], layout: RowLayout = LAYOUT
) -> tuple[dict[int, StoredItem], dict[str, dict[int, bytes]]]:
    """Everything: items by key, and per version row bytes by key."""
    items: dict[int, StoredItem] = {}
    rows: dict[str, dict[int, bytes]] = {version: {} for version in versions}
    for bucket in range(store.buckets.count):
        async for part in store.scan_items(bucket):
            items.update({found.key: found for found in part})
        for version, found_rows in rows.items():
            async for keys, part_rows in store.scan_rows(bucket, version, layout):
                found_rows.update({int(k): row.tobytes() for k, row in zip(keys, part_rows, strict=True)})
    return items, rows


def u64(*keys: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(keys, dtype=np.uint64)
