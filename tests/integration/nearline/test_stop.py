"""A worker whose rebuild computes ends in time: on SIGTERM, when a lane dies, when it is killed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from aif_stream.embedded.process import free_ports
from aif_stream.nearline import rollout
from aif_stream.settings import variables
from tests.command import SHARED
from tests.nearline_builders import T0_MS, Stack, artefact
from tests.processes import children, command, ended, ends
from tests.stack import eventually

# What the process itself allows is 10 s (15 s for a lane that dies); the rest is for a machine that is busy.
SLACK_S = 5.0
BUG = """
from aif_stream.nearline.users import UsersWork

def decode(self, records):
    raise ZeroDivisionError("planted")

UsersWork.decode = decode
"""


@dataclass
class Worker:
    """``aif nearline`` whose rebuild's process stands still: as one that computes for hours at nice 19."""

    process: Process
    child: int
    log: Path


@asynccontextmanager
async def computing(stack: Stack, home: Path, *, plant: str = "") -> AsyncIterator[Worker]:
    environ = {**os.environ, **variables(stack.settings, (*SHARED, "metrics_port", "kafka_session_timeout_ms"))}
    log = home / "worker.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"{plant}\nfrom aif_stream.cli import main\nmain()", "nearline"),
            env={**environ, "OMP_NUM_THREADS": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stderr=out,
        )
    child = 0
    try:
        for number in range(50):
            await stack.put.item(str(number), T0_MS)
        await rollout.publish_version(stack.settings, artefact(home / "artefact", stack.model))

        async def begun() -> int | None:
            assert process.returncode is None
            return next((pid for pid in children(process.pid) if "row_process" in command(pid)), None)

        child = await eventually(begun, within_s=240.0, what="the rebuild's process, at the lowest priority")
        os.kill(child, signal.SIGSTOP)
        yield Worker(process, child, log)
    finally:
        for pid in (process.pid, child):
            if pid and not ended(pid):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def test_sigterm_ends_a_worker_whose_rebuild_computes(stack: Stack, tmp_path: Path) -> None:
    async with computing(stack, tmp_path) as worker:
        worker.process.send_signal(signal.SIGTERM)
        await ends(worker.process, 10 + SLACK_S)
        assert worker.process.returncode == 0
        assert ended(worker.child)


async def test_killed_worker_leaves_no_row_process(stack: Stack, tmp_path: Path) -> None:
    async with computing(stack, tmp_path) as worker:
        worker.process.kill()

        async def gone() -> bool:
            return ended(worker.child)

        await eventually(gone, what="the rebuild's process has ended", within_s=20)


async def test_dead_lane_ends_the_worker_with_its_cause(stack: Stack, tmp_path: Path) -> None:
    stack.settings = dataclasses.replace(stack.settings, metrics_port=free_ports(1)[0])
    async with computing(stack, tmp_path, plant=BUG) as worker, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{stack.settings.metrics_port}/livez"
        told: list[str] = []

        async def fails() -> bool:
            try:
                async with http.get(url) as reply:
                    told.append(await reply.text())
                    return reply.status == 503
            except aiohttp.ClientError:
                return bool(told) and worker.process.returncode is not None

        await stack.put.user("ada", T0_MS, {"city": "oslo"})
        watching = asyncio.create_task(eventually(fails, what="/livez fails"))
        await ends(worker.process, 15 + SLACK_S)
        await watching
        assert worker.process.returncode == 1
        assert "ZeroDivisionError: planted" in await asyncio.to_thread(worker.log.read_text)
        assert "users died: ZeroDivisionError: planted" in told[-1]
        assert ended(worker.child)
