"""Producer, group consumer and log reader against the embedded broker."""

from __future__ import annotations

import asyncio

import pytest

from aif_stream.bus.connection import cluster_identity
from aif_stream.bus.consumer import GroupConsumer, Lost, Partition, Record
from aif_stream.bus.producer import Producer, RecordPosition
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, MODEL_UPDATES
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.errors import BusUnavailable, IndexUnavailable, PublishError, TopicError
from aif_stream.settings import Settings
from tests.integration.bus.conftest import Bus

HEADERS = [("ce_type", b"test"), ("other", b"\xff\x00")]


async def fill(settings: Settings, count: int, topic: str = ITEM_UPDATES) -> None:
    async with Producer(settings, "test") as producer:
        acks = [await producer.send(topic, b"%d" % n, b"v%d" % n, HEADERS) for n in range(count)]
        for ack in acks:
            await ack


async def polled(consumer: GroupConsumer, count: int, *, max_records: int = 1_000) -> list[Record]:
    """At least ``count`` records; fails after 30 s."""
    found: list[Record] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            for records in (await consumer.poll(max_records, 50)).values():
                found.extend(records)
    return found


async def test_a_record_arrives_with_key_value_and_headers_and_its_ack_says_where(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer, LogReader(bus.settings, BEHAVIORS) as reader:
        position = await (await producer.send(BEHAVIORS, b"u", b"v", HEADERS, partition=2))
        assert position == RecordPosition(BEHAVIORS, 2, 0)
        async with asyncio.timeout(30):
            while not (records := await reader.poll()):
                pass
    (record,) = records
    assert (record.topic, record.partition, record.offset) == ("t.aif.behaviors", 2, 0)
    assert (record.key, record.value, list(record.headers)) == (b"u", b"v", HEADERS)


async def test_an_ack_that_nobody_waited_for_does_not_disturb(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        ack = await producer.send(BEHAVIORS, b"u", b"v", [])
        await producer.flush()
        assert ack.done()


async def test_a_record_beyond_the_contract_is_refused_before_it_leaves(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        with pytest.raises(PublishError, match=r"too large for aif\.behaviors"):
            await producer.send(BEHAVIORS, b"u", bytes(1024 * 1024), [])
        assert (await (await producer.send(BEHAVIORS, b"u", b"next", []))).offset == 0


async def test_a_broker_that_is_away_is_waited_for_and_no_record_is_lost_or_doubled(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        await (await producer.send(MODEL_UPDATES, b"k", b"0", []))
        await bus.broker.set_down()
        acks = [await producer.send(MODEL_UPDATES, b"k", b"%d" % n, []) for n in range(1, 50)]
        with pytest.raises(PublishError, match="acknowledged nothing"):
            await producer.flush(timeout_s=0.3)
        await bus.broker.set_up()
        async with asyncio.timeout(60):
            assert [(await ack).offset for ack in acks] == list(range(1, 50))


async def test_a_group_goes_on_at_its_commit(bus: Bus) -> None:
    await fill(bus.settings, 100)
    async with GroupConsumer(bus.settings, "g", [ITEM_UPDATES]) as consumer:
        records = await polled(consumer, 100)
        half = {Partition(ITEM_UPDATES, 0): 5, Partition(ITEM_UPDATES, 1): 3}
        assert await consumer.commit(half)
        assert await consumer.committed(Partition(ITEM_UPDATES, 0)) == 5
        assert await consumer.committed(Partition(ITEM_UPDATES, 2)) is None
        assert sum((await consumer.end_offsets(consumer.assignment())).values()) == 100
    assert len({(r.partition, r.offset) for r in records}) == 100
    async with GroupConsumer(bus.settings, "g", [ITEM_UPDATES]) as consumer:
        again = await polled(consumer, 92)
        assert len(again) == 92
        assert min(r.offset for r in again if r.partition == 0) == 5


async def test_a_seek_goes_back_and_the_position_is_what_comes_next(bus: Bus) -> None:
    await fill(bus.settings, 100)
    first = Partition(ITEM_UPDATES, 0)
    async with GroupConsumer(bus.settings, "g", [ITEM_UPDATES]) as consumer:
        count = sum(record.partition == 0 for record in await polled(consumer, 100))
        assert await consumer.position(first) == count
        consumer.seek(first, 1)
        assert [record.offset for record in await polled(consumer, count - 1)] == list(range(1, count))
        assert await consumer.beginning(first) == 0


async def test_callbacks_run_before_the_first_record_and_may_seek(bus: Bus) -> None:
    await fill(bus.settings, 100)
    seen: list[frozenset[Partition]] = []

    async def on_assigned(partitions: frozenset[Partition]) -> None:
        seen.append(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition, end in ends.items():
            consumer.seek(partition, end - 1)

    consumer = GroupConsumer(bus.settings, "g", [ITEM_UPDATES], on_assigned=on_assigned)
    async with consumer:
        records = await polled(consumer, 8)
        assert len(records) == 8
        assert seen == [consumer.assignment()]
        assert len(seen[0]) == 8


async def test_what_a_callback_raises_comes_out_of_the_next_poll(bus: Bus) -> None:
    async def on_assigned(_: frozenset[Partition]) -> None:
        raise IndexUnavailable("no marks")

    async with GroupConsumer(bus.settings, "g", [ITEM_UPDATES], on_assigned=on_assigned) as consumer:
        with pytest.raises(IndexUnavailable, match="no marks"):
            await consumer.poll(10, 10)
        assert await consumer.poll(10, 10) == {}


async def test_a_paused_partition_gives_nothing_and_a_resumed_one_all(bus: Bus) -> None:
    await fill(bus.settings, 200)
    async with GroupConsumer(bus.settings, "g", [ITEM_UPDATES]) as consumer:
        (first,) = await polled(consumer, 1, max_records=1)  # the others are fetched, and not handed out yet
        paused = {p for p in consumer.assignment() if p.number % 2}
        consumer.pause(paused)
        open_ends = await consumer.end_offsets(consumer.assignment() - paused)
        records = await polled(consumer, sum(open_ends.values()) - (first.partition % 2 == 0))
        assert await consumer.poll(100, 50) == {}
        assert {record.partition % 2 for record in records} == {0}
        consumer.pause(consumer.assignment())
        assert await consumer.poll(100, 20) == {}
        consumer.resume(consumer.assignment())
        records += await polled(consumer, 199 - len(records))
        assert len({(r.partition, r.offset) for r in [first, *records]}) == 200


async def test_records_that_the_broker_dropped_are_counted_and_said(bus: Bus) -> None:
    """The embedded broker keeps 5 MiB per partition; a reader behind that has lost records."""
    lost: list[Lost] = []
    settings = bus.settings
    async with LogReader(settings, MODEL_UPDATES, on_lost=lost.append) as reader:
        plain = Settings(kafka_bootstrap=settings.kafka_bootstrap, topic_prefix="t.", compression="none")
        async with Producer(plain, "test") as producer:
            for _ in range(3):
                for n in range(20):
                    await producer.send(MODEL_UPDATES, b"%d" % n, bytes(200_000), [])
                await producer.flush()
        beginning = (await reader.beginning_offsets())[0]
        assert beginning > 0
        records: list[Record] = []
        async with asyncio.timeout(30):
            while not await reader.caught_up({0: 60}):
                records += await reader.poll()
    (loss,) = lost
    # The first ones may have been fetched before they were dropped: what was read and what was lost make the whole.
    assert loss == Lost(Partition(MODEL_UPDATES, 0), beginning - loss.records, beginning, loss.records)
    assert [record.offset for record in records] == [*range(beginning - loss.records), *range(beginning, 60)]


async def test_a_position_beyond_the_end_begins_the_log_that_is_there(bus: Bus) -> None:
    await fill(bus.settings, 20, MODEL_UPDATES)
    lost: list[Lost] = []
    async with GroupConsumer(bus.settings, "g", [MODEL_UPDATES], on_lost=lost.append) as consumer:
        consumer.seek(Partition(MODEL_UPDATES, 0), 10**6)
        assert len(await polled(consumer, 20)) == 20
    assert lost == [Lost(Partition(MODEL_UPDATES, 0), 10**6, 0, 0)]


async def test_a_log_reader_reads_every_partition_to_the_end_and_seeks(bus: Bus) -> None:
    await fill(bus.settings, 300)
    async with LogReader(bus.settings, ITEM_UPDATES) as reader:
        ends = await reader.end_offsets()
        records: list[Record] = []
        async with asyncio.timeout(30):
            while not await reader.caught_up(ends):
                records += await reader.poll()
        assert {record.value for record in records} == {b"v%d" % n for n in range(300)}
        assert await reader.positions() == ends
        reader.seek({0: ends[0] - 1})
        async with asyncio.timeout(30):
            while not (last := await reader.poll()):
                pass
        assert [record.offset for record in last] == [ends[0] - 1]


async def test_missing_topics_are_named_and_none_is_created(bus: Bus) -> None:
    other = Settings(kafka_bootstrap=bus.settings.kafka_bootstrap, topic_prefix="other.")
    for opened in (
        Producer(other, "test", topics=[ITEM_UPDATES]),
        GroupConsumer(other, "g", [ITEM_UPDATES]),
        LogReader(other, ITEM_UPDATES),
    ):
        with pytest.raises(TopicError, match=r"no topic other\.aif\.item-updates") as caught:
            async with opened:  # type: ignore[attr-defined]
                pass
        assert "aif topics apply" in caught.value.mend
    with pytest.raises(TopicError):
        await cluster_identity(other, ITEM_UPDATES)


async def test_nobody_at_the_address_is_said_with_the_address(bus: Bus) -> None:
    await bus.broker.set_down()
    for opened in (
        Producer(bus.settings, "test"),
        GroupConsumer(bus.settings, "g", [ITEM_UPDATES]),
        LogReader(bus.settings, ITEM_UPDATES),
    ):
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
            async with opened:  # type: ignore[attr-defined]
                pass


async def test_a_consumer_is_closed_outside_its_context(bus: Bus) -> None:
    async with LogReader(bus.settings, ITEM_UPDATES) as reader:
        pass
    with pytest.raises(BusUnavailable, match="closed"):
        await reader.poll()


async def test_another_broker_under_the_same_names_has_another_identity() -> None:
    seen = set()
    for _ in range(2):
        async with EmbeddedBroker({ITEM_UPDATES: 1}) as broker:
            seen.add(await cluster_identity(Settings(kafka_bootstrap=broker.bootstrap), ITEM_UPDATES))
    assert len(seen) == 2
