"""An index filled directly, as the nearline worker would have left it, and an active version of untrained weights: for
measurements in which shapes alone decide the cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from aif_stream.bus.producer import Producer
from aif_stream.bus.versions import publish_version
from aif_stream.clock import now_ms
from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.order import Order
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import manifest_sha256, save
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

CONTENT: Final = 32
"""Numbers of a content vector."""
CATEGORIES: Final = tuple(f"c{n}" for n in range(100))
_BATCH: Final = 4096
_CLICK_EVERY_MS: Final = 60_000


async def fill(settings: Settings, version: ModelVersion, items: int, histories: Mapping[int, int]) -> None:
    """Items 0 … items - 1 with features and rows; for each user of ``histories`` so many clicks, the last one now.

    The same numbers give the same contents, but for the times.
    """
    random = np.random.default_rng(1)
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        await store.add_version(version.name)
        for first in range(0, items, _BATCH):
            await _put(store, version, range(first, min(first + _BATCH, items)), random)
        kept = HistoryStore(redis, max(settings.history_long, *histories.values(), 1))
        for user, length in histories.items():
            touched = random.integers(0, items, length).tolist()
            begin_ms = now_ms() - _CLICK_EVERY_MS * length
            entries = [
                entry_bytes(key, BehaviorKind.CLICK, begin_ms + _CLICK_EVERY_MS * n) for n, key in enumerate(touched)
            ]
            await kept.append({user: b"".join(entries)})


async def _put(store: N2OStore, version: ModelVersion, numbers: range, random: np.random.Generator) -> None:
    vectors = random.standard_normal((len(numbers), CONTENT)).round(3).tolist()
    items = [
        ItemUpserted(item_id=n, category=CATEGORIES[n % len(CATEGORIES)], content_vector=vector)
        for n, vector in zip(numbers, vectors, strict=True)
    ]
    times = np.full(len(items), now_ms(), np.uint64)
    rows = version.item_rows(items, times, np.arange(len(items), dtype=np.uint64), now_ms()).rows
    batch = [
        ItemWrite(n, str(n), Order(int(times[at]), at), msgspec.json.encode(items[at])) for at, n in enumerate(numbers)
    ]
    await store.write_live(batch, {version.name: rows})


async def publish_active(settings: Settings, version: ModelVersion, source: str) -> None:
    """Save the artefact and publish it as the active version; ``source`` names the producer."""
    directory = settings.models_dir / version.name
    save(directory, version)
    record = VersionRecord(
        version=version.name,
        state=VersionState.ACTIVE,
        artefact=str(directory),
        manifest_sha256=manifest_sha256(directory),
        created_ms=now_ms(),
        activation=1,
    )
    async with Producer(settings, source) as producer:
        await publish_version(producer, record)
