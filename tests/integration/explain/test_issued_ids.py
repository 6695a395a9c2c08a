"""An id that an answer gave is pending from that moment on, at every server; an id that no answer gave is 404."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from aif_stream.telemetry import EXPLAIN_FACTS, counts
from tests.integration.explain.conftest import FINAL, IDS, Pair, open_pair, recorded, worker
from tests.online_builders import Client
from tests.stack import eventually

ROUNDS = 40


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: Any) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path_factory.mktemp("issued")) as opened:
        yield opened


async def started(client: Client) -> dict[str, str]:
    """An explanation that an answer has just started, with the item and score that it is of."""
    answer = await client.rank("ann", candidates=IDS, k=5, explain=2)
    (first, _), item = answer["explanations"], answer["items"][0]
    return {"id": first["explanation_id"], "item_id": item["item_id"], "score": item["score"]}


async def first_event(client: Client, name: str) -> dict[str, Any]:
    async with client.session.get(f"{client.url}/v1/explanations/{name}/events") as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: "):
                return dict(json.loads(line.removeprefix(b"data: ")))
    raise AssertionError("the stream ended without an event")


async def first_message(client: Client, name: str) -> dict[str, Any]:
    async with client.session.ws_connect(f"{client.url}/v1/explanations/{name}/ws") as socket:
        return dict(await socket.receive_json())


async def test_given_id_is_pending_at_once_where_it_was_given(pair: Pair) -> None:
    client = pair.first.client
    for _ in range(ROUNDS):
        given = await started(client)
        status, found = await client.get(f"/v1/explanations/{given['id']}")
        assert (status, found["state"]) == (200, "pending"), found
        assert (found["item_id"], found["score"], found["stages"]) == (given["item_id"], given["score"], {})


async def test_given_id_is_pending_at_once_at_another_server(pair: Pair) -> None:
    for _ in range(ROUNDS):
        given = await started(pair.first.client)
        status, found = await pair.second.get(f"/v1/explanations/{given['id']}")
        assert (status, found["state"]) == (200, "pending"), found
        assert found["explanation_id"] == given["id"]


async def test_given_id_can_be_followed_at_once_everywhere(pair: Pair) -> None:
    for client in (pair.first.client, pair.second) * 5:
        for follow in (first_event, first_message):
            given = await started(pair.first.client)
            async with asyncio.timeout(30):
                told = await follow(client, given["id"])
            assert (told["explanation_id"], told["state"]) == (given["id"], "pending")


async def test_given_id_can_be_cancelled_at_once_everywhere(pair: Pair) -> None:
    for client in (pair.first.client, pair.second) * 3:
        given = await started(pair.first.client)
        async with client.session.delete(f"{client.url}/v1/explanations/{given['id']}") as reply:
            assert (reply.status, (await reply.json())["state"]) == (200, "cancelled")
        assert (await pair.first.look(given["id"]))["state"] == "cancelled"


async def test_asking_for_a_given_item_joins_what_the_answer_started(pair: Pair) -> None:
    answer = await pair.first.client.rank("ann", candidates=IDS, k=5, explain=2)
    for each in answer["explanations"]:
        body = {"request_id": answer["request_id"], "item_id": each["item_id"]}
        status, asked = await pair.second.post("/v1/explanations", body)
        assert (status, asked["explanation_id"]) == (202, each["explanation_id"])


async def test_id_that_no_answer_gave_is_404_everywhere(pair: Pair) -> None:
    name = (await started(pair.first.client))["id"]
    changed = [name[:at] + format(int(name[at], 16) ^ 1, "x") + name[at + 1 :] for at in range(1, len(name), 5)]
    for forged in (*changed, name.upper(), name + "0", name[:-1], "x", "xabsent", "x" + "0" * (len(name) - 1)):
        for client in (pair.first.client, pair.second):
            for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
                async with client.session.request(method, f"{client.url}/v1/explanations/{forged}{path}") as reply:
                    assert reply.status == 404, (forged, method, path)


async def test_explanation_of_a_given_id_completes(pair: Pair) -> None:
    given = await started(pair.first.client)
    async with worker(pair.first.settings):
        ended = await pair.first.ended(given["id"])
    assert (ended["state"], ended["score"]) == ("complete", given["score"])


async def test_answer_does_not_wait_for_a_redis_that_hangs(tmp_path: Path) -> None:
    """Pending without asking Redis where the id was given; once Redis goes on the explanation is there as ever."""
    async with open_pair(tmp_path, redis_timeout_s=20.0) as pair:
        client = pair.first.client
        await recorded(pair.second, (await started(client))["id"])
        os.kill(pair.redis.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(15):
                given = await started(client)
                status, found = await client.get(f"/v1/explanations/{given['id']}")
                assert (status, found["state"]) == (200, "pending")
        finally:
            os.kill(pair.redis.pid, signal.SIGCONT)
        assert (await first_event(pair.second, given["id"]))["state"] == "pending"
        async with worker(pair.first.settings):
            assert (await pair.first.ended(given["id"]))["state"] == "complete"


async def test_id_whose_facts_could_not_be_kept_fails(tmp_path: Path) -> None:
    async with open_pair(tmp_path, redis_timeout_s=1.0) as pair:
        client = pair.first.client
        await recorded(pair.second, (await started(client))["id"])
        failed = counts(EXPLAIN_FACTS).get("failed", 0)
        os.kill(pair.redis.pid, signal.SIGSTOP)
        try:
            given = await started(client)

            async def lost() -> bool:
                return counts(EXPLAIN_FACTS).get("failed", 0) > failed

            await eventually(lost, what="the server gives the facts up")
        finally:
            os.kill(pair.redis.pid, signal.SIGCONT)

        async def final() -> dict[str, Any] | None:
            status, found = await client.get(f"/v1/explanations/{given['id']}")
            return found if status == 200 and found["state"] in FINAL else None

        found = await eventually(final, what="the explanation ends")
        assert (found["state"], found["item_id"]) == ("failed", given["item_id"])
        assert found["reason"].startswith("the facts of its answer could not be kept")
        assert await first_event(client, given["id"]) | {"at_ms": 0} == {
            "explanation_id": given["id"],
            "kind": "state",
            "state": "failed",
            "run": 1,
            "attempt": 0,
            "at_ms": 0,
            "reason": found["reason"],
        }
