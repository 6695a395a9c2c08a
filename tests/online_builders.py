"""A serving stack for tests: index filled directly, a published model, both HTTP roles in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from numpy.typing import ArrayLike

from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.bus.versions import publish_version
from aif_stream.clock import now_ms
from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.ids import Keys, canonical_id, key_of
from aif_stream.domain.order import Order
from aif_stream.domain.row import Rows
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.index.changelog import Stamps, encode_rows
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import manifest_sha256, save
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings
from tests.model_builders import small_config
from tests.precision import score_bound
from tests.stack import eventually

T0_MS = 1_700_000_000_000
BUCKETS = 8
Role = Callable[[Settings, asyncio.Event], AbstractAsyncContextManager[str]]


def online_settings(bootstrap: str, redis_url: str, home: Path, **more: Any) -> Settings:
    """Settings of both roles on the test's servers; ports are free ones."""
    patient = {"deadline_ms": 10_000.0, "retrieval_budget_ms": 5_000.0, **more}
    return dataclasses.replace(
        Settings(),
        home=home,
        models_dir=home / "models",
        kafka_bootstrap=bootstrap,
        redis_url=redis_url,
        redis_timeout_s=2.0,
        index_buckets=BUCKETS,
        serve_port=0,
        retrieval_port=0,
        **patient,
    )


@dataclass(frozen=True, slots=True)
class Written:
    """Rows (n) that Redis has, by key: what the change log would carry."""

    model: ModelVersion
    keys: Keys
    rows: Rows


async def tell_mirrors(settings: Settings, written: Written) -> None:
    """One record of the change log."""
    model = written.model
    stamps = Stamps(now_ms(), now_ms())
    headers, value = encode_rows(model.name, model.layout, written.keys, written.rows, stamps)
    async with Producer(settings, "test-rows") as producer:
        await (await producer.send(N2O_ROWS, None, value, headers))


@dataclass(frozen=True, slots=True)
class Index:
    """What nearline would have written, written directly."""

    store: N2OStore
    histories: HistoryStore

    async def put(
        self, model: ModelVersion, items: Sequence[ItemUpserted], *, time_ms: int = T0_MS, computed_ms: int = 0
    ) -> Written:
        """Items with features and the model's rows."""
        return (await self.put_of_all([model], items, time_ms=time_ms, computed_ms=computed_ms))[0]

    async def put_of_all(
        self,
        models: Sequence[ModelVersion],
        items: Sequence[ItemUpserted],
        *,
        time_ms: int = T0_MS,
        computed_ms: int = 0,
    ) -> list[Written]:
        """Items with features and the rows of every model."""
        batch = [
            ItemWrite(item.key, canonical_id(item.item_id, "item_id"), Order(time_ms, i), msgspec.json.encode(item))
            for i, item in enumerate(items)
        ]
        orders = np.array([write.order for write in batch], np.uint64)
        now = computed_ms or now_ms()
        rows = {model.name: model.item_rows(items, orders[:, 0], orders[:, 1], now).rows for model in models}
        await self.store.write_live(batch, rows)
        keys = np.array([item.key for item in items], np.uint64)
        return [Written(model, keys, rows[model.name]) for model in models]

    async def put_features(self, items: Sequence[ItemUpserted]) -> None:
        """Features without rows of any version (the versions' names must not be listed yet)."""
        await self.store.write_live(
            [
                ItemWrite(item.key, canonical_id(item.item_id, "item_id"), Order(T0_MS, 0), msgspec.json.encode(item))
                for item in items
            ],
            {},
        )

    async def remove(self, model: ModelVersion, item_id: str, *, time_ms: int) -> Written:
        """A tombstone."""
        write = ItemWrite(key_of(item_id), item_id, Order(time_ms, 0), None)
        rows = np.zeros(1, model.layout.dtype)
        await self.store.write_live([write], {model.name: rows})
        return Written(model, np.array([write.key], np.uint64), rows)

    async def click(self, user_id: str, item_ids: Sequence[str]) -> None:
        """A history of clicks, a minute apart, in this order."""
        entries = (entry_bytes(key_of(item), BehaviorKind.CLICK, T0_MS + 60_000 * i) for i, item in enumerate(item_ids))
        await self.histories.append({key_of(user_id): b"".join(entries)})

    async def profile(self, user_id: str, attributes: Mapping[str, Any]) -> None:
        payload = msgspec.json.encode({"user_id": user_id, "attributes": attributes})
        await self.histories.write_profile(key_of(user_id), Order(T0_MS, 0), payload)


