"""An explanation worker one of whose parts dies ends with its cause."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aif_stream.embedded.process import free_ports
from aif_stream.explain import worker
from aif_stream.explain.role import serve_explain
from tests.conftest import BrokerFactory
from tests.online_builders import online_settings
from tests.stack import eventually, topics


async def test_dead_part_ends_the_worker_and_fails_livez(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, told, closing = await embedded_broker(topics()), [], asyncio.Event()
    consumer_type = worker.GroupConsumer

    class SlowToLeave(consumer_type):  # type: ignore[misc,valid-type]
        """Leaves its group only when the test has asked /livez."""

        async def __aexit__(self, *_: Any) -> None:
            await closing.wait()
            await super().__aexit__(None, None, None)

        async def poll(self, *_: Any) -> Any:
            raise ZeroDivisionError("planted")

    monkeypatch.setattr(worker, "GroupConsumer", SlowToLeave)
    settings = dataclasses.replace(
        online_settings(broker.bootstrap, redis_url, tmp_path, kafka_session_timeout_ms=1500),
        explain_nice=0,
        explain_port=free_ports(1)[0],
    )
    stop = asyncio.Event()
    running = asyncio.create_task(serve_explain(settings, stop))
    async with aiohttp.ClientSession() as http:

        async def fails() -> bool:
            try:
                async with http.get(f"http://127.0.0.1:{settings.explain_port}/livez") as reply:
                    told.append(await reply.text())
                    return reply.status == 503
            except aiohttp.ClientError:
                return False

        await eventually(fails, what="/livez fails")
    assert "ZeroDivisionError: planted" in told[-1]
    assert stop.is_set()
    closing.set()
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(running, 60)
    assert "planted" in repr(caught.value)
