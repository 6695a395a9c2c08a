"""The request log, from an answer to a line: written beside the answer, counted when it cannot be."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from aif_stream.bus.request_log import RequestLogWriter, read_requests
from aif_stream.clock import now_ms
from aif_stream.domain.request_log import LoggedRequest
from aif_stream.online.role import serve_role
from aif_stream.replay.export import export_requests
from aif_stream.replay.lines import read_lines
from aif_stream.settings import Settings
from aif_stream.telemetry import REQUESTS_DROPPED, REQUESTS_LOGGED
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import activate, online_settings, open_index, running
from tests.request_log_builders import answered
from tests.stack import eventually, topics

ITEMS = 40


async def logged(settings: Settings, since_ms: int, until_ms: int) -> list[LoggedRequest]:
    return [found async for found in read_requests(settings, since_ms, until_ms)]


def dropped(reason: str) -> float:
    return REQUESTS_DROPPED.labels(reason=reason)._value.get()


async def test_every_answer_is_in_the_log_with_what_was_ranked_and_what_was_secret_is_not(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, request_log_redact="email")
    model, items = small_version(), make_items(ITEMS)
    since_ms = now_ms()
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await activate(settings, model, 1)
        numbers: list[Any] = [*range(ITEMS)]
        asked = [numbers, [*numbers, "unknown"]] * 10  # as numbers they travel otherwise
        async with running(serve_role, settings) as client:
            context = {"email": "a@b", "page": "home"}
            answers = [await client.rank(f"u{i}", k=5, candidates=asked[i], context=context) for i in range(20)]
    file = tmp_path / "log.jsonl.zst"
    assert await export_requests(settings, since_ms, now_ms() + 1, file) == 20
    with read_lines(file) as found:
        lines = [orjson.loads(line) for line in found]
    assert [line["received_ms"] for line in lines] == sorted(line["received_ms"] for line in lines)
    by_id = {line["request_id"]: line for line in lines}
    for i, answer in enumerate(answers):
        line = by_id[answer["request_id"]]
        assert line["items"] == answer["items"]
        assert line["candidates"] == [str(item) for item in asked[i]]
        assert (line["user_id"], line["k"], line["model_version"]) == (f"u{i}", 5, model.name)
        assert line["context"] == {"page": "home"}
        assert line["redacted"] == ["email"]
        assert line["timings_ms"] == answer["timings_ms"]


async def test_a_range_takes_what_arrived_in_it_and_nothing_else(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    t0 = now_ms()
    async with RequestLogWriter(settings) as log:
        for i in range(100):
            log.offer(answered(["1"], request_id=f"{i:016x}", received_ms=t0 + i, user_id=f"u{i % 7}"))
    found = await logged(settings, t0 + 10, t0 + 20)
    assert sorted(line.received_ms for line in found) == list(range(t0 + 10, t0 + 20))


async def test_the_sample_is_the_same_whoever_answers(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, request_log_rate=0.3)
    t0 = now_ms()
    for _ in range(2):
        async with RequestLogWriter(settings) as log:
            for i in range(200):
                if log.wants(f"{i:016x}"):
                    log.offer(answered(["1"], request_id=f"{i:016x}", received_ms=t0))
    ids = [line.request_id for line in await logged(settings, t0, t0 + 1)]
    assert 30 < len(set(ids)) < 90
    assert len(ids) == 2 * len(set(ids))


async def test_with_kafka_down_nobody_waits_and_every_lost_answer_is_counted(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    before = {reason: dropped(reason) for reason in ("full", "stopped", "refused")}
    count, written = 4_000, REQUESTS_LOGGED._value.get()
    async with RequestLogWriter(settings) as log:
        log.offer(answered(["1"]))
        await eventually(lambda: _is(REQUESTS_LOGGED._value.get() > written), what="the first answer is in Kafka")
        await broker.set_down()
        for _ in range(count):
            started_s = time.monotonic()
            log.offer(answered(["1"]))
            assert time.monotonic() - started_s < 1.0  # a wait for Kafka would last its time limit
            await asyncio.sleep(0)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 20
    gone = {reason: dropped(reason) - was for reason, was in before.items()}
    assert sum(gone.values()) == count, gone
    assert gone["full"] > 0


async def test_a_server_answers_while_kafka_was_never_there(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker({name: count for name, count in topics().items() if name != "aif.requests"})
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model, items = small_version(), make_items(ITEMS)
    before = dropped("stopped")
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await activate(settings, model, 1)
        async with running(serve_role, settings) as client:
            for _ in range(10):
                answer = await client.rank("ann", candidates=list(range(ITEMS)))
                assert answer["degraded"] == []
    assert dropped("stopped") - before == 10


async def test_nothing_is_logged_at_a_rate_of_zero(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    t0 = now_ms()
    async with RequestLogWriter(dataclasses.replace(settings, request_log_rate=0.0)) as log:
        log.offer(answered(["1"], received_ms=t0))
    assert await logged(settings, t0, t0 + 1) == []


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("rate", [-0.1])
def test_a_wrong_rate_stops_the_start(rate: float) -> None:
    from aif_stream.errors import SettingsError
    from aif_stream.settings import load

    with pytest.raises(SettingsError, match="AIF_REQUEST_LOG_RATE"):
        load(None, {"AIF_REQUEST_LOG_RATE": str(rate)})
