"""The watch on a whole system: nearline, retrieval, two servers and the monitor on the embedded stack."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import REQUESTS
from aif_stream.domain.freshness import PROBE_ITEM, PROBE_USER
from aif_stream.embedded.process import free_ports
from aif_stream.freshness.monitor import run_monitor
from aif_stream.nearline import rollout
from aif_stream.nearline.role import serve_nearline
from aif_stream.online.role import serve_role
from aif_stream.retrieval.server import retrieval_role
from aif_stream.settings import Settings
from tests.command import aif
from tests.conftest import BrokerFactory
from tests.model_builders import make_items
from tests.nearline_builders import artefact
from tests.online_builders import Client, online_settings, running
from tests.stack import eventually, topics

ITEMS = 30


@dataclass(slots=True)
class System:
    """Everything in this process; ``servers`` are alike."""

    settings: Settings
    servers: list[Client]

    async def lag(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.settings.monitor_port}/v1/lag"
        async with self.servers[0].session.get(url) as reply:
            return orjson.loads(await reply.read()) if reply.status == 200 else {}

    async def probed(self) -> dict[str, Any]:
        """A report in which probes have been seen lately."""

        async def probe() -> dict[str, Any] | None:
            try:
                report = await self.lag()
            except aiohttp.ClientError:
                return None
            return report if report and report["probe"]["seen"] >= 2 and len(report["mirrors"]) == 2 else None

        return await eventually(probe, what="two probes were seen by two servers")


@pytest.fixture
async def system(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[System]:
    broker = await embedded_broker(topics())
    ports = free_ports(2)
    settings = online_settings(
        broker.bootstrap,
        redis_url,
        tmp_path,
        metrics_port=ports[0],
        monitor_port=ports[1],
        kafka_session_timeout_ms=1500,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        stack.callback(stop.set)
        tasks.create_task(serve_nearline(settings, stop))
        async with EventPublisher(settings, source="test") as publisher:
            assert (await publisher.items(make_items(ITEMS))).complete
        await rollout.publish_version(settings, artefact(tmp_path / "artefact"), activate=True)
        retrieval = await stack.enter_async_context(running(retrieval_role, settings))
        settings = dataclasses.replace(settings, retrieval_urls=retrieval.url)
        one = await stack.enter_async_context(running(serve_role, dataclasses.replace(settings, worker_id="one")))
        two = await stack.enter_async_context(running(serve_role, dataclasses.replace(settings, worker_id="two")))
        tasks.create_task(run_monitor(settings, stop))
        yield System(settings, [one, two])


async def test_every_server_is_found_and_probed_and_lag_is_nothing_when_nothing_moves(system: System) -> None:
    report = await system.probed()
    assert {mirror["server"] for mirror in report["mirrors"]} == {"one", "two"}
    assert 0 < report["probe"]["p50_s"] <= report["probe"]["p99_s"] < 30

    async def quiet() -> bool:
        found = await system.lag()
        if not found or found["watermark_age_s"] != 0:
            return False
        well = {each["status"] for each in (*found["partitions"], *found["mirrors"])} == {"OK"}
        return well and {m["applied_age_s"] for m in found["mirrors"]} == {0}

    await eventually(quiet, what="no lag")


async def test_the_probe_is_in_no_result_and_in_no_count(system: System) -> None:
    await system.probed()
    client = system.servers[0]
    before = (await client.get("/v1/status"))[1]["requests"]
    answer = await client.rank("1", k=1000, deadline_ms=2000)
    assert len(answer["items"]) == ITEMS
    assert PROBE_ITEM not in {item["item_id"] for item in answer["items"]}
    answer = await client.rank("1", candidates=["1", PROBE_ITEM, "2"])
    assert {item["item_id"] for item in answer["items"]} <= {"1", "2"}
    assert answer["coverage"]["candidates"] == 2
    alone = await client.rank(PROBE_USER, candidates=[PROBE_ITEM])
    assert [item["item_id"] for item in alone["items"]] == [PROBE_ITEM]
    assert alone["freshness"]["newest_event_ms"] > 0
    after = (await client.get("/v1/status"))[1]["requests"]
    assert after["total"] - before["total"] == 2
    assert await logged_users(system.settings, at_least=2) == ["1", "1"]


async def test_aif_lag_prints_the_monitors_report_and_exits_3_beyond_the_limit(system: System) -> None:
    await system.probed()
    code, out, _ = await aif(system.settings, "lag", "--json", "--max", "20")
    report = orjson.loads(out)
    assert code == 0
    assert report["by"] == "aif monitor"
    assert report["probe"]["last_s"] > 0
    code, *_ = await aif(system.settings, "lag", "--max", "0")
    assert code == 3
    code, table, _ = await aif(system.settings, "lag")
    assert code == 0
    assert "an update matters after" in table.decode()


async def logged_users(settings: Settings, *, at_least: int) -> list[str]:
    """Whose requests are in the request log, as soon as there are so many."""
    async with LogReader(settings, REQUESTS) as reader:
        users: list[str] = []

        async def enough() -> bool:
            users.extend((record.key or b"").decode() for record in await reader.poll())
            return len(users) >= at_least

        await eventually(enough, what=f"{at_least} requests are in the log")
        return users
