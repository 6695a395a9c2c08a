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
from aif_stream.bus.events import event_headers
from aif_stream.bus.salvage import Plain, plain_records
from aif_stream.clock import now_ms
from aif_stream.domain.events import MAX_AHEAD_MS, EventType, decode_item
from aif_stream.index import packing
from aif_stream.index.changelog import Stamps, encode_rows
from aif_stream.index.keys import Buckets
from aif_stream.index.writes import Writes
from aif_stream.kernels.native import Level
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.item_records import ItemRecords, newest_records, read_records, writes_of
from aif_stream.nearline.role import spare_the_collector

_BATCHES: Final = 8
_ROUNDS: Final = 5
_ZSTD: Final = 4
_LIMIT_BYTES: Final = 1 << 20


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
    read = stage("decode", lambda some: read_records(some, MAX_AHEAD_MS, _LIMIT_BYTES)[0], records)
    stage("newest of each item", newest_records, read)
    every = np.arange(batch)
    stage("of item side: features", lambda some: version._items.encode_columns(some.columns, every), read)
    writes = [writes_of(some, every) for some in read]
    rows = stage("item side", lambda pair: _rows(version, *pair), list(zip(read, writes, strict=True)))
    ready = list(zip(writes, rows, strict=True))
    heads, buckets = packing.WriteHeads(), Buckets(256)
    stage("scripts' arguments", lambda pair: _pack(pair[0], pair[1], buckets, heads), ready)
    stage(
        "change log record",
        lambda pair: encode_rows("bench", version.layout, pair[0].keys, pair[1], Stamps(1, 2)),
        ready,
    )
    stage("without C: decode", lambda some: read_records(some, MAX_AHEAD_MS, _LIMIT_BYTES, level=Level.NUMPY), records)
    items = [[decode_item(record.value) for record in some] for some in records]
    stage("without C: features", version._items.encode, items)
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
    return list(
        plain_records(tp, PartitionRecords(tp, MemoryRecords(stored), [], 0, None, None, True, 0), lambda _: None)
    )


def _rows(version: ModelVersion, read: ItemRecords, writes: Writes) -> Any:
    assert read.columns is not None  # noqa: S101 - a benchmark of the compiled way
    return version.item_rows_of(read.columns, read.sources, writes.times, writes.offsets, now_ms())[0].rows


def _pack(writes: Writes, rows: Any, buckets: Buckets, heads: packing.WriteHeads) -> Any:
    packing.stamp_rows(writes, {"bench": rows}, 0)
    groups = packing.grouped(buckets.of_many(writes.keys))
    return packing.pack_batch(writes, {"bench": rows}, groups, heads, 0)
