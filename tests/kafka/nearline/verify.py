"""Is the index what the latest events say? For tests and drills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aif_stream.domain.events import decode_item
from aif_stream.domain.ids import key_of
from aif_stream.index.connection import open_redis
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings


class Latest(NamedTuple):
    """The newest event of an item; ``payload`` None when it was removed."""

    event_time_ms: int
    payload: bytes | None


async def compare_index(settings: Settings, model: ModelVersion, latest: Mapping[str, Latest]) -> list[str]:
    """What differs from the truth, one line per item: features, removals, and rows, which must equal the item side of
    the latest event byte for byte (but for the time of computing). Empty: the index is right."""
    names = list(latest)
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        keys = np.array([key_of(name) for name in names], dtype=np.uint64)
        stored = await store.read_items(keys.tolist())
        rows, found = await store.read_rows(model.name, model.layout, keys)
    differing = [
        f"{name}: {problem}"
        for name, item, here in zip(names, stored, found, strict=True)
        if (problem := _item_problem(item, latest[name], bool(here)))
    ]
    if differing:
        return differing
    alive = [i for i, name in enumerate(names) if latest[name].payload is not None]
    orders = np.array([item.order for i in alive if (item := stored[i])], dtype=np.uint64).reshape(-1, 2)
    items = [decode_item(payload) for i in alive if (payload := latest[names[i]].payload)]
    expected, _ = model.item_rows(items, orders[:, 0], orders[:, 1], 0)
    actual = rows[alive]
    expected["computed_ms"] = actual["computed_ms"]
    return [
        f"{names[i]}: another row"
        for i, a, e in zip(alive, actual, expected, strict=True)
        if a.tobytes() != e.tobytes()
    ]


def _item_problem(item: StoredItem | None, latest: Latest, has_row: bool) -> str:
    if item is None:
        return "is not there"
    if item.order.event_time_ms != latest.event_time_ms:
        return f"has the event of {item.order.event_time_ms}, the latest is of {latest.event_time_ms}"
    if item.removed != (latest.payload is None):
        return f"removed={item.removed}"
    if has_row == item.removed:
        return f"removed={item.removed}, row={has_row}"
    if latest.payload is not None and item.payload != latest.payload:
        return "has other features of the same time"
    return ""
