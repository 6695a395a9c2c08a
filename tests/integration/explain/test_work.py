"""Work that is under way: where to look for it, signs of life while it is silent, and its end when it is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aif_stream.explain import job
from aif_stream.explain.shapley import Game, shapley
from aif_stream.online import explanation_feed
from tests.integration.explain.conftest import IDS, Stack, worker
from tests.stack import eventually

_UNIT_S = 0.02


async def test_202_says_where_to_look_and_when_to_come_back_until_it_has_ended(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    http, url = stack.client.session, stack.client.url
    body = {"request_id": answer["request_id"], "item_id": answer["items"][0]["item_id"], "method": "native"}
    async with http.post(f"{url}/v1/explanations", json=body) as reply:
        assert reply.status == 202
        assert int(reply.headers["retry-after"]) >= 1
        where, name = reply.headers["location"], (await reply.json())["explanation_id"]
    async with http.get(url + where) as reply:
        assert (reply.status, (await reply.json())["state"]) == (200, "pending")
        assert "retry-after" in reply.headers
    async with worker(stack.settings):
        await stack.ended(name)
    async with http.get(url + where) as reply:
        assert (await reply.json())["state"] == "complete"
        assert "retry-after" not in reply.headers


async def test_cancelling_stops_the_work_itself(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, stopped = [0], threading.Event()

    def endless(game: Game) -> Iterator[Any]:
        estimate = next(shapley(game))
        try:
            while True:
                rounds[0] += 1
                time.sleep(_UNIT_S)
                yield estimate
        finally:
            stopped.set()

    monkeypatch.setattr(job, "shapley", endless)
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    first, second = (item["item_id"] for item in answer["items"][1:3])
    async with worker(stack.settings):
        name = (await stack.ask(answer["request_id"], first))["explanation_id"]

        async def begun() -> bool:
            return rounds[0] > 3

        await eventually(begun, what="the work goes on and on")
        async with stack.client.session.delete(f"{stack.client.url}/v1/explanations/{name}") as reply:
            assert (reply.status, (await reply.json())["state"]) == (200, "cancelled")

        async def ended() -> bool:
            return stopped.is_set()

        await eventually(ended, what="the worker has let go of it")
        other = (await stack.ask(answer["request_id"], second, method="native"))["explanation_id"]
        assert (await stack.ended(other))["state"] == "complete", "the worker goes on with the next"
    assert (await stack.look(name))["state"] == "cancelled"


async def test_a_silent_stream_gives_signs_of_life(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation_feed, "_LOOK_S", 0.05)
    monkeypatch.setattr(explanation_feed, "HEARTBEAT_S", 0.1)
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][4]["item_id"]))["explanation_id"]
    url = f"{stack.client.url}/v1/explanations/{name}"
    async with asyncio.timeout(60), stack.client.session.get(f"{url}/events") as reply:
        while not (await reply.content.readline()).startswith(b":"):
            pass
    async with asyncio.timeout(60), stack.client.session.ws_connect(f"{url}/ws") as socket:
        while (await socket.receive_json())["kind"] != "heartbeat":
            pass
    async with stack.client.session.delete(url) as reply:
        assert reply.status == 200