@asynccontextmanager
async def open_index(settings: Settings, versions: Sequence[str]) -> AsyncIterator[Index]:
    """The index of the settings' Redis, with these versions listed."""
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        for version in versions:
            await store.add_version(version)
        yield Index(store, HistoryStore(redis, settings.history_long))


async def activate(settings: Settings, model: ModelVersion, number: int, replaces: str | None = None) -> None:
    """Save the artefact and publish it as the active version."""
    await announce(settings, model, VersionState.ACTIVE, number, replaces=replaces)


async def announce(
    settings: Settings, model: ModelVersion, state: VersionState, number: int = 0, **more: Any
) -> VersionRecord:
    """Save the artefact and publish a record of it."""
    directory = settings.models_dir / model.name
    if not directory.exists():
        await asyncio.to_thread(save, directory, model)
    record = VersionRecord(
        version=model.name,
        state=state,
        artefact=str(directory),
        manifest_sha256=manifest_sha256(directory),
        created_ms=T0_MS + int.from_bytes(model.name.encode()[-1:], "big"),  # v2 is newer than v1
        activation=number,
        **more,
    )
    async with Producer(settings, "test-versions") as producer:
        await publish_version(producer, record)
    return record


async def publish(
    settings: Settings, items: Sequence[ItemUpserted], clicks: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Items and clicks as events on the topics (what retrieval reads)."""
    lines = [
        msgspec.json.encode({"user_id": user, "item_id": item, "kind": "click", "event_time_ms": T0_MS + i})
        for user, touched in (clicks or {}).items()
        for i, item in enumerate(touched)
    ]
    async with EventPublisher(settings, source="test") as publisher:
        summary = await publisher.items(items)
        assert summary.complete, summary
        summary = await publisher.publish_lines("behaviors", lines)
        assert summary.complete, summary


def same_items(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """The same scores for the same items (a sum in another batch may differ in its last bit)."""
    left, right = ({item["item_id"]: item["score"] for item in answer["items"]} for answer in (a, b))
    return left.keys() == right.keys() and close_scores([left[i] for i in right], list(right.values()))


def close_scores(found: Sequence[float], expected: ArrayLike) -> bool:
    """Whether scores of a small model are the same but for the order of their sums."""
    return bool(np.allclose(found, expected, rtol=0, atol=score_bound(small_config(), expected)))


class Client:
    """JSON over HTTP with the status beside it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as reply:
            return reply.status, await reply.json(content_type=None)

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as reply:
            return reply.status, await reply.json(content_type=None)

    async def rank(self, user_id: str, **more: Any) -> dict[str, Any]:
        """An answer; anything else than 200 fails the test."""
        status, answer = await self.post("/v1/rank", {"user_id": user_id, **more})
        assert status == 200, answer
        assert isinstance(answer, dict)
        return answer

    async def ready(self) -> None:
        async def probe() -> bool:
            return (await self.get("/readyz"))[0] == 200

        await eventually(probe, what=f"{self.url} is ready")


@asynccontextmanager
async def running(role: Role, settings: Settings, *, ready: bool = True) -> AsyncIterator[Client]:
    """A role in this process, ready unless told otherwise; stopped cleanly at the end."""
    stop = asyncio.Event()
    async with role(settings, stop) as url, aiohttp.ClientSession() as session:
        client = Client(session, url)
        if ready:
            await client.ready()
        yield client
