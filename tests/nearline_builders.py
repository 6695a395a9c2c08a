"""What tests of the nearline role share: settings on servers, a worker inside the test, lines that go in."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aif_stream.bus import admin
from aif_stream.bus.consumer import Record
from aif_stream.bus.events import event_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, USER_UPDATES, load_topics
from aif_stream.domain.events import EventType, decode_item
from aif_stream.domain.ids import key_of
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import save
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.nearline.app import Nearline, open_nearline
from aif_stream.settings import Settings
from tests.model_builders import small_version
from tests.stack import eventually

# Few: a test of the lanes gains nothing from a thousand buckets, and scanning them takes time.
BUCKETS = 8
T0_MS = 1_700_000_000_000


def nearline_settings(
    bootstrap: str, redis_url: str, home: Path, *, prefix: str = "", session_timeout_ms: int = 1500, **more: Any
) -> Settings:
    """Settings of a worker on the test's servers."""
    return dataclasses.replace(
        Settings(),
        home=home,
        models_dir=home / "models",
        kafka_bootstrap=bootstrap,
        redis_url=redis_url,
        topic_prefix=prefix,
        index_buckets=BUCKETS,
        metrics_port=0,
        kafka_session_timeout_ms=session_timeout_ms,
        **more,
    )


async def kafka_settings(
    kafka: KafkaCluster, redis_url: str, home: Path, prefix: str, *, most_partitions: int | None = None, **more: Any
) -> Settings:
    """Settings of workers on Apache Kafka, whose topics are there now, of few partitions where that is enough."""
    # The least session timeout that a broker allows by default: workers under load keep it, dead members leave soon.
    settings = nearline_settings(kafka.bootstrap, redis_url, home, prefix=prefix, session_timeout_ms=6000, **more)
    specs = load_topics()
    if most_partitions is not None:
        for name, spec in specs.items():
            specs[name] = dataclasses.replace(spec, partitions=min(spec.partitions, most_partitions))
    await admin.apply(settings, specs)
    return settings


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[Nearline]:
    """A nearline worker in this process; at the end it is stopped cleanly, and what it died of is raised."""
    stop = asyncio.Event()
    async with open_nearline(settings) as nearline:
        running = asyncio.create_task(nearline.run(stop))

        async def ready() -> bool:
            if running.done():
                running.result()
            return not nearline.reasons()

        try:
            await eventually(ready, what="the worker has joined its groups")
            yield nearline
        finally:
            stop.set()
            await running


def artefact(directory: Path, model: ModelVersion | None = None) -> Path:
    """A small version on disk."""
    save(directory, model or small_version())
    return directory


def item_line(item_id: str, **more: Any) -> bytes:
    return json.dumps({"item_id": item_id, "category": "tea", "attributes": {"price": 3.5}, **more}).encode()


class Events:
    """Puts records on the source topics, waiting for each acknowledgement."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def item(self, item_id: str, time_ms: int, value: bytes | None = None, **more: Any) -> int:
        """An upsert; ``value`` replaces the line. Returns the offset."""
        line = value if value is not None else item_line(item_id, **more)
        return await self._send(ITEM_UPDATES, item_id, line, EventType.ITEM_UPSERTED, time_ms)

    async def removal(self, item_id: str, time_ms: int) -> int:
        return await self._send(ITEM_UPDATES, item_id, None, EventType.ITEM_REMOVED, time_ms)

    async def user(self, user_id: str, time_ms: int, attributes: Mapping[str, Any]) -> int:
        line = json.dumps({"user_id": user_id, "attributes": attributes}).encode()
        return await self._send(USER_UPDATES, user_id, line, EventType.USER_UPSERTED, time_ms)

    async def behavior(self, user_id: str, item_id: str, time_ms: int, kind: str = "click") -> int:
        line = json.dumps({"user_id": user_id, "item_id": item_id, "kind": kind}).encode()
        return await self._send(BEHAVIORS, user_id, line, EventType.BEHAVIOR, time_ms)

    async def raw(self, topic: str, key: bytes, value: bytes, headers: Iterable[tuple[str, bytes]] = ()) -> int:
        """Anything at all."""
        return (await (await self._producer.send(topic, key, value, list(headers)))).offset

    async def _send(self, topic: str, key: str, value: bytes | None, kind: EventType, time_ms: int) -> int:
        headers = event_headers(kind, str(uuid.uuid4()), "test", time_ms)
        return (await (await self._producer.send(topic, key.encode(), value, headers))).offset


@asynccontextmanager
async def events(settings: Settings) -> AsyncIterator[Events]:
    async with Producer(settings, "test") as producer:
        yield Events(producer)


@dataclass(slots=True)
class Stack:
    """Open connections beside a worker, and questions about what it did."""

    settings: Settings
    redis: Redis
    store: N2OStore
    put: Events
    model: ModelVersion

    async def items(self, *names: str) -> list[StoredItem | None]:
        return await self.store.read_items([key_of(name) for name in names])

    async def has(self, name: str, time_ms: int, offset: int | None = None) -> StoredItem:
        """Wait until the item is stored with this event time (and offset)."""

        async def there() -> StoredItem | None:
            (item,) = await self.items(name)
            if item is None or item.order.event_time_ms != time_ms or offset not in (None, item.order.offset):
                return None
            return item

        return await eventually(there, what=f"item {name} of {time_ms}/{offset} is in Redis")

    async def publish_model(self, home: Path) -> None:
        await rollout.publish_version(self.settings, artefact(home / "artefact", self.model), activate=True)

    async def check_row(self, name: str, line: bytes, time_ms: int) -> None:
        """The stored row is the item side of ``line``, but for when it was computed."""
        rows, found = await self.store.read_rows(
            self.model.name, self.model.layout, np.array([key_of(name)], dtype=np.uint64)
        )
        assert found[0]
        order = np.array([int(rows["offset"][0])], dtype=np.uint64)
        expected, _ = self.model.item_rows([decode_item(line)], np.array([time_ms], dtype=np.uint64), order, 0)
        expected["computed_ms"] = rows["computed_ms"]
        assert rows.tobytes() == expected.tobytes()

    async def topic(self, topic: str, at_least: int) -> list[Record]:
        """Records of a topic, as soon as it has this many."""
        async with LogReader(self.settings, topic) as reader:
            records: list[Record] = []

            async def enough() -> bool:
                records.extend(await reader.poll())
                return len(records) >= at_least

            await eventually(enough, what=f"{at_least} records in {topic}")
            return records


@asynccontextmanager
async def open_stack(settings: Settings) -> AsyncIterator[Stack]:
    async with open_redis(settings) as redis, events(settings) as put:
        yield Stack(settings, redis, N2OStore(redis, Buckets(BUCKETS)), put, small_version())
