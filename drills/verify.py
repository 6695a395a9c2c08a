"""Afterwards: every item's features and row are those of its newest event, and nothing else is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.bus.watch import GroupWatch
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.ids import Key, key_of
from aif_stream.domain.row import TOMBSTONE
from aif_stream.index.connection import open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

Truth = Mapping[str, tuple[int, dict[str, Any] | None]]

SHOWN = 10
WRONG = ("lost", "older", "newer", "features", "row", "revived", "extra")


async def caught_up(settings: Settings, within_s: float = 180) -> float:
    """Wait until the group has committed everything, twice in a row; seconds that it took."""
    began = asyncio.get_running_loop().time()
    calm = 0
    async with GroupWatch(settings, ITEMS_GROUP, [ITEM_UPDATES]) as watch, asyncio.timeout(within_s):
        while calm < 2:
            standing = await watch.standing()
            calm = calm + 1 if all(not s.lag_records for s in standing.values()) else 0
            await asyncio.sleep(0.5)
    return asyncio.get_running_loop().time() - began


async def compare(settings: Settings, model: ModelVersion, version: str, truth: Truth) -> dict[str, Any]:
    """Counts of what is wrong by kind (all zero when nothing is), the first examples, and how much was compared."""
    names = list(truth)
    keys = [key_of(name) for name in names]
    wrong: dict[str, list[str]] = {kind: [] for kind in ("lost", "older", "newer", "features", "row", "revived")}
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        for first in range(0, len(names), 2000):
            part = slice(first, first + 2000)
            await _compare_part(store, model, version, names[part], keys[part], truth, wrong)
        extra = await _extra(store, settings.index_buckets, set(keys))
    return {
        "compared": len(names),
        "removed": sum(event is None for _, event in truth.values()),
        "extra": extra,
        **{kind: len(found) for kind, found in wrong.items()},
        "examples": {kind: found[:SHOWN] for kind, found in wrong.items() if found},
    }


async def _compare_part(
    store: N2OStore,
    model: ModelVersion,
    version: str,
    names: list[str],
    keys: list[Key],
    truth: Truth,
    wrong: dict[str, list[str]],
) -> None:
    stored = await store.read_items(keys)
    rows, found = await store.read_rows(version, model.layout, np.array(keys, dtype=np.uint64))
    alive = [i for i, name in enumerate(names) if truth[name][1] is not None]
    events = [msgspec.convert(truth[names[i]][1], ItemUpserted) for i in alive]
    zeros = np.zeros(len(alive), dtype=np.uint64)
    expected, _ = model.item_rows(events, zeros, zeros, 0)
    place = {i: at for at, i in enumerate(alive)}
    for i, name in enumerate(names):
        time_ms, event = truth[name]
        item = stored[i]
        if item is None:
            wrong["lost"].append(name)
        elif item.order.event_time_ms != time_ms:
            wrong["older" if item.order.event_time_ms < time_ms else "newer"].append(name)
        elif event is None:
            if not item.removed or (found[i] and not int(rows[i]["flags"]) & TOMBSTONE):
                wrong["revived"].append(name)
        elif item.removed or not _same_features(item.payload, event):
            wrong["features"].append(name)
        elif not found[i] or not _same_row(rows[i], expected[place[i]], time_ms):
            wrong["row"].append(name)


def _same_features(payload: bytes, event: dict[str, Any]) -> bool:
    sent = msgspec.json.decode(payload)
    return all(sent.get(name) == value for name, value in event.items())


def _same_row(row: np.void, expected: np.void, time_ms: int) -> bool:
    """Byte for byte, but for the offset and when it was computed: a row depends on its item alone."""
    if int(row["event_time_ms"]) != time_ms:
        return False
    expected = expected.copy()
    for name in ("event_time_ms", "offset", "computed_ms"):
        expected[name] = row[name]
    return row.tobytes() == expected.tobytes()


async def _extra(store: N2OStore, buckets: int, known: set[Key]) -> int:
    """Items in Redis that nobody published."""
    extra = 0
    for bucket in range(buckets):
        async for items in store.scan_items(bucket):
            extra += sum(Key(item.key) not in known for item in items)
    return extra
