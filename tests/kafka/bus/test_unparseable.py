"""What aiokafka cannot parse never stops a reader, and takes no other record with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aif_stream.bus.consumer import GroupConsumer, Lost, Partition, Record, Unparseable
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.settings import Settings
from tests.kafka.bus import foreign

P0 = Partition(BEHAVIORS, 0)


async def polled(consumer: GroupConsumer, upto: int, max_records: int = 500) -> list[Record]:
    """Everything of partition 0 below ``upto``, and what the others had."""
    records: list[Record] = []
    async with asyncio.timeout(30):
        while not any(record.partition == 0 and record.offset + 1 >= upto for record in records):
            for some in (await consumer.poll(max_records, 100)).values():
                records += some
    return records


async def read(settings: Settings, lost: list[Lost]) -> list[Record]:
    records: list[Record] = []
    async with LogReader(settings, BEHAVIORS, on_lost=lost.append) as reader, asyncio.timeout(30):
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            records += await reader.poll(timeout_ms=50)
    return records


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("max_records", [500, 1])
async def test_a_header_name_that_is_not_utf8_costs_no_record_anywhere(
    settings: Settings, zstd: bool, max_records: int
) -> None:
    odd: foreign.Headers = [("ce_type", b"t"), (foreign.PLACEHOLDER, b"1"), ("none", None)]
    for partition in (0, 1, 2):
        await foreign.append(settings, BEHAVIORS, partition, foreign.batch([(b"before", [])]))
        await foreign.append(
            settings,
            BEHAVIORS,
            partition,
            foreign.batch([(b"a", []), (b"odd", odd), (b"c", [("x", b"y")])], zstd=zstd),
        )
        await foreign.append(settings, BEHAVIORS, partition, foreign.batch([(b"behind", [])]))

    async with GroupConsumer(settings, "g", [BEHAVIORS]) as consumer:
        records: list[Record] = []
        async with asyncio.timeout(30):
            while len(records) < 15:
                for some in (await consumer.poll(max_records, 100)).values():
                    assert len(some) <= max_records
                    records += some
        assert await consumer.poll(10, 100) == {}
    lost: list[Lost] = []
    for found in (records, await read(settings, lost)):
        for partition in (0, 1, 2):
            mine = [record for record in found if record.partition == partition]
            assert [record.offset for record in mine] == [0, 1, 2, 3, 4]
            assert [record.value for record in mine] == [b"before", b"a", b"odd", b"c", b"behind"]
            assert mine[2].headers == (("ce_type", b"t"), ("caf\\xe9-\\xff\\xfe\\x80", b"1"), ("none", None))
            assert mine[3].headers == (("x", b"y"),)
            assert {record.key for record in mine} == {b"k"}
            # Append time, as of every other record: of the neighbours that aiokafka read.
            assert mine[0].timestamp <= mine[2].timestamp <= mine[4].timestamp
    assert lost == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (foreign.broken_crc, "CRC"),
        (foreign.broken_count, "CRC"),
        (foreign.unknown_codec, "compression 7"),
        (foreign.not_zstd, "DecompressionError"),
    ],
)
async def test_a_batch_that_the_disk_spoilt_is_put_aside_and_reading_goes_on_behind_it(
    settings: Settings, kafka_cluster: KafkaCluster, damage: Callable[[bytes], bytes], problem: str
) -> None:
    await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"a", []), (b"b", [])]))
    spoilt = await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"c", []), (b"d", [])]))
    await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"e", []), (b"f", [])]))
    node_dir = kafka_cluster.log(1).parent
    foreign.on_disk(node_dir, settings.topic_prefix + BEHAVIORS, 0, spoilt, damage)

    async with GroupConsumer(settings, "g", [BEHAVIORS]) as consumer, Producer(settings, "test") as producer:
        records = await polled(consumer, 6)
        (unparseable,) = (record for record in records if isinstance(record, Unparseable))
        assert [record.value for record in records if record is not unparseable] == [b"a", b"b", b"e", b"f"]
        assert (unparseable.first_offset, unparseable.offset) == (2, 3)
        assert problem in unparseable.problem
        await DeadLetters(settings, producer).put(unparseable, reason="unparseable", problem=unparseable.problem)
        await consumer.commit({P0: unparseable.offset + 1})
    async with LogReader(settings, DEAD_LETTERS) as reader, asyncio.timeout(30):
        while not (letters := await reader.poll()):
            pass
    assert b"c" in (letters[0].value or b"")
    assert dict(letters[0].headers)["aif_offset"] == b"3"

    async with GroupConsumer(settings, "g", [BEHAVIORS]) as consumer:  # whoever comes next begins behind it
        assert [record.value for record in await polled(consumer, 6)] == [b"e", b"f"]
    lost: list[Lost] = []
    assert [record.value for record in await read(settings, lost)] == [b"a", b"b", b"e", b"f"]
    assert lost == [Lost(P0, 2, 4, 2)]


async def test_a_spoilt_batch_at_the_log_s_end_is_put_aside_once_and_what_is_appended_later_is_read(
    settings: Settings, kafka_cluster: KafkaCluster
) -> None:
    await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"a", [])]))
    spoilt = await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"b", []), (b"c", [])]))
    name = settings.topic_prefix + BEHAVIORS
    foreign.on_disk(kafka_cluster.log(1).parent, name, 0, spoilt, foreign.broken_crc)
    async with GroupConsumer(settings, "g", [BEHAVIORS]) as consumer:
        records = await polled(consumer, 3)
        assert [(type(record), record.offset) for record in records[1:]] == [(Unparseable, 2)]
        await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"d", [])]))
        assert [record.value for record in await polled(consumer, 4)] == [b"d"]


async def test_a_paused_partition_gives_its_spoilt_batch_after_the_pause_and_a_seek_forgets_it(
    settings: Settings, kafka_cluster: KafkaCluster
) -> None:
    await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"a", [])]))
    spoilt = await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"b", [])]))
    await foreign.append(settings, BEHAVIORS, 0, foreign.batch([(b"c", [])]))
    name = settings.topic_prefix + BEHAVIORS
    foreign.on_disk(kafka_cluster.log(1).parent, name, 0, spoilt, foreign.broken_crc)
    async with GroupConsumer(settings, "g", [BEHAVIORS]) as consumer:
        assert [record.value for record in await polled(consumer, 1)] == [b"a"]
        consumer.pause([P0])
        assert await consumer.poll(10, 200) == {}
        consumer.resume([P0])
        assert isinstance((await polled(consumer, 2))[0], Unparseable)
        consumer.seek(P0, 0)
        assert [record.value for record in await polled(consumer, 1)] == [b"a"]
        consumer.seek(P0, 2)
        assert [record.value for record in await polled(consumer, 3)] == [b"c"]
