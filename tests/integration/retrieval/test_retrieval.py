from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import msgspec

from aif_stream.bus.publisher import EventPublisher
from aif_stream.domain.candidates import MEDIA_TYPE, decode_candidates, id_of
from aif_stream.domain.ids import key_of
from aif_stream.retrieval.server import retrieval_role
from tests.conftest import BrokerFactory
from tests.model_builders import make_items
from tests.online_builders import Client, online_settings, publish, running
from tests.stack import eventually, topics


async def ids_of(client: Client, **asked: Any) -> list[str]:
    headers = {"accept": "application/json"}
    async with client.session.post(client.url + "/v1/retrieve", json=asked, headers=headers) as reply:
        found = await reply.json()
        assert reply.status == 200, found
        return list(found["ids"])


async def test_it_is_ready_with_what_was_published_before_and_follows_what_comes_after(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    items = [msgspec.structs.replace(item, item_id=f"sku-{item.item_id}") for item in make_items(50)]
    await publish(settings, items, {"ann": ["sku-3"] * 3 + ["sku-4"]})
    async with running(retrieval_role, settings) as client:
        everything = await ids_of(client, user_id="ann", channel="popular", k=100)
        assert set(everything) == {item.item_id for item in items}
        assert everything[:2] == ["sku-3", "sku-4"]
        assert len(await ids_of(client, user_id="ann", channel="neighbours", k=5)) == 5
        assert await ids_of(client, user_id="nobody", channel="category", k=5) == []
        async with EventPublisher(settings, source="test") as publisher:
            await (await publisher.item("new", category="tea", content_vector=[1.0] * 12))
            await (await publisher.remove("sku-3"))
            await (await publisher.behavior("bob", "new", "buy"))

        async def followed() -> bool:
            found = await ids_of(client, user_id="bob", channel="popular", k=100)
            return found[0] == "new" and "sku-3" not in found

        await eventually(followed, what="item, removal and behavior are seen")
        assert (await ids_of(client, user_id="bob", channel="neighbours", k=3))[0] == "new"
        _, facts = await client.get("/readyz")
        assert (facts["items"], facts["users"]) == (50, 2)


async def test_the_binary_answer_names_hashed_keys_and_errors_are_problems(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    items = [msgspec.structs.replace(make_items(2)[0], item_id="shoe"), make_items(2)[1]]
    await publish(settings, items)
    async with running(retrieval_role, settings) as client:
        asked = {"user_id": 7, "channel": "popular", "k": 10}
        async with client.session.post(client.url + "/v1/retrieve", json=asked) as reply:
            assert reply.content_type == MEDIA_TYPE
            found = decode_candidates(await reply.read(), reply.content_type, "popular")
        assert sorted(id_of(key, found.names) for key in found.keys.tolist()) == ["1", "shoe"]
        assert found.names == {key_of("shoe"): "shoe"}
        cases: list[tuple[dict[str, Any], str]] = [
            ({"channel": "popular"}, "user_id"),
            ({"user_id": "1", "channel": "popular", "k": 0}, "k"),
            ({"user_id": "1", "channel": "popular", "k": 10**9}, "k"),
            ({"user_id": "1", "channel": "horoscope"}, "channel"),
        ]
        for body, field in cases:
            status, problem = await client.post("/v1/retrieve", body)
            assert (status, problem["errors"][0]["field"]) == (422, field)
        async with client.session.post(client.url + "/v1/retrieve", data=b"x" * 100_000) as reply:
            assert reply.status == 413
        for body in (asked, {}):  # an answer of either kind names its request
            own = {"x-request-id": "r-1"}
            async with client.session.post(client.url + "/v1/retrieve", json=body, headers=own) as reply:
                assert reply.headers.getall("x-request-id") == ["r-1"]


async def test_it_answers_no_sooner_than_its_set_latency(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    await publish(settings, make_items(5))
    slow = dataclasses.replace(settings, retrieval_latency_ms=120.0)
    async with running(retrieval_role, slow) as client:
        started_s = time.monotonic()
        await ids_of(client, user_id="1", channel="popular", k=5)
        assert time.monotonic() - started_s >= 0.12
