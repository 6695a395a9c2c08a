"""What only a real broker shows: append time, rebalances, refusals for good, retention, growth, a broker that dies."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from aif_stream.bus import admin
from aif_stream.bus.bulk import BulkWriter
from aif_stream.bus.connection import open_client
from aif_stream.bus.consumer import GroupConsumer, Partition, Record
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS, ITEM_UPDATES, MODEL_UPDATES, N2O_ROWS, load_topics
from aif_stream.bus.wire import IncrementalAlterConfigs
from aif_stream.clock import now_ms
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.errors import PublishError
from aif_stream.settings import Settings
from tests.stack import eventually, unique_prefix

SPECS = load_topics()


async def read_all(settings: Settings, topic: str) -> list[Record]:
    records: list[Record] = []
    async with LogReader(settings, topic) as reader, asyncio.timeout(60):
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            records += await reader.poll()
    return records


async def test_the_timestamp_of_a_record_is_the_broker_s_whatever_its_event_time(settings: Settings) -> None:
    before = now_ms()
    async with EventPublisher(settings) as publisher:
        await (await publisher.item(1, category="c", event_time_ms=5))
    (record,) = await read_all(settings, ITEM_UPDATES)
    assert before - 1_000 <= record.timestamp <= now_ms() + 1_000


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_every_compression_is_read_back(settings: Settings, compression: str) -> None:
    async with EventPublisher(replace(settings, compression=compression)) as publisher:
        lines = [b'{"item_id":%d,"category":"c"}' % n for n in range(5_000)]
        assert (await publisher.publish_lines("items", lines)).acknowledged == 5_000
    assert sorted(record.value or b"" for record in await read_all(settings, ITEM_UPDATES)) == sorted(lines)


async def test_after_a_refusal_for_good_the_next_record_is_taken(settings: Settings) -> None:
    """A refused batch uses up its sequence numbers; without a new producer all later ones would be refused too."""
    async with open_client(settings) as client:
        lower = IncrementalAlterConfigs(settings.topic_prefix + MODEL_UPDATES, {"max.message.bytes": "10000"})
        await client.send(client.cluster.controller.nodeId, lower)
    async with Producer(settings, "test") as producer:
        await (await producer.send(MODEL_UPDATES, b"k", b"first", []))

        async def refused() -> str:  # the new limit reaches the log a moment after it was acknowledged
            try:
                await (await producer.send(MODEL_UPDATES, b"k", os.urandom(50_000), []))
            except PublishError as error:
                return str(error)
            return ""

        assert "MessageSizeTooLarge" in await eventually(refused, what="a refusal for good")
        for n in range(3):
            await (await producer.send(MODEL_UPDATES, b"k", b"next %d" % n, []))
    values = [record.value for record in await read_all(settings, MODEL_UPDATES)]
    assert values[-3:] == [b"next 0", b"next 1", b"next 2"]


async def test_a_record_that_compressed_to_little_is_a_dead_letter_cut_or_whole(settings: Settings) -> None:
    """Ten megabytes of zeros pass a topic's limit compressed; their dead letter must pass too."""
    limit = str(64 * 1024 * 1024)
    big = {BEHAVIORS: replace(SPECS[BEHAVIORS], config={**SPECS[BEHAVIORS].config, "max.message.bytes": limit})}
    await admin.apply(settings, big)
    async with Producer(settings, "test") as producer:
        producer._limits.clear()  # a foreign producer knows nothing of our contracts
        await (await producer.send(BEHAVIORS, b"u", bytes(10_000_000), []))
        await (await producer.send(BEHAVIORS, b"u", os.urandom(10_000_000), []))
    async with Producer(settings, "test") as producer:
        letters = DeadLetters(settings, producer)
        for record in await read_all(settings, BEHAVIORS):
            await letters.put(record, reason="unreadable", problem="not JSON")
    found = await read_all(settings, DEAD_LETTERS)
    assert [dict(letter.headers)["aif_truncated"] for letter in found] == [b"10000000"] * 2
    assert all(len(letter.value or b"") > 1_000_000 for letter in found)


