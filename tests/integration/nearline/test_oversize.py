"""The broker measures compressed batches: a foreign producer can bring a record that nobody could publish again."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

from aiokafka import AIOKafkaProducer

from aif_stream.bus.connection import kafka_kwargs
from aif_stream.bus.events import event_headers
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES
from aif_stream.domain.events import EventType
from tests import bombs
from tests.kafka.bus import foreign
from tests.nearline_builders import T0_MS, Stack, item_line, worker
from tests.stack import eventually


async def test_a_huge_record_that_compresses_well_is_a_dead_letter_and_a_late_event_after_it_stops_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    huge = item_line("huge", text="x" * 3_000_000)
    assert len(gzip.compress(huge)) < 100_000
    headers = event_headers(EventType.ITEM_UPSERTED, "1", "foreign", T0_MS)
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        async with AIOKafkaProducer(
            **kafka_kwargs(stack.settings), max_request_size=len(huge) * 2, compression_type="gzip"
        ) as foreign:
            sent = await foreign.send_and_wait(ITEM_UPDATES, huge, key=b"huge", headers=headers)
        # Had the huge one been stored, this late event would have it published again, which no topic would take.
        offset = await stack.put.item("huge", T0_MS - 1000)
        await stack.has("huge", T0_MS - 1000, offset)
        (letter,) = await stack.topic(DEAD_LETTERS, 1)
    found = {name: value.decode() for name, value in letter.headers}
    assert (found["aif_reason"], found["aif_offset"]) == ("too-large", str(sent.offset))
    assert found["aif_truncated"] == str(len(huge))


async def test_bombs_between_good_events_cost_no_good_event(stack: Stack, tmp_path: Path) -> None:
    """10 KB that stand for 600 MB, one after every twentieth update: all updates are stored, all bombs are letters."""
    bomb = bombs.bomb("zstd", 600)
    assert len(bomb) < 20_000
    names = [f"item-{number}" for number in range(200)]
    aside: list[tuple[str, str]] = []

    async def good() -> None:
        for name in names:
            await stack.put.item(name, T0_MS)

    async def bad() -> None:
        for number in range(10):
            partition = number % 3
            offset = await foreign.append(stack.settings, ITEM_UPDATES, partition, bomb)
            aside.append((str(partition), str(offset)))

    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        await asyncio.gather(good(), bad())

        async def stored() -> bool:
            return all(item is not None for item in await stack.items(*names))

        await eventually(stored, what=f"{len(names)} items are in Redis")
        letters = [
            {name: value.decode() for name, value in letter.headers} for letter in await stack.topic(DEAD_LETTERS, 10)
        ]
    assert {letter["aif_reason"] for letter in letters} == {"unparseable"}
    assert sorted((letter["aif_partition"], letter["aif_offset"]) for letter in letters) == sorted(aside)
    assert "more than 32 MiB (AIF_KAFKA_BATCH_MB)" in letters[0]["aif_problem"]
