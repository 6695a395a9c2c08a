"""KafkaCluster: the real broker comes up, comes back, and keeps what it acknowledged."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from aif_stream.embedded import kafka_files
from aif_stream.embedded.jars import KafkaJars
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import EmbeddedError
from tests.stack import eventually

DEADLINE_S = 90.0
COMMAND = [sys.executable, "-m", "aif_stream.embedded.kafka"]


@asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(bootstrap: str, topic: str, *, partitions: int = 1, replicas: int = 1, **configs: str) -> None:
    new = NewTopic(
        topic, partitions, replicas, topic_configs={name.replace("_", "."): v for name, v in configs.items()}
    )
    async with admin_of(bootstrap) as admin:
        reply = await admin.create_topics([new])
    assert [error[1] for error in reply.topic_errors] == [0]


async def read_values(bootstrap: str, topic: str) -> list[bytes]:
    """Everything up to the end offsets of now."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    async with asyncio.timeout(DEADLINE_S), consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        values: list[bytes] = []
        while [p for p, end in ends.items() if await consumer.position(p) < end]:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                values.extend(record.value for record in records if record.value is not None)
    return values


async def test_a_record_goes_through_and_carries_the_brokers_append_time(
    kafka_cluster: KafkaCluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}events"
    await create(kafka_cluster.bootstrap, topic, message_timestamp_type="LogAppendTime")
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka_cluster.bootstrap, auto_offset_reset="earliest")
    async with AIOKafkaProducer(bootstrap_servers=kafka_cluster.bootstrap) as producer, consumer:
        before_ms = int(time.time() * 1000)
        await producer.send_and_wait(topic, b"value", key=b"key", timestamp_ms=1000)
        async with asyncio.timeout(DEADLINE_S):
            record = await consumer.getone()
    assert (record.key, record.value, record.offset) == (b"key", b"value", 0)
    assert before_ms <= record.timestamp <= int(time.time() * 1000)


async def test_a_topic_that_nobody_created_is_not_invented(kafka_cluster: KafkaCluster, topic_prefix: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka_cluster.bootstrap, request_timeout_ms=2000) as producer:
        with pytest.raises(KafkaError):
            await producer.send_and_wait(f"{topic_prefix}typo", b"value")
    async with admin_of(kafka_cluster.bootstrap) as admin:
        assert f"{topic_prefix}typo" not in await admin.list_topics()


async def test_three_nodes_lose_nothing_acknowledged_when_one_is_killed(
    kafka_trio: KafkaCluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}events"
    await create(kafka_trio.bootstrap, topic, partitions=3, replicas=3, min_insync_replicas="2")
    acknowledged: list[bytes] = []
    enough = asyncio.Event()
    async with AIOKafkaProducer(
        bootstrap_servers=kafka_trio.bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=60_000
    ) as producer:

        async def send() -> None:
            while not enough.is_set():
                value = b"%d" % len(acknowledged)
                await producer.send_and_wait(topic, value, key=value)
                acknowledged.append(value)

        async def sent(count: int) -> None:
            async def reached() -> bool:
                return len(acknowledged) >= count

            await eventually(reached, what=f"{count} records acknowledged", within_s=DEADLINE_S)

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            await sent(1000)
            victim = await leader_of(kafka_trio.bootstrap, TopicPartition(topic, 0))
            await kafka_trio.kill9(victim)
            await sent(len(acknowledged) + 1000)  # among them keys of the partition that lost its leader
            enough.set()
    assert set(await read_values(kafka_trio.bootstrap, topic)) >= set(acknowledged)
    await kafka_trio.start(victim)
    assert all(kafka_trio.running(node) for node in kafka_trio.node_ids)
    assert set(await read_values(kafka_trio.bootstrap, topic)) >= set(acknowledged)


async def leader_of(bootstrap: str, partition: TopicPartition) -> int:
    async with admin_of(bootstrap) as admin:
        (described,) = await admin.describe_topics([partition.topic])
    leaders: list[Any] = [p["leader"] for p in described["partitions"] if p["partition"] == partition.partition]
    return int(leaders[0])


async def test_the_command_names_its_address_stops_on_sigterm_and_comes_back_with_its_data(
    kafka_jars: KafkaJars, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "libs").symlink_to(kafka_jars.directory)
    command = [*COMMAND, "--nodes", "1", "--dir", str(tmp_path / "node"), "--kafka-home", str(home)]
    addresses = []
    for start in range(2):
        async with asyncio.timeout(DEADLINE_S):
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            try:
                assert process.stdout is not None
                word, _, address = (await process.stdout.readline()).decode().strip().partition(" ")
                assert word == "bootstrap"
                addresses.append(address)
                if start == 0:
                    await create(address, "kept")
                    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
                        await producer.send_and_wait("kept", b"value")
                else:
                    assert await read_values(address, "kept") == [b"value"]
                process.terminate()
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
    assert addresses[0] == addresses[1]


async def test_a_free_port_that_is_taken_meanwhile_is_replaced(
    kafka_jars: KafkaJars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EmbeddedRedis() as other:
        choices = iter([[other.port, *free_ports(1)], free_ports(2)])
        monkeypatch.setattr(kafka_files, "free_ports", lambda _: next(choices))
        async with KafkaCluster(1, kafka_jars, tmp_path) as cluster:
            assert str(other.port) not in cluster.bootstrap


async def test_a_node_that_cannot_start_shows_the_reason(kafka_jars: KafkaJars, tmp_path: Path) -> None:
    cluster = KafkaCluster(1, kafka_jars, tmp_path, settings={"log.retention.hours": "many"})
    with pytest.raises(EmbeddedError, match=r"(?s)many.*log\.retention\.hours"):
        async with cluster:
            pytest.fail("it started")


async def test_a_directory_is_not_reused_by_a_cluster_of_another_size(kafka_jars: KafkaJars, tmp_path: Path) -> None:
    async with KafkaCluster(1, kafka_jars, tmp_path):
        pass
    with pytest.raises(EmbeddedError, match="holds a cluster of 1 nodes, not 3"):
        async with KafkaCluster(3, kafka_jars, tmp_path):
            pytest.fail("it started")
