from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aif_stream.bus.events import item_from_record
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.online.role import serve_role
from aif_stream.settings import Settings
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import Client, activate, online_settings, open_index, running
from tests.stack import topics


@pytest_asyncio.fixture(loop_scope="session")
async def settings(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[Settings]:
    """A filled index with an active version; no retrieval upstream."""
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, retrieval_urls="http://127.0.0.1:9")
    settings = dataclasses.replace(settings, max_body_bytes=4096, max_candidates=50, max_k=100)
    model = small_version()
    async with open_index(settings, [model.name]) as index:
        await index.put(model, make_items(30))
        await activate(settings, model, 1)
        yield settings


async def problem(client: Client, body: bytes, status: int, path: str = "/v1/rank") -> dict[str, Any]:
    async with client.session.post(client.url + path, data=body) as reply:
        assert reply.content_type == "application/problem+json"
        found = await reply.json(content_type=None)
        assert (reply.status, found["status"]) == (status, status), found
        assert found.keys() == {"type", "title", "status", "detail", "errors"}
        return dict(found)


async def test_each_wrong_request_is_answered_with_its_status_and_field(settings: Settings) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"k": 5}, "user_id"),
        ({"user_id": "1", "k": "5"}, "k"),
        ({"user_id": "1", "k": 0}, "k"),
        ({"user_id": "1", "k": 101}, "k"),
        ({"user_id": -1}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"user_id": "1", "candidates": ["1"] * 51}, "candidates"),
        ({"user_id": "1", "candidates": ["1", -3]}, "candidates[1]"),
        ({"user_id": "1", "deadline_ms": 0}, "deadline_ms"),
        ({"user_id": "1", "deadline_ms": 1e9}, "deadline_ms"),
        ({"user_id": "1", "explain": -1}, "explain"),
        ({"user_id": "1", "explain": 1000}, "explain"),
        ({"user_id": "1", "model_version": 7}, "model_version"),
    ]
    async with running(serve_role, settings) as client:
        for body, field in cases:
            found = await problem(client, json.dumps(body).encode(), 422)
            assert [error["field"] for error in found["errors"]] == [field], (body, found)
        await problem(client, b"{nonsense", 400)
        await problem(client, b"\xff\xfe", 400)
        await problem(client, b"[1]", 422)
        await problem(client, b'{"user_id":"' + b"x" * 5000 + b'"}', 413)
        await problem(client, b'{"user_id":"1","candidates":["1"],"model_version":"other"}', 409)
        found = await problem(client, b'{"user_id":"1"}', 503)
        assert "AIF_RETRIEVAL_URLS" in found["detail"]
        await problem(client, b"{}", 404, "/v1/nothing")
        await problem(client, b"{}", 405, "/v1/status")
        assert (await client.rank("1", candidates=["1"]))["coverage"]["scored"] == 1


async def test_a_body_without_length_is_cut_off_at_the_limit(settings: Settings) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 1024

    async with (
        running(serve_role, settings) as client,
        client.session.post(client.url + "/v1/rank", data=endless()) as reply,
    ):
        assert reply.status == 413


async def test_named_candidates_are_distinct_and_unknown_ones_are_missing(settings: Settings) -> None:
    async with running(serve_role, settings) as client:
        answer = await client.rank("1", candidates=["1", 1, "2", "no such item", "999"], k=10)
        assert answer["coverage"] == {"candidates": 4, "scored": 2, "recomputed": 0, "missing": 2}
        assert {item["item_id"] for item in answer["items"]} == {"1", "2"}
        empty = await client.rank("1", candidates=[])
        assert (empty["items"], empty["coverage"]["candidates"], empty["degraded"]) == ([], 0, [])
        explained = await client.rank("1", candidates=["1"], explain=True)
        assert explained["degraded"] == []
        assert "explanations" not in explained, "true keeps the facts and starts none"


