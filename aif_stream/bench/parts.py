"""What an update costs in each stage of the items lane, in µs of CPU: the worker's own functions, nothing beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from aif_stream.bench.material import lines, model
from aif_stream.bus.events import ItemEvent, event_headers, item_from_record
from aif_stream.bus.salvage import Plain, plain_records
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType, decode_item
from aif_stream.index import packing
from aif_stream.index.changelog import Stamps, encode_rows
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.nearline.app import spare_the_collector
from aif_stream.nearline.newest import coalesce
from aif_stream.nearline.work import Taken

_BATCHES: Final = 8
_ROUNDS: Final = 5
_ZSTD: Final = 4


def measure(content: int, batch: int) -> dict[str, float]:
    """Stage -> µs per update, medians over batches; each stage reads what the one before made. In the end collection is
    as rare as in a worker: for a process that measures and ends."""
    spare_the_collector()
    version = model(content)
    stored = _stored(lines(batch * _BATCHES, content), batch)
    found: dict[str, float] = {}

    def stage(name: str, call: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
        outputs, took = [], []
        for turn in range(_ROUNDS):
            for each in inputs:
                start = time.thread_time()
                output = call(each)
                took.append((time.thread_time() - start) / batch * 1e6)
                if turn == 0:
                    outputs.append(output)
        found[name] = round(float(np.median(took)), 2)
        return outputs

    records = stage("fetched bytes to records (zstd, CRC)", _parse, stored)
    stage("of decode: JSON to struct", lambda some: [decode_item(r.value) for r in some], records)
    batches = stage("decode", lambda some: [Taken(r, item_from_record(r)) for r in some], records)
    newest = stage("newest of each item", coalesce, batches)
    events: list[list[ItemEvent]] = [[held.taken.event for held in some] for some in newest]
    writes = [[ItemWrite(e.key, e.id_text, e.order, e.payload) for e in some] for some in events]
    both = list(zip(events, writes, strict=True))
    stage("of item side: features", lambda some: version._items.encode([e.item for e in some]), events)
    rows = stage("item side", lambda pair: _rows(version, *pair), both)
    ready = list(zip(writes, rows, strict=True))
    heads, buckets = packing.WriteHeads(), Buckets(256)
    stage("scripts' arguments", lambda pair: _pack(pair[0], pair[1], buckets, heads), ready)
    stage(
        "change log record",
        lambda pair: encode_rows("bench", version.layout, _keys(pair[0]), pair[1], Stamps(1, 2)),
        ready,
    )
    return found


def _stored(made: list[tuple[bytes, bytes]], batch: int) -> list[bytes]:
    """Record batches as a broker stores them."""
    stored = []
    for first in range(0, len(made), batch):
        builder = DefaultRecordBatchBuilder(2, _ZSTD, 1, 1, 1, 0, 1 << 30)
        for n, (key, value) in enumerate(made[first : first + batch]):
            headers = event_headers(EventType.ITEM_UPSERTED, str(n), "bench", now_ms())
            builder.append(n, now_ms(), key, value, headers)
        stored.append(bytes(builder.build()))
    return stored


def _parse(stored: bytes) -> list[Plain]:
    tp = TopicPartition("aif.item-updates", 0)
    return list(plain_records(tp, PartitionRecords(tp, MemoryRecords(stored), [], 0, None, None, True, 0)))


def _rows(version: Any, events: Sequence[ItemEvent], writes: Sequence[ItemWrite]) -> Any:
    orders = packing.orders_of(writes)
    items = [event.item for event in events]
    return version.item_rows(items, orders[:, 0], orders[:, 1], now_ms(), _keys(writes)).rows


def _pack(writes: Sequence[ItemWrite], rows: Any, buckets: Buckets, heads: packing.WriteHeads) -> Any:
    packing.stamp_rows(writes, {"bench": rows}, 0)
    groups = packing.grouped(buckets.of_many(_keys(writes)))
    return packing.pack_batch(writes, {"bench": rows}, groups, heads, 0)


def _keys(writes: Sequence[ItemWrite]) -> Any:
    return np.fromiter((write.key for write in writes), dtype=np.uint64, count=len(writes))
