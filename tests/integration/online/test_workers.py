from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from aif_stream.embedded.process import free_ports
from aif_stream.index.connection import open_redis
from aif_stream.index.leases import SERVE, LeaseBook
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import activate, online_settings, open_index
from tests.stack import eventually, topics


async def answering(port: int, pids: set[int]) -> bool:
    """Whether two processes have answered. A new connection each time: the kernel deals out connections."""
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/readyz") as reply:
                if reply.status == 200:
                    pids.add((await reply.json())["pid"])
            asked = {"user_id": "ann", "candidates": ["1", "2"], "deadline_ms": 2000}
            async with session.post(f"http://127.0.0.1:{port}/v1/rank", json=asked) as reply:
                assert reply.status in (200, 503)
    except aiohttp.ClientError:
        return False
    return len(pids) == 2


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("ending", "code"), [("stop", 0), ("fall", 1)])
async def test_workers_share_a_port_have_an_address_each_and_end_together(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path, ending: str, code: int
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    (port,) = free_ports(1)
    model = small_version()
    environ = {
        **os.environ,
        "AIF_HOME": str(tmp_path),
        "AIF_KAFKA_BOOTSTRAP": broker.bootstrap,
        "AIF_REDIS_URL": redis_url,
        "AIF_INDEX_BUCKETS": str(settings.index_buckets),
        "AIF_SERVE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = (sys.executable, "-m", "aif_stream", "serve", "--workers", "2")
    pids: set[int] = set()
    async with open_index(settings, [model.name]) as index:
        await index.put(model, make_items(20))
        await activate(settings, model, 1)
        parent = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
        try:
            await eventually(lambda: answering(port, pids), what="both processes answer", within_s=120)
            async with open_redis(settings) as redis:
                urls = {lease.url for lease in await LeaseBook(redis).read(SERVE)}
            assert len(urls) == 2
            assert f"http://127.0.0.1:{port}" not in urls
            async with aiohttp.ClientSession() as session:
                for url in urls:
                    async with session.get(f"{url}/metrics") as reply:
                        text = await reply.text()
                        assert "aif_loop_lag_seconds" in text
                        assert 'process="' not in text
                async with session.get(f"http://127.0.0.1:{port}/metrics") as reply:
                    together = await reply.text()
            for process in ("1", "2"):  # whoever the kernel gave the scrape to, it tells of both
                assert f'aif_mirror_rows{{process="{process}",version="{model.name}"}} 20.0' in together
                assert f'aif_serve_process_up{{process="{process}"}} 1' in together
            assert together.count("# TYPE aif_mirror_rows ") == 1
            if ending == "stop":
                parent.send_signal(signal.SIGTERM)
            else:
                os.kill(min(pids), signal.SIGKILL)
            _, log = await asyncio.wait_for(parent.communicate(), 60)
        finally:
            if parent.returncode is None:
                parent.terminate()
                await parent.wait()
    assert parent.returncode == code, log.decode()
    assert (b"ended by itself" in log) == (ending == "fall")
    assert all(gone(pid) for pid in pids)
