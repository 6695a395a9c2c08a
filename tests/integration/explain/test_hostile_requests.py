"""Hostile explanation requests between good ones: each is put aside, every good one ends, and the worker works on."""

from __future__ import annotations

import json
from typing import Any

from aif_stream.bus.groups import EXPLAIN_GROUPS
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import DEAD_LETTERS, EXPLANATION_REQUESTS
from aif_stream.bus.watch import GroupWatch
from aif_stream.domain.explanations import ExplanationTask, Method, Priority
from aif_stream.settings import Settings
from tests.hostile_builders import DEEP, deep_json
from tests.integration.explain.conftest import IDS, Stack, worker
from tests.stack import eventually

TASK = ExplanationTask(
    explanation_id="x1",
    run=1,
    request_id="r",
    item_id="1",
    method=Method.NATIVE,
    priority=Priority.HIGH,
    asked_ms=1,
    answered_ms=1,
    deadline_ms=1,
)


def hostile() -> list[bytes]:
    fields: dict[str, Any] = {name: getattr(TASK, name) for name in TASK.__struct_fields__}

    def changed(name: str, value: bytes) -> bytes:
        return json.dumps({**fields, name: "~"}).encode().replace(b'"~"', value)

    numbers = (b"-1", b"1" + b"0" * 30, b"-1" + b"0" * 400, b"1" + b"0" * 400, b"1e400", b"NaN", b"9" * 5_000, b"true")
    names = ("asked_ms", "answered_ms", "deadline_ms", "run")
    wrong = [changed(name, number) for name in names for number in numbers]
    texts = (b'""', b"null", b"5", b'"%s"' % (b"x" * 1_000_000))
    wrong += [changed(name, text) for name in ("explanation_id", "request_id", "item_id") for text in texts]
    return [*wrong, DEEP, deep_json(**fields), b"", b"\xff", b"[]", b"null"]


async def _letters(settings: Settings) -> int:
    async with LogReader(settings, DEAD_LETTERS) as reader:
        return (await reader.end_offsets())[0]


async def test_hostile_requests_are_letters_and_good_ones_end(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=8, explain=True)
    wrong, before = hostile(), await _letters(stack.settings)
    asked: list[str] = []
    async with worker(stack.settings), Producer(stack.settings, "test") as producer:
        for number, value in enumerate(wrong):
            await (await producer.send(EXPLANATION_REQUESTS[list(Priority)[number % 3]], b"k", value, []))
            if number % 8 == 0:
                item = answer["items"][number // 8]["item_id"]
                body = await stack.ask(answer["request_id"], item, method="native", priority="high")
                asked.append(body["explanation_id"])
        states = [(await stack.ended(name))["state"] for name in asked]
        assert states == ["complete"] * len(asked)

        async def committed() -> bool:
            for group, topic in EXPLAIN_GROUPS.items():
                async with GroupWatch(stack.settings, group, [topic]) as watch:
                    if any(standing.lag_records for standing in (await watch.standing()).values()):
                        return False
            return True

        await eventually(committed, what="every record is done and committed")
    assert await _letters(stack.settings) == before + len(wrong)


async def test_a_deadline_beyond_every_clock_is_the_last_one(stack: Stack) -> None:
    answer = await stack.client.rank("bob", candidates=IDS, k=5, explain=True)
    body = await stack.ask(answer["request_id"], answer["items"][0]["item_id"], method="native", deadline_ms=1e300)
    async with worker(stack.settings):
        assert (await stack.ended(body["explanation_id"]))["state"] == "complete"
