"""Servers for the tests: one Redis (flushed for each test) and one Kafka (topic prefixes) per session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import redis.asyncio

from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.kafka import KafkaCluster, KafkaJars
from aif_stream.embedded.redis import EmbeddedRedis
from tests.browser import open_browser
from tests.stack import kafka_jars_or_skip, unique_prefix

if TYPE_CHECKING:
    from playwright.async_api import Browser

BrokerFactory = Callable[[Mapping[str, int]], Awaitable[EmbeddedBroker]]


@pytest.fixture
def topic_prefix() -> str:
    """Put it before every topic and group name of the test."""
    return unique_prefix()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_server() -> AsyncIterator[EmbeddedRedis]:
    """The session's Redis. A test that kills or stops it takes an EmbeddedRedis of its own instead."""
    async with EmbeddedRedis() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def redis_url(redis_server: EmbeddedRedis) -> str:
    """The session's Redis, empty, without scripts."""
    async with redis.asyncio.from_url(redis_server.url) as client:
        await client.flushall()
        await client.script_flush()
    return redis_server.url


@pytest_asyncio.fixture(loop_scope="session")
async def embedded_broker() -> AsyncIterator[BrokerFactory]:
    """``broker = await embedded_broker({"topic": partitions})``: a broker of the test's own, closed after it."""
    async with AsyncExitStack() as stack:

        async def make(topics: Mapping[str, int]) -> EmbeddedBroker:
            return await stack.enter_async_context(EmbeddedBroker(topics))

        yield make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka_jars() -> KafkaJars:
    return await kafka_jars_or_skip()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka_cluster(kafka_jars: KafkaJars, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaCluster]:
    """One node of Apache Kafka for the session; tests keep apart by ``topic_prefix`` and do not stop it."""
    async with KafkaCluster(1, kafka_jars, tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka_trio(kafka_jars: KafkaJars, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaCluster]:
    """Three nodes for the session. A test that kills one starts it again before it ends."""
    async with KafkaCluster(3, kafka_jars, tmp_path_factory.mktemp("kafka-trio")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The session's Chromium; ``tests.browser.open_page`` gives each test a page of its own."""
    async with open_browser() as opened:
        yield opened
