"""A broker of the test's own, with every topic of the contracts under a prefix."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio

from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.settings import Settings
from tests.stack import topics

PREFIX = "t."


@dataclass(frozen=True)
class Bus:
    settings: Settings
    broker: EmbeddedBroker


@pytest_asyncio.fixture(loop_scope="session")
async def bus() -> AsyncIterator[Bus]:
    partitions = topics(PREFIX)
    async with EmbeddedBroker(partitions) as broker:
        # The embedded broker's group joins take the session timeout less 1 s.
        settings = Settings(kafka_bootstrap=broker.bootstrap, topic_prefix=PREFIX, kafka_session_timeout_ms=1500)
        yield Bus(settings, broker)
