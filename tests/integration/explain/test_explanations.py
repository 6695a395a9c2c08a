"""An answer at once, its reason in a moment: asked for, followed, joined, cancelled, and clearly refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from aif_stream.bus.producer import Producer
from aif_stream.bus.versions import publish_version, read_versions
from aif_stream.domain.facts import read_head
from aif_stream.domain.versions import VersionState
from aif_stream.explain.near import TRIAL, WINDOW
from aif_stream.index.connection import open_redis
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.near_cache import NearStore
from tests.integration.explain.conftest import IDS, Stack, serving, worker
from tests.stack import eventually


async def sse(stack: Stack, name: str, last_event_id: str = "") -> AsyncIterator[dict[str, Any]]:
    """Events of the stream as {"id", "event", "data"}."""
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    url = f"{stack.client.url}/v1/explanations/{name}/events"
    async with stack.client.session.get(url, headers=headers) as reply:
        if reply.status == 204:
            return
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"
        event: dict[str, Any] = {}
        async for raw in reply.content:
            line = raw.decode().rstrip("\n")
            field, _, value = line.partition(": ")
            if field in ("id", "event"):
                event[field] = value
            elif field == "data":
                event["data"] = json.loads(value)
            elif not line and "id" in event:
                yield event
                event = {}


async def test_the_first_n_are_explained_while_the_answer_has_gone_out(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=10, explain=2)
    assert answer["degraded"] == []
    assert [each["item_id"] for each in answer["explanations"]] == [item["item_id"] for item in answer["items"][:2]]
    async with worker(stack.settings):
        for number, started in enumerate(answer["explanations"]):
            ended = await stack.ended(started["explanation_id"])
            assert ended["state"] == "complete", ended
            assert set(ended["stages"]) == {"native", "shapley", "counterfactual"}
            native = ended["stages"]["native"]
            assert native["score"] == native["recomputed"] == ended["score"] == answer["items"][number]["score"]
            assert {each["item_id"] for each in native["behaviors"]} <= set(IDS[:12])
            assert ended["stages"]["shapley"]["residual"] <= 0.01
            assert ended["times_ms"]["complete"] >= ended["times_ms"]["partial"] >= ended["times_ms"]["pending"]


async def test_a_stream_tells_every_step_once_and_goes_on_where_it_was_cut(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    assert "explanations" not in answer
    name = (await stack.ask(answer["request_id"], answer["items"][1]["item_id"]))["explanation_id"]
    async with worker(stack.settings):
        whole = [event async for event in sse(stack, name)]
    assert [event["data"]["state"] for event in whole][:2] == ["pending", "calculating"]
    assert [event["data"].get("stage") for event in whole if event["event"] == "stage"] == [
        *("native", "shapley", "counterfactual"),
    ]
    assert whole[-1]["data"]["state"] == "complete"
    for cut in range(len(whole)):
        rest = [event async for event in sse(stack, name, whole[cut]["id"])]
        assert rest == whole[cut + 1 :]


async def test_a_websocket_tells_the_same_and_closes_when_all_is_told(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][0]["item_id"], method="native"))["explanation_id"]
    async with (
        worker(stack.settings),
        stack.client.session.ws_connect(f"{stack.client.url}/v1/explanations/{name}/ws") as socket,
    ):
        told = [json.loads(message.data) async for message in socket]
        assert socket.close_code == 1000
    assert told[-1]["state"] == "complete"
    assert [each["data"]["score"] for each in told if each.get("stage") == "native"] == [answer["items"][0]["score"]]
    seen = [event["id"] async for event in sse(stack, name)]
    assert [each["id"] for each in told] == seen
    async with stack.client.session.ws_connect(
        f"{stack.client.url}/v1/explanations/{name}/ws?last_event_id={seen[1]}"
    ) as socket:
        assert [json.loads(message.data)["id"] async for message in socket] == seen[2:]


async def test_asking_twice_joins_and_what_is_complete_stays_complete(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    request, item = answer["request_id"], answer["items"][2]["item_id"]
    first, second = await stack.ask(request, item, method="native"), await stack.ask(request, item, method="native")
    assert (first["explanation_id"], first["joined"], second["joined"]) == (second["explanation_id"], False, True)
    other = await stack.ask(request, item, method="counterfactual")
    assert other["explanation_id"] != first["explanation_id"]
    async with worker(stack.settings):
        done = await stack.ended(first["explanation_id"])
        assert await stack.ask(request, item, method="native") == {
            "explanation_id": first["explanation_id"],
            "state": "complete",
            "joined": True,
        }
        assert (done["run"], done["attempt"]) == (1, 1)
        again = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
        same = await stack.ended((await stack.ask(again["request_id"], item, method="native"))["explanation_id"])
        assert same["cache"] == "exact"
        assert same["stages"] == done["stages"]


async def test_cancelling_ends_the_work_and_asking_again_begins_another_run(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][0]["item_id"]))["explanation_id"]
    async with stack.client.session.delete(f"{stack.client.url}/v1/explanations/{name}") as reply:
        assert (reply.status, (await reply.json())["state"]) == (200, "cancelled")
    async with worker(stack.settings):
        other = await stack.ask(answer["request_id"], answer["items"][1]["item_id"], method="native")
        await stack.ended(other["explanation_id"])  # it came after the cancelled one, which the worker has passed over
        assert (await stack.look(name))["state"] == "cancelled"
        assert (await stack.look(name))["stages"] == {}
        again = await stack.ask(answer["request_id"], answer["items"][0]["item_id"])
        assert not again["joined"]
        ended = await stack.ended(name)
        assert (ended["state"], ended["run"]) == ("complete", 2)


async def test_a_worker_that_stops_hands_back_and_the_next_one_ends_it(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=10, explain=True)
    names = [(await stack.ask(answer["request_id"], item["item_id"]))["explanation_id"] for item in answer["items"]]

    async def one_done() -> bool:
        return any([(await stack.look(name))["state"] == "complete" for name in names])

    async with worker(stack.settings):
        await eventually(one_done, what="the first explanation is complete")
    states = [(await stack.look(name))["state"] for name in names]
    assert "calculating" not in states, states
    async with worker(stack.settings):
        for name in names:
            assert (await stack.ended(name))["state"] == "complete"


async def test_past_its_deadline_it_expires_whether_or_not_a_worker_sees_it(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][0]["item_id"], deadline_ms=1))["explanation_id"]
    ended = await stack.ended(name)
    assert (ended["state"], ended["stages"]) == ("expired", {})


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"request_id": "unknown", "item_id": "1"}, 404, "request_id"),
        ({"item_id": "1"}, 422, "request_id"),
        ({"request_id": "$known", "item_id": "absent"}, 422, "item_id"),
        ({"request_id": "$known", "item_id": -1}, 422, "item_id"),
        ({"request_id": "$known", "item_id": "1", "method": "magic"}, 422, "method"),
        ({"request_id": "$known", "item_id": "1", "priority": "urgent"}, 422, "priority"),
        ({"request_id": "$known", "item_id": "1", "deadline_ms": 0}, 422, "deadline_ms"),
    ],
)
async def test_a_wrong_question_is_a_problem_that_names_the_field(
    stack: Stack, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    asked = {key: answer["request_id"] if value == "$known" else value for key, value in body.items()}
    found, problem = await stack.client.post("/v1/explanations", asked)
    assert found == status, problem
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_facts_that_have_gone_are_told_from_a_request_that_never_was(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][0]["item_id"]))["explanation_id"]
    async with open_redis(stack.settings) as redis:
        await ExplanationStore(redis, keep_s=60, facts_s=60).drop_facts([answer["request_id"]])
    status, problem = await stack.client.post(
        "/v1/explanations", {"request_id": answer["request_id"], "item_id": answer["items"][1]["item_id"]}
    )
    assert (status, "have expired" in problem["detail"]) == (410, True)
    async with worker(stack.settings):
        ended = await stack.ended(name)
    assert (ended["state"], "have expired" in ended["reason"]) == ("failed", True)


async def test_facts_beyond_the_size_bound_go_oldest_first_and_are_told_as_gone(stack: Stack) -> None:
    small = dataclasses.replace(stack.settings, explain_facts_mb=1)
    async with serving(small) as bounded, open_redis(small) as redis:
        store = ExplanationStore(redis, keep_s=60, facts_s=60)

        async def answered() -> tuple[dict[str, Any], int]:
            """An answer and the bytes of its facts, once they are written."""
            answer = await bounded.client.rank("ann", candidates=IDS, k=40, explain=True)

            async def size() -> int:
                return len((await store.facts(answer["request_id"]))[0] or b"")

            return answer, await eventually(size, what="the facts are written")

        first, size_bytes = await answered()
        for _ in range(2**20 // size_bytes):
            await bounded.client.rank("ann", candidates=IDS, k=40, explain=True)
        await answered()
        status, problem = await bounded.client.post(
            "/v1/explanations", {"request_id": first["request_id"], "item_id": first["items"][0]["item_id"]}
        )
        assert (status, "have expired" in problem["detail"]) == (410, True)


async def test_answers_to_one_user_share_the_users_part_which_is_written_anew_when_it_was_lost(stack: Stack) -> None:
    async with open_redis(stack.settings) as redis:
        store = ExplanationStore(redis, keep_s=60, facts_s=60)

        async def part_of(answer: dict[str, Any]) -> str:
            async def written() -> bytes | None:
                return (await store.facts(answer["request_id"]))[0]

            return read_head(await eventually(written, what="the facts are written") or b"").user_part

        first, second = [await stack.client.rank("ann", candidates=IDS, k=5, explain=True) for _ in range(2)]
        name = await part_of(first)
        assert name
        assert await part_of(second) == name
        await store.drop_facts([], [name])
        third = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
        assert await part_of(third) == name

        async def there() -> bytes | None:
            return await store.facts_user(name)

        await eventually(there, what="the user's part is written anew")
        item = third["items"][0]
        async with worker(stack.settings):
            ended = await stack.ended(
                (await stack.ask(third["request_id"], item["item_id"], method="native"))["explanation_id"]
            )
        assert (ended["state"], ended["stages"]["native"]["recomputed"]) == ("complete", item["score"])


async def test_a_like_question_is_answered_by_the_near_cache_and_says_so(stack: Stack) -> None:
    async with open_redis(stack.settings) as redis:
        near = NearStore(redis, keep_s=600, off_s=600, window=WINDOW)
        for _ in range(TRIAL):
            await near.measured(stack.model.name, 0.0)
    ended = []
    async with worker(dataclasses.replace(stack.settings, explain_near_check=0.0)):
        for k in (40, 41):  # of 40 candidates: the same answer to another question
            answer = await stack.client.rank("ann", candidates=IDS, k=k, explain=True)
            item = answer["items"][5]["item_id"]
            ended.append(
                await stack.ended((await stack.ask(answer["request_id"], item, method="shapley"))["explanation_id"])
            )
    assert [each["cache"] for each in ended] == ["none", "near"]
    own, like = (each["stages"]["shapley"] for each in ended)
    assert (like["groups"], like["cache"], like["near"]["disagreement"]) == (own["groups"], "near", 0.0)
    assert ended[1]["stages"]["native"]["score"] == ended[1]["score"]


async def test_an_unknown_explanation_is_404_everywhere(stack: Stack) -> None:
    url = f"{stack.client.url}/v1/explanations/xabsent"
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        async with stack.client.session.request(method, url + path) as reply:
            assert (reply.status, reply.content_type) == (404, "application/problem+json")
    async with stack.client.session.ws_connect(f"{url}/ws") as socket:
        message = await socket.receive()
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1008)


async def test_a_flood_from_one_client_is_429_and_says_when_to_come_back(stack: Stack) -> None:
    slow = dataclasses.replace(stack.settings, explain_client_rate=1.0)
    async with serving(slow) as flooded:
        replies = await asyncio.gather(
            *(flooded.client.post("/v1/explanations", {"request_id": "r", "item_id": "1"}) for _ in range(8))
        )
        statuses = [status for status, _ in replies]
        assert statuses.count(404) == 2
        assert statuses.count(429) == 6
        async with flooded.client.session.post(
            f"{flooded.client.url}/v1/explanations", json={"request_id": "r", "item_id": "1"}
        ) as reply:
            assert (reply.status, reply.content_type) == (429, "application/problem+json")
            assert int(reply.headers["retry-after"]) >= 1


async def test_the_score_of_a_retired_version_is_409(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    record = (await read_versions(stack.settings)).records[answer["model_version"]]
    async with Producer(stack.settings, "test") as producer:
        await publish_version(producer, msgspec.structs.replace(record, state=VersionState.RETIRED))

        async def refused() -> bool:
            body = {"request_id": answer["request_id"], "item_id": answer["items"][0]["item_id"]}
            return (await stack.client.post("/v1/explanations", body))[0] == 409

        await eventually(refused, what="the retirement is known")
        await publish_version(producer, msgspec.structs.replace(record, activation=record.activation + 1))

        async def taken_again() -> bool:
            return not await refused()

        await eventually(taken_again, what="the version is there again for the tests that follow")


async def test_an_open_explanation_whose_version_is_retired_meanwhile_fails_and_says_so(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=True)
    name = (await stack.ask(answer["request_id"], answer["items"][3]["item_id"]))["explanation_id"]
    record = (await read_versions(stack.settings)).records[answer["model_version"]]
    async with Producer(stack.settings, "test") as producer:
        await publish_version(producer, msgspec.structs.replace(record, state=VersionState.RETIRED))
        async with worker(stack.settings):  # it begins by reading all that was said of versions
            ended = await stack.ended(name)
        await publish_version(producer, msgspec.structs.replace(record, activation=record.activation + 2))
    assert (ended["state"], ended["stages"]) == ("failed", {})
    assert f"version {answer['model_version']} is retired" in ended["reason"]
