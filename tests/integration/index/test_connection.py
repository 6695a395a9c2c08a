from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import IndexRefused, IndexUnavailable, SettingsError
from aif_stream.index.connection import Redis, check_server, open_redis
from aif_stream.index.item_codec import WriteStatus
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings
from tests.index_builders import item, rows_for


def settings_of(url: str, **more: object) -> Settings:
    return Settings(redis_url=url, **more)  # type: ignore[arg-type]


async def test_a_redis_that_is_not_there_is_named_at_once() -> None:
    with pytest.raises(IndexUnavailable, match="AIF_REDIS_URL"):
        async with open_redis(settings_of("redis://127.0.0.1:1/0")):
            pass


async def test_a_url_that_is_none_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="AIF_REDIS_URL"):
        async with open_redis(settings_of("http://127.0.0.1:1")):
            pass


async def test_a_redis_that_hangs_is_unavailable_after_the_timeout_and_serves_again_after() -> None:
    async with EmbeddedRedis() as server, open_redis(settings_of(server.url, redis_timeout_s=0.3)) as redis:
        store = N2OStore(redis, Buckets(4))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(IndexUnavailable, match=r"within 0\.3 s"):
                await store.write_live([item("7", 1)], {})
            assert time.monotonic() - start < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        results = await store.write_live([item("7", 1)], {})
        assert results[0].status in (WriteStatus.WRITTEN, WriteStatus.EQUAL)


async def test_a_killed_redis_is_unavailable_and_its_successor_knows_the_scripts() -> None:
    async with EmbeddedRedis(appendfsync="always") as server, open_redis(settings_of(server.url)) as redis:
        store, marks = N2OStore(redis, Buckets(4)), MarkBook(redis, ("c", "t"))
        await store.write_live([item("7", 5)], {})
        await marks.advance(0, None, 1)
        await server.kill9()
        with pytest.raises(IndexUnavailable):
            await store.write_live([item("7", 6)], {})
        with pytest.raises(IndexUnavailable):
            await marks.read(0)
        await server.start()
        assert (await store.write_live([item("7", 4)], {}))[0].status is WriteStatus.OLDER
        assert await marks.read(0) == 1
        assert await marks.advance(0, 1, 2)


async def test_a_surviving_mark_proves_the_rows_before_it() -> None:
    """Killed at any moment: if the mark of batch n is there, so is every row up to n."""
    async with EmbeddedRedis(appendfsync="everysec") as server, open_redis(settings_of(server.url)) as redis:
        store, marks = N2OStore(redis, Buckets(4)), MarkBook(redis, ("c", "t"))
        await store.add_version("v1")

        async def work(first: int) -> None:
            expected = await marks.read(0)
            for number in range(first, 1_000_000):
                batch = [item(str(number * 8 + i), number + 1) for i in range(8)]
                await store.write_live(batch, {"v1": rows_for(batch)})
                assert await marks.advance(0, expected, number + 1)
                expected = number + 1

        for _ in range(3):
            worker = asyncio.create_task(work(await marks.read(0) or 0))
            before = await marks.read(0) or 0
            while (await marks.read(0) or 0) < before + 50:
                assert not worker.done()
            await server.kill9()
            with pytest.raises(IndexUnavailable):
                await worker
            await server.start()
            proved = await marks.read(0) or 0
            stored = await store.read_items(list(range(proved * 8)))
            assert all(found is not None for found in stored)
            assert await store.count_rows("v1") >= proved * 8


async def test_a_cancelled_caller_leaves_the_others_their_own_replies(redis: Redis) -> None:
    await redis.call("SET", "a", b"1")
    waiting = [asyncio.create_task(redis.call("GET", "a")) for _ in range(20)]
    other = [asyncio.create_task(redis.call("ECHO", b"%d" % n)) for n in range(20)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    assert await asyncio.gather(*other) == [b"%d" % n for n in range(20)]
    assert await asyncio.gather(*waiting[1::2]) == [b"1"] * 10


async def test_out_of_memory_says_the_mend_and_writes_nothing() -> None:
    async with EmbeddedRedis() as server, open_redis(settings_of(server.url)) as redis:
        store = N2OStore(redis, Buckets(4))
        await store.add_version("v1")
        await redis.everywhere("CONFIG", "SET", "maxmemory", 1)
        batch = [item("7", 1)]
        with pytest.raises(IndexUnavailable, match="raise maxmemory"):
            await store.write_live(batch, {"v1": rows_for(batch)})
        await redis.everywhere("CONFIG", "SET", "maxmemory", 0)
        assert await store.read_items([7]) == [None]
        assert await store.count_rows("v1") == 0


async def test_a_replica_is_unavailable_with_the_mend() -> None:
    async with EmbeddedRedis() as server, open_redis(settings_of(server.url)) as redis:
        await redis.everywhere("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(IndexUnavailable, match="name the primary"):
            await N2OStore(redis, Buckets(4)).write_live([item("7", 1)], {})


async def test_a_password_is_given_and_a_wrong_one_told(redis: Redis, redis_url: str) -> None:
    await redis.everywhere("ACL", "SETUSER", "aif", "on", ">secret", "allkeys", "allcommands")
    try:
        async with open_redis(settings_of(redis_url.replace("//", "//aif:secret@"))) as opened:
            assert await opened.call("ACL", "WHOAMI") == b"aif"
        with pytest.raises(IndexRefused, match="correct user and password"):
            async with open_redis(settings_of(redis_url.replace("//", "//aif:wrong@"))):
                pass
    finally:
        await redis.everywhere("ACL", "DELUSER", "aif")


async def test_a_user_without_the_rights_is_told_the_mend(redis: Redis, redis_url: str) -> None:
    await redis.everywhere("ACL", "SETUSER", "aif", "on", ">secret", "~other:*", "allcommands")
    try:
        async with open_redis(settings_of(redis_url.replace("//", "//aif:secret@"))) as opened:
            with pytest.raises(IndexRefused, match="allow this user"):
                await N2OStore(opened, Buckets(4)).write_live([item("7", 1)], {})
    finally:
        await redis.everywhere("ACL", "DELUSER", "aif")


async def test_a_unix_socket_will_do_and_more_than_its_buffers_goes_through(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    async with EmbeddedRedis(options={"unixsocket": str(path)}), open_redis(settings_of(f"unix://{path}")) as redis:
        large = bytes(4 << 20)
        echoed = await asyncio.gather(*(redis.call("ECHO", large) for _ in range(16)))
        assert all(reply == large for reply in echoed)


async def test_databases_are_kept_apart(redis_url: str) -> None:
    one, two = (redis_url.rsplit("/", 1)[0] + f"/{db}" for db in (1, 2))
    async with open_redis(settings_of(one)) as first, open_redis(settings_of(two)) as second:
        await N2OStore(first, Buckets(4)).ensure_layout()
        await N2OStore(second, Buckets(8)).ensure_layout()
        for redis in (first, second):
            await redis.call("FLUSHDB")


async def test_a_server_that_would_lose_rows_is_found() -> None:
    options = {"appendonly": "no", "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    async with EmbeddedRedis(options=options) as server, open_redis(settings_of(server.url)) as redis:
        findings = await check_server(redis)
    assert [(finding.fatal, finding.problem.partition(": ")[2].split()[0]) for finding in findings] == [
        (True, "maxmemory-policy"),
        (False, "appendonly"),
    ]


async def test_a_fit_server_has_no_findings(redis: Redis) -> None:
    assert await check_server(redis) == []
