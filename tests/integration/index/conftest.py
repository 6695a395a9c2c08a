"""A store on the session's Redis, emptied for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings
from tests.index_builders import NOW_MS


@pytest_asyncio.fixture(loop_scope="session")
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(Settings(redis_url=redis_url)) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def store(redis: Redis) -> N2OStore:
    return N2OStore(redis, Buckets(16), clock=lambda: NOW_MS)
