"""What a roll-out is watched with: an operator at the shell, servers, a client of its own process, phases."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from rich.console import Console

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.embedded.process import ServerProcess, free_ports
from aif_stream.runtime.roles import spawn_role
from aif_stream.settings import variables
from drills.answers import read_heard
from drills.catalogue import Catalogue
from drills.stack import DrillStack

console = Console(stderr=True)


class Phases:
    """When what happened, in wall time; latencies are told apart by it."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, str]] = []

    def begin(self, name: str) -> None:
        self.marks.append((now_ms(), name))
        console.print(f"[bold]{name}[/bold]")

    def latencies(self, path: Path) -> dict[str, dict[str, float]]:
        """p50, p99 and max in ms, and the number of requests, by phase."""
        found: dict[str, list[float]] = {}
        starts = [start for start, _ in self.marks]
        for heard in read_heard(path):
            at = int(np.searchsorted(starts, heard.due_ms, side="right")) - 1
            if at >= 0:
                found.setdefault(self.marks[at][1], []).append(heard.ms)
        return {name: {"requests": len(ms), **_quantiles(ms)} for name, ms in found.items()}


def _quantiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "max_ms": round(max(values), 2)}


class Operator:
    """``aif model …`` as an operator types it."""

    def __init__(self, stack: DrillStack) -> None:
        self._stack = stack
        self._environ = {**os.environ, **environ_of(stack), "OMP_NUM_THREADS": "1"}

    async def model(self, *words: str, allowed: tuple[int, ...] = (0,)) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aif_stream", "model", *words),
            env=self._environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode(errors="replace").strip()
        code = await process.wait()
        if code not in allowed:
            raise SystemExit(f"aif model {' '.join(words)}: exit {code}\n{said}")
        return code, said

    async def activate(self, version: str) -> dict[str, Any]:
        """Through the gate; two trainings by chance may well disagree more than it allows: then in spite of it."""
        code, said = await self.model("activate", version, allowed=(0, 3))
        if code == 3:
            await self.model("activate", version, "--force", "--reason", "drill: two seeds of one recipe")
        return {"gate": "passed" if code == 0 else "fell short, forced", "said": said[-600:]}


def environ_of(stack: DrillStack) -> dict[str, str]:
    names = ("home", "kafka_bootstrap", "redis_url", "models_dir", "index_buckets", "kafka_session_timeout_ms")
    return variables(stack.settings, names)


@asynccontextmanager
async def serving(stack: DrillStack, count: int = 2) -> AsyncIterator[list[str]]:
    """``count`` servers, ready; their addresses."""
    ports = free_ports(count)
    found = []
    for port in ports:
        environ = {
            **environ_of(stack),
            "AIF_SERVE_PORT": str(port),
            "AIF_SERVE_URL": f"http://127.0.0.1:{ports[0]}",
            "AIF_EXECUTOR_THREADS": "1",
        }
        found.append(spawn_role("serve", stack.directory / f"server-{port}.log", environ))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for server, url in zip(found, urls, strict=True):
            await server.wait_ready(lambda url=url: _is_ready(url), 120)
        yield urls
    finally:
        await asyncio.gather(*(server.stop(30) for server in found))


async def _is_ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as reply:
            return reply.status == 200
    except (aiohttp.ClientError, OSError):
        return False


@asynccontextmanager
async def asking(stack: DrillStack, urls: list[str], catalogue: Catalogue, rate: float) -> AsyncIterator[Path]:
    """The client, in a process of its own."""
    asked, heard = stack.directory / "requests.json", stack.directory / "heard.jsonl"
    asked.write_bytes(msgspec.json.encode(catalogue.requests))
    client = ServerProcess(
        "client",
        [
            *(sys.executable, "-m", "drills.rank_client", "--urls", ",".join(urls)),
            *("--requests", str(asked), "--rate", str(rate), "--out", str(heard)),
        ],
        directory=Path.cwd(),
        log=stack.directory / "client.log",
        environ=dict(os.environ),
    )
    client.spawn()
    try:
        yield heard
    finally:
        await client.stop(60)


async def served(urls: list[str], version: str, requests: list[dict[str, Any]]) -> float:
    """Seconds until every server answers with the version."""
    began_s = monotonic_s()
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        for url in urls:
            while True:
                async with session.post(f"{url}/v1/rank", json=requests[0]) as reply:
                    if reply.status == 200 and (await reply.json())["model_version"] == version:
                        break
                await asyncio.sleep(0.02)
    return round(monotonic_s() - began_s, 3)
