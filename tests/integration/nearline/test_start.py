"""A worker that is started before its stores waits for them and says so; a refusal ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import IndexRefused
from aif_stream.nearline.role import serve_nearline
from tests.conftest import BrokerFactory
from tests.nearline_builders import nearline_settings
from tests.stack import eventually, topics


async def test_a_worker_started_before_redis_waits_for_it(
    embedded_broker: BrokerFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broker = await embedded_broker(topics())
    stop = asyncio.Event()
    async with EmbeddedRedis(tmp_path / "redis") as redis:
        await redis.kill9()
        running = asyncio.create_task(serve_nearline(nearline_settings(broker.bootstrap, redis.url, tmp_path), stop))

        async def said(event: str) -> bool:
            return running.done() or event in caplog.text

        await eventually(lambda: said('waiting what="start of the worker"'), what="it says that it waits")
        assert not running.done()
        await redis.start()
        await eventually(lambda: said("nearline.started"), what="it goes on")
        stop.set()
        await running


async def test_a_worker_that_is_stopped_while_it_waits_ends_in_order(
    embedded_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    stop = asyncio.Event()
    stop.set()
    await serve_nearline(nearline_settings(broker.bootstrap, "redis://127.0.0.1:1/0", tmp_path), stop)


async def test_a_refusal_is_not_waited_for(embedded_broker: BrokerFactory, tmp_path: Path) -> None:
    broker = await embedded_broker(topics())
    async with EmbeddedRedis(tmp_path / "redis") as redis:
        wrong = redis.url.replace("redis://", "redis://nobody:secret@")
        with pytest.raises(IndexRefused):
            await serve_nearline(nearline_settings(broker.bootstrap, wrong, tmp_path), asyncio.Event())