async def test_two_members_share_the_partitions_and_the_survivor_takes_all(settings: Settings) -> None:
    moves: list[tuple[str, str, int]] = []

    def member(name: str) -> GroupConsumer:
        async def revoked(partitions: frozenset[Partition]) -> None:
            moves.append((name, "-", len(partitions)))

        async def assigned(partitions: frozenset[Partition]) -> None:
            moves.append((name, "+", len(partitions)))

        return GroupConsumer(settings, "g", [ITEM_UPDATES], on_revoked=revoked, on_assigned=assigned)

    async def until(a: GroupConsumer, mine: int) -> None:
        while len(a.assignment()) != mine:
            await a.poll(100, 50)

    async with asyncio.timeout(90), member("a") as a:
        await until(a, 8)
        async with member("b") as b:
            await asyncio.gather(until(a, 4), until(b, 4))
            assert a.assignment() & b.assignment() == frozenset()
            assert a.assignment() | b.assignment() == {Partition(ITEM_UPDATES, n) for n in range(8)}
            stale = next(iter(a.assignment()))
        await until(a, 8)
        assert await a.commit({stale: 0})
    assert moves[:2] == [("a", "+", 8), ("a", "-", 8)]
    assert ("b", "+", 4) in moves


async def test_a_commit_for_a_partition_that_went_to_another_member_is_refused_and_not_an_error(
    settings: Settings,
) -> None:
    async with asyncio.timeout(90), GroupConsumer(settings, "g", [ITEM_UPDATES]) as a:
        before = a.assignment()
        async with GroupConsumer(settings, "g", [ITEM_UPDATES]) as b:
            while len(b.assignment()) != 4 or len(a.assignment()) != 4:
                await asyncio.gather(a.poll(10, 50), b.poll(10, 50))
            moved = next(iter(before - a.assignment()))
            assert not await a.commit({moved: 7})
            assert await b.committed(moved) is None


async def test_records_that_retention_dropped_are_counted(settings: Settings) -> None:
    from aif_stream.bus.consumer import Lost

    lost: list[Lost] = []
    async with Producer(settings, "test") as producer:
        for n in range(10):
            await (await producer.send(BEHAVIORS, b"u", b"%d" % n, [], partition=0))
    async with GroupConsumer(settings, "g", [BEHAVIORS], on_lost=lost.append) as consumer:
        await consumer.commit({Partition(BEHAVIORS, 0): 2})
    await delete_before(settings, BEHAVIORS, 0, 6)
    records: list[Record] = []
    async with asyncio.timeout(60), GroupConsumer(settings, "g", [BEHAVIORS], on_lost=lost.append) as consumer:
        while len(records) < 4:
            for some in (await consumer.poll(100, 100)).values():
                records += some
    assert lost == [Lost(Partition(BEHAVIORS, 0), 2, 6, 4)]
    assert [record.offset for record in records] == [6, 7, 8, 9]


async def delete_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await client.start()
    try:
        where = TopicPartition(settings.topic_prefix + topic, partition)
        await client.delete_records({where: RecordsToDelete(before_offset=offset)})
    finally:
        await client.close()


async def test_a_log_reader_finds_partitions_that_are_added_while_it_reads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aif_stream.bus.reader._GROWTH_CHECK_MS", 10)
    monkeypatch.setattr("aif_stream.bus.connection.METADATA_MAX_AGE_MS", 200)
    async with LogReader(settings, N2O_ROWS) as reader, asyncio.timeout(90):
        assert len(reader.partitions()) == 4
        await admin.apply(settings, {N2O_ROWS: replace(SPECS[N2O_ROWS], partitions=6)})
        async with Producer(settings, "test") as producer:
            for n in range(6):
                await (await producer.send(N2O_ROWS, None, b"%d" % n, [], partition=n))
        seen: set[int] = set()
        while seen != set(range(6)):
            seen |= {record.partition for record in await reader.poll()}


async def test_killing_one_broker_of_three_under_load_loses_no_acknowledged_record(kafka_trio: KafkaCluster) -> None:
    settings = Settings(kafka_bootstrap=kafka_trio.bootstrap, topic_prefix=unique_prefix())
    await admin.apply(settings, load_topics())
    assert {d.replication for d in await admin.describe_topics(settings, SPECS)} == {3}
    acknowledged = 0

    def on_batch(records: int, problem: PublishError | None) -> None:
        nonlocal acknowledged
        assert problem is None
        acknowledged += records

    async with asyncio.timeout(200), Producer(settings, "test") as producer:
        writer = BulkWriter(producer, ITEM_UPDATES, on_batch)
        await writer.open()
        for n in range(20_000):
            await writer.append(b"%d" % n, b"v" * 300, [])
            if n == 10_000:
                await kafka_trio.kill9(2)
        await writer.push()
        while not await writer.drain(1.0):
            pass
    assert acknowledged == 20_000
    assert len({record.key for record in await read_all(settings, ITEM_UPDATES)}) == 20_000
    await kafka_trio.start(2)
