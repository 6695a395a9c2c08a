"""A thousand bad records of ten kinds on Apache Kafka: grouped, mended, sent again, visible, cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import Filter, LetterState
from aif_stream.bus.redrive import Redrive, RedriveOptions
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.domain.ids import key_of
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.settings import Settings
from tests.command import aif_json
from tests.letter_builders import KINDS, mended, write_lines
from tests.nearline_builders import Stack, kafka_settings, open_stack, worker
from tests.stack import eventually

PER_KIND = 100


@pytest.fixture
async def stack(kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    settings = await kafka_settings(kafka_cluster, redis_url, tmp_path, topic_prefix)
    async with open_stack(settings) as made:
        yield made


async def _waiting(settings: Settings, at_least: int) -> None:
    async with LetterLog(settings) as letters:

        async def there() -> bool:
            await letters.refresh()
            return len(letters.book.in_state(LetterState.OPEN)) >= at_least

        await eventually(there, what=f"{at_least} open letters")


async def test_a_thousand_bad_records_of_ten_kinds_are_grouped_mended_redriven_and_visible(
    stack: Stack, tmp_path: Path
) -> None:
    names = [f"{kind}-{n}" for kind in range(len(KINDS)) for n in range(PER_KIND)]
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        makes = list(KINDS.values())
        for name in names:
            await stack.put.raw(ITEM_UPDATES, *makes[int(name.split("-")[0])](name))
        await _waiting(stack.settings, len(names))

        export = tmp_path / "letters.jsonl"
        code, view = await aif_json(stack.settings, "dlq", "ls", "--export", str(export))
        assert code == 0
        assert {(g["reason"], g["field"]): g["count"] for g in view["groups"]} == dict.fromkeys(KINDS, PER_KIND)
        assert view["open"] == view["exported"] == len(names)

        # As they are, none of them may go: the same readers would refuse them again.
        code, summary = await aif_json(stack.settings, "dlq", "redrive", "--dry-run")
        assert (code, summary["sent"], len(summary["left"])) == (3, 0, len(names))

        letters = [json.loads(line) for line in export.read_text().splitlines()]
        mends = [mended(letter, _name_of(letter)) for letter in letters]
        file = write_lines(tmp_path / "mended.jsonl", mends)
        code, summary = await aif_json(stack.settings, "dlq", "redrive", "--mend", str(file), "--rate", "0")
        assert (code, summary["selected"], summary["sent"], summary["left"]) == (0, len(names), len(names), [])

        keys = np.array([key_of(name) for name in names], dtype=np.uint64)

        async def visible() -> bool:
            _, found = await stack.store.read_rows(stack.model.name, stack.model.layout, keys)
            return bool(found.all())

        await eventually(visible, what="every mended record is a row")

    code, view = await aif_json(stack.settings, "dlq", "ls")
    assert (view["open"], view["handled"], view["groups"]) == (0, len(names), [])
    code, found = await aif_json(stack.settings, "dlq", "purge")
    assert found["waiting"] == found["behind"] == 0
    assert found["deleted"] > len(names)  # the letters and the markers
    async with LetterLog(stack.settings) as log:
        assert not log.book.entries


def _name_of(letter: dict[str, object]) -> str:
    return str(letter["key"]).removeprefix("not-")


async def test_a_record_that_fails_again_counts_its_attempts_and_is_not_looped(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.raw(ITEM_UPDATES, *KINDS[("invalid", "category")]("7"))
        await _waiting(stack.settings, 1)
        for attempts in (1, 2):
            code, summary = await aif_json(stack.settings, "dlq", "redrive", "--unchecked", "--max-attempts", "3")
            assert (code, summary["sent"]) == (0, 1), attempts
            await _waiting(stack.settings, 1)
        code, summary = await aif_json(stack.settings, "dlq", "redrive", "--unchecked", "--max-attempts", "3")
    assert (code, summary["sent"], summary["left"][0]["result"]) == (3, 0, "worn-out")
    async with LetterLog(stack.settings) as log:
        heads = [entry.head for entry in log.book.entries.values()]
    assert [head.attempts for head in heads] == [1, 2, 3]
    assert [head.redriven_from for head in heads] == [None, heads[0].number, heads[1].number]


async def test_of_many_redrives_at_once_each_letter_is_sent_by_one(stack: Stack) -> None:
    for number in range(50):
        await stack.put.raw(ITEM_UPDATES, *KINDS[("unreadable", "")](str(number)))
    async with worker(stack.settings):
        await _waiting(stack.settings, 50)
    before = len(await stack.topic(ITEM_UPDATES, 50))

    async def redrive() -> int:
        async with Redrive(stack.settings, RedriveOptions(unchecked=True)) as run:
            return (await run.run(Filter())).sent

    sent = await asyncio.gather(*(redrive() for _ in range(4)))
    assert sum(sent) == 50
    assert len(await stack.topic(ITEM_UPDATES, before + 50)) == before + 50
