"""Hostile records of the source topics between good ones: retrieval passes them and finds every good item."""

from __future__ import annotations

from pathlib import Path

from aif_stream.bus.events import event_headers
from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES
from aif_stream.domain.events import EventType
from aif_stream.retrieval.server import retrieval_role
from tests.conftest import BrokerFactory
from tests.hostile_builders import DEEP, bad_headers, deep_json
from tests.online_builders import T0_MS, online_settings, running
from tests.stack import eventually, topics

HEADERS = ("ce_specversion", "ce_type", "ce_id", "ce_source", "ce_time", "ce_firstoffset", "aif_attempts")


async def test_retrieval_passes_hostile_records_and_finds_good_items(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    item, click = (event_headers(kind, "e", "test", T0_MS) for kind in (EventType.ITEM_UPSERTED, EventType.BEHAVIOR))
    line, deed = b'{"item_id":"bad","category":"c"}', b'{"user_id":"bad","item_id":"bad","kind":"click"}'
    wrong = [(ITEM_UPDATES, headers, line) for _, headers in bad_headers(item, *HEADERS)]
    wrong += [(BEHAVIORS, headers, deed) for _, headers in bad_headers(click, *HEADERS)]
    for number in (b"1" + b"0" * 400, b"9" * 4_000, b"9" * 5_000, b"-1", b"1e400", b"NaN"):
        wrong.append((ITEM_UPDATES, item, b'{"item_id":"bad","category":%s}' % number))
        wrong.append((BEHAVIORS, click, b'{"user_id":"bad","item_id":%s,"kind":"click"}' % number))
    wrong += [(ITEM_UPDATES, item, value) for value in (DEEP, deep_json(item_id="bad", category="c"), b"", b"\xff")]
    wrong += [(BEHAVIORS, click, value) for value in (DEEP, deep_json(user_id="bad", item_id="1", kind="buy"), b"")]
    good: list[str] = []

    async with Producer(settings, "test") as producer, EventPublisher(settings, source="test") as publisher:

        async def put(number: int) -> None:
            topic, headers, value = wrong[number]
            await (await producer.send(topic, b"bad", value, headers))
            good.append(f"sku-{number}")
            await (await publisher.item(good[-1], category="tea", content_vector=[1.0, number + 1.0]))
            await (await publisher.behavior("ann", good[-1], "click"))

        for number in range(0, len(wrong), 2):  # half of them are there at the start
            await put(number)
        async with running(retrieval_role, settings) as client:
            for number in range(1, len(wrong), 2):
                await put(number)

            async def found() -> bool:
                asked = {"user_id": "ann", "channel": "popular", "k": 1_000}
                headers = {"accept": "application/json"}
                async with client.session.post(client.url + "/v1/retrieve", json=asked, headers=headers) as reply:
                    return set(good) <= set((await reply.json())["ids"])

            await eventually(found, what="every good item is found")
            await client.ready()
