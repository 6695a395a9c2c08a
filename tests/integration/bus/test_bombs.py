"""Batches that would decompress to hundreds of MB: set aside by offset; every record around them is read."""

from __future__ import annotations

import asyncio
from collections import Counter

from aif_stream.bus.consumer import GroupConsumer, Lost, Partition, Record, Unparseable
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS
from tests import bombs
from tests.integration.bus.conftest import Bus
from tests.kafka.bus import foreign

P0 = Partition(BEHAVIORS, 0)
KINDS = {"zstd": 600, "zstd frames": 600, "gzip": 120, "gzip members": 120, "lz4": 120, "lz4 claims less": 120}


async def between_bombs(bus: Bus) -> tuple[list[bytes], list[int]]:
    """Values of good records before, between and behind one bomb of each kind, and the bombs' offsets."""
    good, bad = [], []
    for kind, size_mib in KINDS.items():
        values = [f"{kind} {number}".encode() for number in range(20)]
        await foreign.append(bus.settings, BEHAVIORS, 0, foreign.batch([(value, []) for value in values], zstd=True))
        bad.append(await foreign.append(bus.settings, BEHAVIORS, 0, bombs.bomb(kind, size_mib)))
        good += values
    await foreign.append(bus.settings, BEHAVIORS, 0, foreign.batch([(b"last", [])]))
    return [*good, b"last"], bad


async def test_batch_that_expands_too_far_is_set_aside(bus: Bus) -> None:
    good, bad = await between_bombs(bus)
    records: list[Record] = []
    async with GroupConsumer(bus.settings, "g", [BEHAVIORS]) as consumer, asyncio.timeout(60):
        while not records or records[-1].value != b"last":
            for some in (await consumer.poll(500, 50)).values():
                records += some
    aside = [record for record in records if isinstance(record, Unparseable)]
    assert [record.value for record in records if not isinstance(record, Unparseable)] == good
    assert [(record.first_offset, record.offset) for record in aside] == [(offset, offset) for offset in bad]
    assert all("more than 32 MiB (AIF_KAFKA_BATCH_MB)" in record.problem for record in aside)
    assert [len(record.value) < 2 * bombs.MIB for record in aside] == [True] * len(KINDS)


async def test_reader_counts_a_batch_that_expands_too_far(bus: Bus) -> None:
    good, bad = await between_bombs(bus)
    lost: list[Lost] = []
    values: list[bytes | None] = []
    async with LogReader(bus.settings, BEHAVIORS, on_lost=lost.append) as reader, asyncio.timeout(60):
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            values += [record.value for record in await reader.poll(timeout_ms=50)]
    assert values == good
    assert lost == [Lost(P0, offset, offset + 1, 1) for offset in bad]


async def test_one_poll_takes_no_more_than_one_bound(bus: Bus) -> None:
    """Batches that each keep the bound do not add up in one poll."""
    one = bombs.bomb("zstd", 24)
    for partition in (0, 1, 2):
        for _ in range(4):
            await foreign.append(bus.settings, BEHAVIORS, partition, one)
    counts: Counter[int] = Counter()
    async with GroupConsumer(bus.settings, "g", [BEHAVIORS]) as consumer, asyncio.timeout(60):
        while counts.total() < 12:
            found = await consumer.poll(500, 50)
            assert sum(len(record.value or b"") for some in found.values() for record in some) <= 2 * 32 * bombs.MIB
            counts.update(partition.number for partition, some in found.items() for _ in some)
    assert counts == {0: 4, 1: 4, 2: 4}
