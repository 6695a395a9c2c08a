"""A serving stack with an explanation worker beside it, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio

from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.explain.worker import ExplainWorker, open_worker
from aif_stream.model.version import ModelVersion
from aif_stream.online.role import serve_role
from aif_stream.settings import Settings
from tests.model_builders import make_items, small_version
from tests.online_builders import Client, Index, activate, online_settings, open_index, running
from tests.stack import eventually, topics

IDS = [str(i) for i in range(40)]
FINAL = ("complete", "failed", "cancelled", "expired")


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[ExplainWorker]:
    """An explanation worker until the context ends; then it hands back what it has not done."""
    stop = asyncio.Event()
    async with open_worker(settings) as (opened, _):
        running_ = asyncio.create_task(opened.run(stop))
        try:
            yield opened
        finally:
            stop.set()
            await running_


@dataclass(frozen=True, slots=True)
class Stack:
    settings: Settings
    model: ModelVersion
    index: Index
    client: Client

    async def ask(self, request_id: str, item_id: str, **more: Any) -> dict[str, Any]:
        """Accepted (202)."""
        status, body = await self.client.post(
            "/v1/explanations", {"request_id": request_id, "item_id": item_id, **more}
        )
        assert status == 202, body
        assert isinstance(body, dict)
        return body

    async def look(self, name: str) -> dict[str, Any]:
        status, body = await self.client.get(f"/v1/explanations/{name}")
        assert status == 200, body
        assert isinstance(body, dict)
        return body

    async def ended(self, name: str, within_s: float = 60.0) -> dict[str, Any]:
        """The explanation once it is in a final state."""

        async def final() -> dict[str, Any] | None:
            found = await self.look(name)
            return found if found["state"] in FINAL else None

        return await eventually(final, what=f"{name} ends", within_s=within_s)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Stack]:
    """40 items, a user with a history and a profile, one server."""
    model = small_version()
    async with open_index(settings, [model.name]) as index:
        await index.put(model, make_items(40))
        await index.click("ann", IDS[:12])
        await index.profile("ann", {"city": "oslo", "age": 31})
        await activate(settings, model, 1)
        async with running(serve_role, settings) as client:
            yield Stack(settings, model, index, client)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(tmp_path_factory: Any) -> AsyncIterator[Stack]:
    """One stack for the tests of a module; explanations are told apart by their requests."""
    home: Path = tmp_path_factory.mktemp("explain")
    async with EmbeddedBroker(topics()) as broker, EmbeddedRedis() as redis:
        settings = online_settings(
            broker.bootstrap,
            redis.url,
            home,
            retrieval_urls="http://127.0.0.1:9",
            kafka_session_timeout_ms=1500,
            explain_client_rate=1000.0,
        )
        async with serving(settings) as opened:
            yield opened


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers of one index, and the Redis that they share."""

    first: Stack
    second: Client
    redis: EmbeddedRedis


@asynccontextmanager
async def open_pair(home: Path, **more: Any) -> AsyncIterator[Pair]:
    async with EmbeddedBroker(topics()) as broker, EmbeddedRedis() as redis:
        settings = online_settings(
            broker.bootstrap,
            redis.url,
            home,
            retrieval_urls="http://127.0.0.1:9",
            kafka_session_timeout_ms=1500,
            explain_client_rate=1000.0,
        )
        settings = dataclasses.replace(settings, **more)
        async with serving(settings) as first, running(serve_role, settings) as second:
            yield Pair(first, second, redis)


async def recorded(client: Client, name: str) -> None:
    """Wait until the record is in Redis: another server then knows what it is of."""

    async def known() -> bool:
        _, found = await client.get(f"/v1/explanations/{name}")
        return found.get("item_id") is not None

    await eventually(known, what=f"{name} is recorded")
