"""What the drills of explanations share: ``aif up`` as a process, and a client that asks and follows."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from aif_stream.embedded.process import ServerProcess
from aif_stream.index.connection import open_redis
from aif_stream.index.leases import LeaseBook
from aif_stream.settings import Settings

FINAL: Final = ("complete", "failed", "cancelled", "expired")
_READY_S: Final = 300.0
_STOP_S: Final = 60.0


@dataclass(slots=True)
class System:
    """A running ``aif up``."""

    url: str
    home: Path
    http: aiohttp.ClientSession

    @property
    def addresses(self) -> dict[str, Any]:
        return tomllib.loads((self.home / "run.toml").read_text())

    async def process_of(self, role: str) -> int:
        """The id of the one process of a role, from its lease."""
        async with open_redis(Settings(redis_url=str(self.addresses["redis_url"]))) as redis:
            (lease,) = await LeaseBook(redis).read(role)
        return int(lease.id.rpartition("-")[2])


@asynccontextmanager
async def aif_up(items: int, users: int, **settings: object) -> AsyncIterator[System]:
    """``aif up`` with these settings until the context ends, its explanation worker ready; no limit for one client."""
    with tempfile.TemporaryDirectory(prefix="aif-explain-") as scratch:
        home = Path(scratch)
        chosen = {"explain_client_rate": 1e6, **settings}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AIF_")}
        environ |= {f"AIF_{name.upper()}": str(value) for name, value in chosen.items()}
        process = ServerProcess(
            "aif up",
            [*(sys.executable, "-m", "aif_stream", "up"), "--items", str(items), "--users", str(users), "--port", "0"],
            directory=Path.cwd(),
            log=home / "up.log",
            environ={**environ, "AIF_HOME": scratch, "OMP_NUM_THREADS": "1"},
        )
        process.spawn()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:
            try:
                await process.wait_ready(lambda: _ready(home, http), _READY_S)
                port = tomllib.loads((home / "run.toml").read_text())["serve_port"]
                yield System(f"http://127.0.0.1:{port}", home, http)
            finally:
                await process.stop(_STOP_S)


async def _ready(home: Path, http: aiohttp.ClientSession) -> bool:
    try:
        port = tomllib.loads((home / "run.toml").read_text())["explain_port"]
        async with http.get(f"http://127.0.0.1:{port}/readyz") as reply:
            return reply.status == 200
    except (OSError, aiohttp.ClientError):
        return False


class Asker:
    """Asks one server for explanations."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url

    async def rank(self, **body: object) -> dict[str, Any]:
        """An answer with items (a busy machine may miss its deadline: asked again), its facts kept."""
        while True:
            async with self.http.post(f"{self.url}/v1/rank", json={"explain": True, **body}) as reply:
                found: dict[str, Any] = await reply.json() if reply.status == 200 else {}
                if found.get("items") and "explain:unavailable" not in found["degraded"]:
                    return found
            await asyncio.sleep(0.1)

    async def ask(self, request_id: str, item_id: str, **more: object) -> str:
        """Asked until it is accepted (asking twice joins); the explanation's id."""
        while True:
            try:
                body = {"request_id": request_id, "item_id": item_id, **more}
                async with self.http.post(f"{self.url}/v1/explanations", json=body) as reply:
                    if reply.status == 202:
                        return str((await reply.json())["explanation_id"])
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(0.2)

    async def look(self, name: str) -> dict[str, Any]:
        """Its state, or {"state": "http …"}."""
        async with self.http.get(f"{self.url}/v1/explanations/{name}") as reply:
            found: dict[str, Any] = await reply.json() if reply.status == 200 else {"state": f"http {reply.status}"}
            return found

    async def events(self, name: str, after: str = "") -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """One connection to its SSE stream: (id, data) of every whole event."""
        headers = {"last-event-id": after} if after else {}
        async with self.http.get(f"{self.url}/v1/explanations/{name}/events", headers=headers) as reply:
            entry = ""
            async for raw in reply.content:
                field, _, value = raw.decode().rstrip("\n").partition(": ")
                if field == "id":
                    entry = value
                elif field == "data":
                    yield entry, json.loads(value)


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, max, n; of seconds in ms."""
    if not values:
        return {"n": 0}
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99)) * 1000.0
    return {
        "p50": round(float(p50), 1),
        "p95": round(float(p95), 1),
        "p99": round(float(p99), 1),
        "max": round(max(values) * 1000.0, 1),
        "n": len(values),
    }


def machine() -> dict[str, Any]:
    """On what, and how busy it was: a figure of a busy machine shows it."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_1m_5m": [round(load, 2) for load in os.getloadavg()[:2]],
    }


def tell(found: dict[str, Any], out: str) -> int:
    """Print what was found, keep it in the file ``out`` ("": nowhere); the exit code, 3 when a bound is ``broken``."""
    text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(text)
    if out:
        Path(out).write_text(text)
    return 3 if found["broken"] else 0
