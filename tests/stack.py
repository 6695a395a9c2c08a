"""What tests need around the servers: unique names, and waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from aif_stream.bus.topics import load_topics, partition_counts
from aif_stream.embedded.kafka import KafkaJars, missing_tools
from aif_stream.errors import EmbeddedError

T = TypeVar("T")


def unique_prefix() -> str:
    """A topic prefix that no other test uses, so that tests share one broker."""
    return f"t{uuid.uuid4().hex[:10]}."


def topics(prefix: str = "") -> dict[str, int]:
    """Names and partitions of every contract, for an embedded broker."""
    return partition_counts(load_topics(), prefix)


async def eventually(probe: Callable[[], Awaitable[T | None]], *, what: str, within_s: float = 60.0) -> T:
    """Asks ``probe`` until it gives something truthy and returns that; fails the test, naming ``what``, otherwise."""
    end_s = time.monotonic() + within_s
    while True:
        result = await probe()
        if result:
            return result
        if time.monotonic() > end_s:
            pytest.fail(f"not within {within_s:.0f} s: {what}; last seen: {result!r}")
        await asyncio.sleep(0.02)


async def kafka_jars_or_skip() -> KafkaJars:
    """The broker's jars; skips with the reason, or fails when AIF_REQUIRE_KAFKA=1 forbids skipping."""
    home = os.environ.get("AIF_TEST_KAFKA_HOME")
    try:
        missing = await missing_tools(maven=home is None)
        if missing:
            raise EmbeddedError(
                f"no real Kafka: {missing}", mend="install Java 17 and Maven, or set AIF_TEST_KAFKA_HOME"
            )
    except EmbeddedError as error:
        if os.environ.get("AIF_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return KafkaJars.from_home(Path(home)) if home else await KafkaJars.fetch()
