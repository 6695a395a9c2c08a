"""Prometheus and promtool of the system. Skips with the reason where they are missing, or fails where
AIF_REQUIRE_PROMETHEUS=1 forbids skipping (``scripts/system-packages`` installs them)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from aif_stream.embedded.process import free_ports
from tests.stack import eventually

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"


def tool_or_skip(name: str) -> str:
    """``prometheus`` or ``promtool``."""
    found = shutil.which(name)
    if found is None:
        problem = f"no {name}: run scripts/system-packages as root, or install prometheus"
        if os.environ.get("AIF_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return found


def rules() -> list[dict[str, Any]]:
    """Alerts and recorded series of rules.yml."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


class Prometheus:
    """A running one."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def get(self, path: str, **query: str) -> Any:
        """``data`` of an answer; an error fails the test, naming the query."""
        async with self._http.get(f"{self.url}/api/v1/{path}", params=query) as reply:
            body = await reply.json(content_type=None)
        assert body["status"] == "success", (query, body)
        return body["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = (await self.get("query", query=expression))["result"]
        return result


@asynccontextmanager
async def scraping(directory: Path, monitor: str, retrieval: Sequence[str]) -> AsyncIterator[Prometheus]:
    """deploy/prometheus as it is, but for addresses (host:port) and the pace: a scrape each 2 s (its deadline, too)."""
    executable = tool_or_skip("prometheus")
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = text.replace("monitor:8083", monitor).replace("retrieval:8081", ", ".join(retrieval)).replace(": 5s", ": 2s")
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(RULES, directory)
    (port,) = free_ports(1)
    words = (
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(executable, *words, stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession() as http:

            async def ready() -> bool:
                assert process.returncode is None, (directory / "log").read_text()
                try:
                    async with http.get(f"http://127.0.0.1:{port}/-/ready") as reply:
                        return reply.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(ready, what="Prometheus is ready")
            yield Prometheus(f"http://127.0.0.1:{port}", http)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
