"""The watch on groups: what it looks at may be a record that the client library cannot parse."""

from __future__ import annotations

import asyncio

from aif_stream.bus.lag_watch import LagWatch
from aif_stream.bus.topics import BEHAVIORS
from tests.integration.bus.conftest import Bus
from tests.kafka.bus import foreign


async def test_lag_is_known_where_the_next_record_does_not_parse(bus: Bus) -> None:
    odd: foreign.Headers = [(foreign.PLACEHOLDER, b"1"), ("none", None)]  # a header name that is not UTF-8
    broken = foreign.broken_crc(foreign.batch([(b"broken", [])]))
    for partition, data in enumerate((foreign.batch([(b"odd", odd)]), foreign.batch([(b"good", [])]), broken)):
        await foreign.append(bus.settings, BEHAVIORS, partition, data)
    async with LagWatch(bus.settings, {"g": BEHAVIORS}) as watch, asyncio.timeout(30):
        for _ in range(2):
            places = {place.partition.number: place for place in await watch.look()}
            assert [places[number].next_ms is None for number in (0, 1, 2)] == [False] * 3
            assert [places[number].end for number in (0, 1, 2)] == [1, 1, 1]