async def test_item_events_are_published_and_wrong_lines_are_named(settings: Settings) -> None:
    good, bad = {"item_id": "n1", "category": "tea", "shelf": 3}, {"item_id": "n2"}
    async with running(serve_role, settings) as client:
        status, report = await client.post("/v1/events/items", [good, bad, {**good, "item_id": 7}])
        assert (status, report["sent"], report["acknowledged"], report["rejected"]) == (202, 2, 2, 1)
        assert report["rejects"][0]["line"] == 2
        assert "category" in report["rejects"][0]["problem"]
        assert (await client.post("/v1/events/items", good))[0] == 202
        found = await problem(client, json.dumps(bad).encode(), 422, "/v1/events/items")
        assert found["errors"][0]["field"] == "category"
        await problem(client, b"{", 400, "/v1/events/items")
        lines = json.dumps(good).encode() + b"\n\n" + json.dumps(bad).encode() + b"\n"
        headers = {"content-type": "application/x-ndjson"}
        async with client.session.post(client.url + "/v1/events/items", data=lines, headers=headers) as reply:
            report = await reply.json()
        assert (reply.status, report["acknowledged"], report["rejects"][0]["line"]) == (202, 1, 3)
    async with LogReader(settings, ITEM_UPDATES) as reader:
        ends = await reader.end_offsets()
        events = []
        while not await reader.caught_up(ends):
            events += [item_from_record(record) for record in await reader.poll()]
    assert sorted(event.id_text for event in events) == ["7", "n1", "n1", "n1"]
    assert all(json.loads(event.payload or b"")["shelf"] == 3 for event in events)


async def test_health_metrics_status_page_and_openapi_are_there(settings: Settings) -> None:
    async with running(serve_role, settings) as client:
        await client.rank("1", candidates=["1"])
        for path in ("/livez", "/readyz", "/startupz"):
            assert (await client.get(path))[0] == 200
        _, status = await client.get("/v1/status")
        assert status["model_version"] == "small-aif"
        assert status["mirror"]["rows"] == 30
        assert status["requests"]["by_status"] == {"200": 1}
        async with client.session.get(client.url + "/metrics") as reply:
            metrics = await reply.text()
        for name in ("aif_rank_seconds_bucket", "aif_mirror_rows", "aif_model_version_info", "aif_served_age_seconds"):
            assert name in metrics
        async with client.session.get(client.url + "/") as reply:
            page = await reply.text()
        assert "<title>aif_stream</title>" in page
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "https://" not in page
        _, document = await client.get("/openapi.json")
        assert document["openapi"] == "3.1.0"
        assert set(document["paths"]) >= {"/v1/rank", "/v1/events/items", "/readyz"}
        _check_references(document, document)


def _check_references(node: Any, document: dict[str, Any]) -> None:
    if isinstance(node, dict):
        if isinstance(target := node.get("$ref"), str):
            assert target.removeprefix("#/components/schemas/") in document["components"]["schemas"]
        for child in node.values():
            _check_references(child, document)
    elif isinstance(node, list):
        for child in node:
            _check_references(child, document)


async def test_before_a_version_is_active_it_lives_but_is_not_ready_and_says_why(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    async with running(serve_role, settings, ready=False) as client:
        assert (await client.get("/livez"))[0] == 200
        status, body = await client.get("/readyz")
        assert status == 503
        assert body["reasons"]
        assert (await client.get("/startupz"))[0] == 503
        await problem(client, b'{"user_id":"1"}', 503)
        model = small_version()
        async with open_index(settings, [model.name]) as index:
            await index.put(model, make_items(3))
            await activate(settings, model, 1)
            await client.ready()
        assert (await client.get("/startupz"))[0] == 200


@pytest.mark.parametrize("path", ["/", "/v1/status", "/openapi.json"])
async def test_reading_pages_needs_no_version(
    path: str, embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    async with running(serve_role, settings, ready=False) as client, client.session.get(client.url + path) as reply:
        assert reply.status == 200
