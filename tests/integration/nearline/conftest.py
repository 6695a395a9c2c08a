"""A worker's servers, and questions about what it did."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import BrokerFactory
from tests.nearline_builders import Stack, nearline_settings, open_stack
from tests.stack import topics


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    """The role changes the garbage collector's thresholds."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.fixture
async def stack(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    broker = await embedded_broker(topics())
    async with open_stack(nearline_settings(broker.bootstrap, redis_url, tmp_path)) as made:
        yield made
