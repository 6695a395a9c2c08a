"""The request log on a real broker: a range begins by a look-up of its time, not by reading the topic."""

from __future__ import annotations

import asyncio

from aif_stream.bus.reader import LogReader
from aif_stream.bus.request_log import RequestLogWriter, read_requests
from aif_stream.bus.topics import REQUESTS
from aif_stream.clock import now_ms
from aif_stream.settings import Settings
from aif_stream.telemetry import REQUESTS_LOGGED
from tests.request_log_builders import answered
from tests.stack import eventually


async def test_a_range_is_read_from_the_offset_of_its_time(settings: Settings) -> None:
    async with RequestLogWriter(settings) as log:

        async def write(numbers: range) -> None:
            before = REQUESTS_LOGGED._value.get()
            for i in numbers:
                log.offer(answered(["1", "2"], request_id=f"{i:016x}", received_ms=now_ms(), user_id=f"u{i % 40}"))

            async def acknowledged() -> bool:
                return bool(REQUESTS_LOGGED._value.get() - before == len(numbers))

            await eventually(acknowledged, what=f"{len(numbers)} answers are in Kafka")

        await write(range(100))
        await asyncio.sleep(0.05)  # the two halves lie in different milliseconds, also of the broker's clock
        between_ms = now_ms()
        await write(range(100, 200))
    found = [logged async for logged in read_requests(settings, between_ms, now_ms() + 1)]
    assert sorted(int(logged.request_id, 16) for logged in found) == list(range(100, 200))
    async with LogReader(settings, REQUESTS) as reader:
        starts = await reader.offsets_at(between_ms)
        assert sum(starts.values()) == 100
        assert await reader.offsets_at(now_ms() + 60_000) == await reader.end_offsets()
        assert await reader.offsets_at(0) == await reader.beginning_offsets()
