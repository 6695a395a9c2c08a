"""The compacted topic alone rebuilds the index: an empty Redis and what the log cleaner left over give the same one."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from aif_stream.bus import admin
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import NEARLINE_SOURCE
from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.producer import Ack
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES, load_topics
from aif_stream.bus.watch import GroupWatch
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.settings import Settings
from drills.stack import start_worker
from tests.model_builders import CONTENT_WIDTH, small_version
from tests.nearline_builders import BUCKETS, T0_MS, artefact, nearline_settings
from tests.stack import eventually

ITEMS = 150
EVENTS = 3000
PARTITIONS = 2

# What the cleaner needs to work within seconds. Tombstones stay (the contract's seven days), as in production: a
# rebuild must know of a removal. A segment is closed by the first record that comes 200 ms after its first one.
QUICK_COMPACTION = {
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "1000",
}


class Index(NamedTuple):
    """All of it: items (payload, id, order, removed) and rows, whose bytes are without the time of computing."""

    items: dict[int, StoredItem]
    rows: dict[int, bytes]


class State(NamedTuple):
    event_time_ms: int
    removed: bool


async def test_the_index_rebuilt_from_the_compacted_topic_alone_equals_it_late_events_included(
    kafka_cluster: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    """Equal is: the same items and the same rows, byte for byte, but for ``computed_ms`` (when a row was computed).

    The offset of an order is equal too: a winner that is published again carries the offset that it had first, and the
    last record of a key is the one that compaction keeps.
    """
    model = small_version()
    async with EmbeddedRedis() as first, EmbeddedRedis() as second:
        settings = nearline_settings(
            kafka_cluster.bootstrap, first.url, tmp_path, prefix=topic_prefix, session_timeout_ms=6000
        )
        await _create_topics(settings)
        async with _worker(settings, tmp_path / "first.log") as process:
            await rollout.publish_version(settings, artefact(tmp_path / "artefact", model), activate=True)
            async with EventPublisher(settings, source="test") as publisher:
                truth, published = await _publish_random_events(publisher)
                await _caught_up(settings, process)
                left = await _compacted(settings, publisher, truth)
                await _caught_up(settings, process)
            sources = Counter(dict(record.headers)["ce_source"] for record in left)
            before = await _dump(settings, model)

        assert published > EVENTS, "duplicates were sent"
        once = [record for record in left if b"closer" not in (record.key or b"")]
        assert len(once) == ITEMS < published / 10, f"{len(once)} of {published} records are left"
        assert sources[NEARLINE_SOURCE.encode()] > ITEMS / 20, "late events were answered by winners, published again"
        assert {item.id_text: State(item.order.event_time_ms, item.removed) for item in before.items.values()} == truth
        assert any(state.removed for state in truth.values())
        assert len(before.rows) == len(truth)

        elsewhere = dataclasses.replace(settings, redis_url=second.url)
        ends = await _ends(settings)
        async with _worker(elsewhere, tmp_path / "second.log") as process:
            await eventually(lambda: _holds(elsewhere, len(truth)), what="the items are in the second Redis")
            await _caught_up(elsewhere, process)
            after = await _dump(elsewhere, model)
        assert after == before
        assert await _ends(settings) == ends, "each key's last record is its winner: nothing had to be published again"


async def _create_topics(settings: Settings) -> None:
    specs = load_topics()
    items = specs[ITEM_UPDATES]
    specs[ITEM_UPDATES] = dataclasses.replace(items, partitions=PARTITIONS, config={**items.config, **QUICK_COMPACTION})
    await admin.apply(settings, specs)


@asynccontextmanager
async def _worker(settings: Settings, log: Path) -> AsyncIterator[ServerProcess]:
    """``aif nearline`` as a process, ended in order."""
    process = start_worker(settings, log)
    try:
        yield process
        await process.stop(30)
    finally:
        await process.kill9()


async def _publish_random_events(publisher: EventPublisher) -> tuple[dict[str, State], int]:
    """Updates and removals, a fifth of them late, some twice, half of the ids hashed; what must hold in the end."""
    chance = random.Random(11)
    truth: dict[str, State] = {}
    acks: list[Ack] = []
    for _ in range(EVENTS):
        number = chance.randrange(ITEMS)
        item = str(number) if number % 2 else f"sku-{number}"
        known = truth.get(item)
        time_ms = known.event_time_ms + chance.randrange(1, 60) if known else T0_MS
        if known and chance.random() < 0.2:
            # Odd distances back: never the time of another event, which the offset would decide.
            time_ms = T0_MS - chance.randrange(10**9)
        removed = chance.random() < 0.15
        for _ in range(2 if chance.random() < 0.1 else 1):
            acks.append(await _publish(publisher, chance, item, time_ms, removed=removed))
        if known is None or time_ms > known.event_time_ms:
            truth[item] = State(time_ms, removed)
    for ack in acks:
        await ack
    return truth, len(acks)


async def _publish(publisher: EventPublisher, chance: random.Random, item: str, time_ms: int, *, removed: bool) -> Ack:
    if removed:
        return await publisher.remove(item, event_time_ms=time_ms)
    vector = [round(chance.gauss(0, 1), 3) for _ in range(CONTENT_WIDTH)] if chance.random() < 0.8 else None
    return await publisher.item(
        item,
        category=chance.choice(("tea", "books", "lamps", "other")),
        attributes={"brand": chance.choice(("ada", "bob", "eve")), "price": round(chance.uniform(1, 50), 2)},
        content_vector=vector,
        event_time_ms=time_ms,
    )


async def _caught_up(settings: Settings, process: ServerProcess) -> None:
    """Everything is committed, winners published again included: they are acknowledged before the late event is."""
    async with GroupWatch(settings, ITEMS_GROUP, [ITEM_UPDATES]) as watch:

        async def nothing_left() -> bool:
            assert process.running, process.log.read_text()[-3000:]
            standing = (await watch.standing()).values()
            return all(s.committed is not None and s.lag_records == 0 for s in standing)

        await eventually(nothing_left, what="the worker has committed every record")


async def _compacted(settings: Settings, publisher: EventPublisher, truth: dict[str, State]) -> list[Record]:
    """Wait for the log cleaner; returns every record that is left: one per key, but for those of the active segments.

    The cleaner leaves the active segment alone, and a segment is closed by the first record that comes after its time:
    here by updates of one more item per partition.
    """
    left: list[Record] = []
    closers: dict[int, str] = {}

    async def close_segments() -> None:
        for name in closers.values() if len(closers) == PARTITIONS else (f"closer-{n}" for n in range(8)):
            known = truth.get(name, State(T0_MS, removed=False))
            truth[name] = State(known.event_time_ms + 1, removed=False)
            ack = await publisher.item(name, category="tea", event_time_ms=truth[name].event_time_ms)
            closers[(await ack).partition] = name

    async def once_per_key() -> bool:
        await close_segments()
        left[:] = await _read_all(settings)
        counts = Counter((record.key or b"").decode() for record in left)
        return all(count == 1 for key, count in counts.items() if not key.startswith("closer-"))

    await eventually(once_per_key, what="the topic has one record per key", within_s=120)
    return left


async def _read_all(settings: Settings) -> list[Record]:
    async with LogReader(settings, ITEM_UPDATES) as reader:
        ends = await reader.end_offsets()
        records: list[Record] = []
        while not await reader.caught_up(ends):
            records.extend(await reader.poll())
        return records


async def _ends(settings: Settings) -> dict[int, int]:
    async with LogReader(settings, ITEM_UPDATES) as reader:
        return await reader.end_offsets()


async def _holds(settings: Settings, items: int) -> bool:
    return len((await _dump(settings, None)).items) == items


async def _dump(settings: Settings, model: ModelVersion | None) -> Index:
    """What Redis holds, bucket by bucket; rows when there is a model to read them with."""
    found = Index({}, {})
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(BUCKETS))
        for bucket in range(BUCKETS):
            async for items in store.scan_items(bucket):
                # When a tombstone was written is the writer's clock, not the event's.
                found.items.update((item.key, dataclasses.replace(item, removed_ms=None)) for item in items)
            if model is not None:
                async for keys, stored in store.scan_rows(bucket, model.name, model.layout):
                    rows = stored.copy()
                    rows["computed_ms"] = 0
                    found.rows.update((key, row.tobytes()) for key, row in zip(keys.tolist(), rows, strict=True))
    return found
