"""Redis Cluster for real: two primaries with half of the slots each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import pytest_asyncio
from redis.crc import key_slot

from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.connection import Redis, check_server, open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import WriteStatus
from aif_stream.index.keys import Buckets, items_key
from aif_stream.index.marks import MarkBook
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings
from tests.index_builders import LAYOUT, item, read_index, rows_for
from tests.stack import eventually

HALF = 8192


@dataclass
class Cluster:
    nodes: list[EmbeddedRedis]
    plain: list[Redis]

    @property
    def settings(self) -> Settings:
        return Settings(redis_url=self.nodes[0].url, redis_cluster=True)


@asynccontextmanager
async def nodes_of_a_cluster(count: int) -> AsyncIterator[Cluster]:
    """So many nodes that know each other; the first two have half of the slots each."""
    async with AsyncExitStack() as stack:
        nodes = []
        for port in (p for p in free_ports(20) if p < 55_000):  # the cluster bus listens at port + 10,000
            options = {"cluster-enabled": "yes", "cluster-node-timeout": "5000"}
            nodes.append(await stack.enter_async_context(EmbeddedRedis(port=port, options=options)))
            if len(nodes) == count:
                break
        plain = [await stack.enter_async_context(open_redis(Settings(redis_url=node.url))) for node in nodes]
        for redis, slots in zip(plain, (range(HALF), range(HALF, 2 * HALF)), strict=False):
            await redis.everywhere("CLUSTER", "ADDSLOTS", *slots)
        for node in nodes[1:]:
            await plain[0].everywhere("CLUSTER", "MEET", "127.0.0.1", node.port)
        known = b"cluster_known_nodes:%d" % count

        async def agreed() -> bool:
            texts = [(await redis.everywhere("CLUSTER", "INFO")).popitem()[1] for redis in plain]
            return all(b"cluster_state:ok" in text and known in text for text in texts)

        await eventually(agreed, what="all nodes see the whole cluster")
        yield Cluster(nodes, plain)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster() -> AsyncIterator[Cluster]:
    async with nodes_of_a_cluster(2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def redis(cluster: Cluster) -> AsyncIterator[Redis]:
    async with open_redis(cluster.settings) as opened:
        await opened.everywhere("FLUSHALL")
        await opened.everywhere("SCRIPT", "FLUSH")
        yield opened


async def test_the_whole_index_works_over_two_nodes(redis: Redis, cluster: Cluster) -> None:
    store = N2OStore(redis, Buckets(32))
    await store.ensure_layout()
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(300)]
    results = await store.write_live(batch, {"v1": rows_for(batch)})
    assert {result.status for result in results} == {WriteStatus.WRITTEN}
    assert [result.stored for result in results] == [write.order for write in batch]
    sizes = [(await plain.everywhere("DBSIZE")).popitem()[1] for plain in cluster.plain]
    assert min(sizes) > 20
    rows, found = await store.read_rows("v1", LAYOUT, np.arange(300, dtype=np.uint64))
    assert found.all()
    assert np.array_equal(rows, rows_for(batch))
    items, by_version = await read_index(store, ["v1"])
    assert len(items) == len(by_version["v1"]) == await store.count_rows("v1") == 300
    mirror = Mirror(LAYOUT, "v1", memory_mb=1)
    await mirror.load(store)
    assert len(mirror) == 300
    expected = [(write.key, write.order) for write in batch if store.buckets.of(write.key) == 3]
    rebuilt = rows_for([item(str(key), *order) for key, order in expected], computed_ms=9)
    assert all(await store.write_rebuilt(3, "v1", expected, rebuilt))
    await store.remove_version("v1")
    assert await store.versions() == set()


async def test_marks_profiles_and_histories_work_over_two_nodes(redis: Redis) -> None:
    marks = MarkBook(redis, ("c", "t"))
    for partition in range(10):
        assert await marks.advance(partition, None, partition)
        assert await marks.read(partition) == partition
    store = HistoryStore(redis, 10)
    await store.append({user: user.to_bytes(8, "little") * 2 for user in range(50)})
    assert [user.history["key"].tolist() for user in await store.read_many(range(50))] == [[n] for n in range(50)]


async def test_a_migrating_and_a_moved_slot_are_followed(redis: Redis, cluster: Cluster) -> None:
    buckets = Buckets(32)
    bucket = next(b for b in range(32) if key_slot(items_key(b)) < HALF)
    slot = key_slot(items_key(bucket))
    keys = [key for key in range(2_000) if buckets.of(key) == bucket][:8]
    store = N2OStore(redis, buckets)
    await store.write_live([item(str(key), 5) for key in keys], {})
    source, target = cluster.plain
    ids = [(await plain.everywhere("CLUSTER", "MYID")).popitem()[1] for plain in cluster.plain]
    await target.everywhere("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    await source.everywhere("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    for name in await _names(source, slot):
        await source.everywhere("MIGRATE", "127.0.0.1", cluster.nodes[1].port, name, 0, 5000)
    assert [found.order for found in await store.read_items(keys) if found] == [(5, 0)] * 8  # by ASK
    for plain in (target, source):
        await plain.everywhere("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    try:
        results = await store.write_live([item(str(key), 6) for key in keys], {})  # by MOVED
        assert {result.status for result in results} == {WriteStatus.WRITTEN}
        assert len(await _names(target, slot)) == 1
    finally:
        for name in await _names(target, slot):
            await target.everywhere("DEL", name)
        for plain in cluster.plain:
            await plain.everywhere("CLUSTER", "SETSLOT", slot, "NODE", ids[0])


async def test_a_cluster_without_the_setting_is_refused_with_the_mend(cluster: Cluster) -> None:
    async with open_redis(Settings(redis_url=cluster.nodes[0].url)) as plain:
        assert any(finding.fatal and "AIF_REDIS_CLUSTER" in finding.mend for finding in await check_server(plain))
        with pytest.raises(IndexRefused, match="AIF_REDIS_CLUSTER=true"):
            await N2OStore(plain, Buckets(32)).write_live([item(str(n), 5) for n in range(50)], {})


async def test_the_setting_without_a_cluster_is_refused_with_the_mend(redis_url: str) -> None:
    with pytest.raises(IndexRefused, match="AIF_REDIS_CLUSTER=false"):
        async with open_redis(Settings(redis_url=redis_url, redis_cluster=True)):
            pass


async def test_node_that_left_the_cluster_is_left() -> None:
    """Its replica has taken over; it keeps its connections and answers CLUSTERDOWN."""
    async with nodes_of_a_cluster(3) as cluster, open_redis(cluster.settings) as opened:
        first, _, third = cluster.plain
        (id_,) = (await first.everywhere("CLUSTER", "MYID")).values()
        await third.everywhere("CLUSTER", "REPLICATE", id_)
        store = N2OStore(opened, Buckets(32))
        await store.write_live([item(str(n), 5) for n in range(50)], {})
        await eventually(lambda: _info_has(third, b"master_link_status:up"), what="the replica is linked")
        await third.everywhere("CLUSTER", "FAILOVER", "TAKEOVER")
        await eventually(lambda: _info_has(first, b"role:slave"), what="the old primary is demoted")
        await first.everywhere("CLUSTER", "RESET", "HARD")

        async def written() -> bool:
            try:
                results = await store.write_live([item(str(n), 6) for n in range(50)], {})
            except IndexUnavailable:
                return False
            return {result.status for result in results} <= {WriteStatus.WRITTEN, WriteStatus.EQUAL}

        await eventually(written, what="writes go to the new primary", within_s=30)
        assert [found.order for found in await store.read_items(range(50)) if found] == [(6, 0)] * 50


async def _info_has(plain: Redis, text: bytes) -> bool:
    return text in (await plain.everywhere("INFO", "replication")).popitem()[1]


async def _names(plain: Redis, slot: int) -> list[bytes]:
    found = await asyncio.wait_for(plain.everywhere("CLUSTER", "GETKEYSINSLOT", slot, 100), 10)
    names: list[bytes] = found.popitem()[1]
    return names
