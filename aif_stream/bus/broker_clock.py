"""The broker's clock beside ours. Kafka has no question for the time, but LogAppendTime answers it."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from aif_stream.bus.connection import REQUEST_DEADLINE_S, kafka_errors
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.clock import now_ms
from aif_stream.settings import Settings

# A tombstone under a name that no version can have (it holds a space): every reader of the topic skips it, and
# compaction takes it away.
_KEY: Final = b"aif clock"


class Skew(NamedTuple):
    """``ahead_ms``: how far the other clock is ahead of ours; true within ``within_ms``."""

    ahead_ms: float
    within_ms: float


async def broker_skew(settings: Settings) -> Skew | None:
    """Measure it with one record; None when the broker stamps none (the embedded one).

    Raises ``BusUnavailable``, ``TopicError``, ``PublishError`` (this user may not write).
    """
    async with Producer(settings, "aif-clock", topics=[MODEL_UPDATES]) as producer:
        # The first record pays for the producer's id and for metadata; the second one measures.
        await (await producer.send(MODEL_UPDATES, _KEY, None, []))
        before_ms = now_ms()
        position = await (await producer.send(MODEL_UPDATES, _KEY, None, []))
        after_ms = now_ms()
    async with LogReader(settings, MODEL_UPDATES) as reader:
        reader.seek({position.partition: position.offset})
        with kafka_errors(settings, "reading the clock's record"):
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                while True:
                    for record in await reader.poll():
                        if record.offset == position.offset:
                            return _skew(record.timestamp, getattr(record, "timestamp_type", 1), before_ms, after_ms)


def _skew(stamp_ms: int, kind: int, before_ms: int, after_ms: int) -> Skew | None:
    if kind != 1:  # CreateTime: our own clock
        return None
    return Skew(stamp_ms - (before_ms + after_ms) / 2, (after_ms - before_ms) / 2 + 1)
