"""The broker measures compressed batches: a foreign producer can bring a record that nobody could publish again."""

from __future__ import annotations

import gzip
from pathlib import Path

from aiokafka import AIOKafkaProducer

from aif_stream.bus.connection import kafka_kwargs
from aif_stream.bus.events import event_headers
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES
from aif_stream.domain.events import EventType
from tests.nearline_builders import T0_MS, Stack, item_line, worker


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
