"""One Redis for the properties; each example empties it itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import Redis, open_redis
from aif_stream.settings import Settings


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with open_redis(Settings(redis_url=redis_server.url)) as opened:
        yield opened
