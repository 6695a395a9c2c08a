"""``aif lag`` without a monitor, and the leases that tell who is there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson

from aif_stream.bus.publisher import EventPublisher
from aif_stream.index.connection import open_redis
from aif_stream.index.leases import SERVE, LeaseBook, keep_lease, process_id
from tests.command import aif
from tests.conftest import BrokerFactory
from tests.nearline_builders import nearline_settings
from tests.stack import eventually, topics


async def test_lag_looks_for_itself_when_no_monitor_runs_and_names_what_nobody_reads(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = nearline_settings(broker.bootstrap, redis_url, tmp_path)
    async with EventPublisher(settings, source="test") as publisher:
        await (await publisher.item("7", category="tea"))
    code, out, _ = await aif(settings, "lag", "--json")
    report = orjson.loads(out)
    assert code == 0
    assert report["by"] == "aif lag"
    assert report["probe"]["last_s"] is None
    assert {part["status"] for part in report["partitions"]} == {"STOP"}
    (behind,) = [part for part in report["partitions"] if part["lag_records"]]
    assert (behind["position"], behind["end"], behind["reason"]) == (0, 1, "no consumer, and there never was one")
    assert behind["lag_s"] > 0
    assert report["watermark_age_s"] == behind["lag_s"]
    code, *_ = await aif(settings, "lag", "--json", "--max", "0.001")
    assert code == 3


async def test_lag_is_told_without_redis_and_nobody_is_called_gone_who_cannot_be_known(
    embedded_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = nearline_settings(broker.bootstrap, "redis://127.0.0.1:1/0", tmp_path)
    code, out, _ = await aif(settings, "lag", "--json")
    assert code == 0
    assert {part["status"] for part in orjson.loads(out)["partitions"]} == {"OK"}


async def test_a_lease_lives_while_it_is_kept_lapses_when_it_is_not_and_goes_with_a_clean_stop(redis_url: str) -> None:
    settings = nearline_settings("127.0.0.1:1", redis_url, Path())
    async with open_redis(settings) as redis:
        book = LeaseBook(redis)
        await book.put(SERVE, "died", {"url": "http://x"})
        keeping = asyncio.create_task(keep_lease(settings, SERVE, lambda: {"rows": 3}))

        async def lapsed() -> bool:
            return {lease.id: lease.alive for lease in await book.read(SERVE)} == {
                "died": False,
                process_id(settings): True,
            }

        await eventually(lapsed, what="the lease that nobody renews has lapsed and the other has not")
        (kept,) = [lease for lease in await book.read(SERVE) if lease.alive]
        assert kept.facts == {"rows": 3}
        keeping.cancel()
        await asyncio.wait([keeping])
        assert [lease.id for lease in await book.read(SERVE)] == ["died"]
        await book.drop(SERVE, "died")
        assert await book.read(SERVE) == []
