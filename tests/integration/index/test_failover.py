"""One address, two servers: commands go to the one that is the primary now."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from aif_stream.domain.ids import key_of
from aif_stream.errors import IndexUnavailable
from aif_stream.index import reading
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets, items_key
from aif_stream.index.leases import NEARLINE, LeaseBook, held_lease
from aif_stream.index.store import N2OStore
from aif_stream.index.wire import Wire, pack, parse_address
from aif_stream.settings import Settings
from tests.index_builders import item
from tests.redis_pair import address_of, redis_pair
from tests.stack import eventually


async def _port(redis: Redis) -> int:
    return int((await redis.call("CONFIG", "GET", "port"))[1])


async def test_reader_leaves_a_demoted_primary() -> None:
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        assert await _port(redis) == pair.first.port
        await pair.fail_over()

        async def seen() -> bool:
            return "is a replica" in redis.problem

        await eventually(seen, what="the demotion is seen without a write")
        pair.address.target = pair.second.port

        async def moved() -> bool:
            return await _port(redis) == pair.second.port and not redis.problem

        await eventually(moved, what="reads come from the new primary")


async def test_write_is_taken_by_the_new_primary() -> None:
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        store = N2OStore(redis, Buckets(4))
        await store.write_live([item("7", 1)], {})
        await pair.fail_over()
        pair.address.target = pair.second.port

        async def written() -> bool:
            try:
                await store.write_live([item("7", 2)], {})
            except IndexUnavailable:
                return False
            return await _port(redis) == pair.second.port

        await eventually(written, what="the write succeeds")


async def test_server_that_loads_its_data_is_left() -> None:
    """A demoted primary that takes over the new one's data set answers LOADING on the connections that it keeps."""
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        await pair.ask(pair.second, "REPLICAOF", "NO", "ONE")
        await pair.ask(pair.second, "DEBUG", "POPULATE", 10_000, "filler", 1000)  # it answers after each 2 MB
        await pair.ask(pair.second, "CONFIG", "SET", "rdbcompression", "no")
        await pair.ask(pair.second, "DEBUG", "CHANGE-REPL-ID")  # so that the whole data set is sent
        await pair.ask(pair.first, "CONFIG", "SET", "key-load-delay", 500)  # µs: 5 s in all
        await pair.demote()

        async def loading() -> bool:
            return "LOADING" in redis.problem

        await eventually(loading, what="the server loads")
        pair.address.target = pair.second.port

        async def moved() -> bool:
            return not redis.problem and await _port(redis) == pair.second.port

        await eventually(moved, what="commands go to the new primary")


async def test_batches_under_way_keep_their_connection(redis_url: str) -> None:
    wire = Wire(parse_address(redis_url), 30.0)
    try:
        await wire.execute([pack("PING")])
        blocked = asyncio.create_task(wire.execute([pack("BLPOP", "aif:test", 20)]))

        async def left() -> bool:
            wire.redial()
            return wire._link is None

        await eventually(left, what="a connection that is old enough is left")
        await wire.execute([pack("RPUSH", "aif:test", "a")])
        assert await blocked == [[b"aif:test", b"a"]]
        assert wire.links == 2
    finally:
        wire.close()


async def test_blocked_read_follows_a_demotion() -> None:
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        blocked = asyncio.create_task(redis.call("XREAD", "BLOCK", 4000, "STREAMS", "aif:test", "$"))
        await asyncio.sleep(0)
        await pair.fail_over()
        with pytest.raises(IndexUnavailable, match="became a replica"):
            await blocked


async def test_scan_does_not_go_on_with_another_servers_cursor() -> None:
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        store = N2OStore(redis, Buckets(1))
        await store.write_live([item(str(n), 1) for n in range(4000)], {})
        await pair.synced()
        parts = reading.scan_hash(redis, items_key(0))
        await anext(parts)
        await pair.fail_over()
        pair.address.target = pair.second.port

        async def moved() -> bool:
            return await _port(redis) == pair.second.port

        await eventually(moved, what="commands go to the new primary")
        with pytest.raises(IndexUnavailable, match="read again"):
            async for _ in parts:
                pass
        fields = [field async for part, _ in reading.scan_hash(redis, items_key(0)) for field in part]
        assert {int.from_bytes(field, "little") for field in fields} == {key_of(str(n)) for n in range(4000)}


async def test_name_with_two_addresses_leads_to_the_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    async with redis_pair() as pair, address_of(pair.second.port, host="127.0.0.2", port=pair.first.port):
        resolve = socket.getaddrinfo

        def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host != "redis.test":
                return resolve(host, port, *args, **kwargs)
            return [info for each in ("127.0.0.2", "127.0.0.1") for info in resolve(each, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        url = f"redis://redis.test:{pair.first.port}/0"
        async with open_redis(Settings(redis_url=url)) as redis:
            assert await _port(redis) == pair.first.port
        await pair.fail_over()
        async with open_redis(Settings(redis_url=url)) as redis:
            assert await _port(redis) == pair.second.port


async def test_lease_says_why_it_cannot_be_written() -> None:
    async with redis_pair() as pair:
        settings = Settings(redis_url=pair.address.url)
        async with held_lease(settings, NEARLINE, dict) as unkept, open_redis(settings) as redis:

            async def there() -> bool:
                return bool(await LeaseBook(redis).read(NEARLINE)) and not unkept()

            await eventually(there, what="the lease is written")
            await pair.ask(pair.first, "CONFIG", "SET", "maxmemory", 1)

            async def said() -> bool:
                return "maxmemory" in " ".join(unkept())

            await eventually(said, what="the lease cannot be written")
            await pair.ask(pair.first, "CONFIG", "SET", "maxmemory", 0)
            await eventually(there, what="the lease is written again")


async def test_history_is_whole_after_a_failover_under_load() -> None:
    async with redis_pair() as pair, open_redis(Settings(redis_url=pair.address.url)) as redis:
        store = HistoryStore(redis, 1000)
        done = 0

        async def append() -> None:
            nonlocal done
            while done < 400:
                try:
                    await store.append({1: b"".join(n.to_bytes(8, "little") * 2 for n in range(1, done + 2))})
                except IndexUnavailable:
                    await asyncio.sleep(0.02)
                else:
                    done += 1

        appending = asyncio.create_task(append())

        async def halfway() -> bool:
            return done > 100

        await eventually(halfway, what="some are written")
        await pair.fail_over()
        pair.address.target = pair.second.port
        await asyncio.wait_for(appending, 60)
        assert (await store.read(1)).history["key"].tolist() == list(range(1, 401))
