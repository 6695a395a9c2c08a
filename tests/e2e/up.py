"""``aif up`` as a process: started, asked as a user asks it, and found with all its children."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

READY_S = 280  # seconds: torch in three processes, a training, a seed; 15 when nothing else runs


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@dataclass(slots=True)
class Up:
    """A running ``aif up`` and what it said."""

    home: Path
    url: str
    process: asyncio.subprocess.Process
    err: Path
    http: aiohttp.ClientSession
    ready_line: str

    async def stop(self) -> None:
        """SIGTERM, as a person stops it."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await self.process.wait() == 0, self.err.read_text()

    async def kill9(self) -> None:
        """SIGKILL to every process of it at once, Redis included."""
        for pid in family(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.process.wait()

    async def aif(self, *words: str) -> Ended:
        """Another verb, which knows nothing but AIF_HOME."""
        return await ended(self.home, *words)

    async def json(self, *words: str) -> Any:
        """The one JSON document that a verb prints."""
        ended = await self.aif(*words, "--json")
        assert ended.code == 0, ended
        return json.loads(ended.out)

    async def rank(self, **body: Any) -> dict[str, Any]:
        async with self.http.post(f"{self.url}/v1/rank", json=body) as reply:
            assert reply.status == 200, await reply.text()
            answer: dict[str, Any] = await reply.json()
            return answer

    async def score(self, item: str) -> float | None:
        """Of one item for user 1; None when it is missing."""
        answer = await self.rank(user_id="1", candidates=[item])
        assert answer["coverage"]["candidates"] == 1
        return answer["items"][0]["score"] if answer["items"] else None

    async def text(self, path: str, *, base: str = "") -> str:
        async with self.http.get((base or self.url) + path) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.text()

    def settings(self) -> dict[str, str]:
        return tomllib.loads((self.home / "run.toml").read_text())

    @property
    def nearline(self) -> str:
        return f"http://127.0.0.1:{self.settings()['metrics_port']}"


def _environ(home: Path) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("AIF_")}
    return {**outside, "AIF_HOME": str(home), "OMP_NUM_THREADS": "1"}


@asynccontextmanager
async def running(
    home: Path, *, items: int | None = None, users: int | None = None, more: tuple[str, ...] = ()
) -> AsyncIterator[Up]:
    """``aif up`` from its start to its ready line; killed at the end, with its children, if it still runs."""
    err = home.parent / f"{home.name}.err"
    numbers = [word for name, n in (("--items", items), ("--users", users)) if n is not None for word in (name, str(n))]
    with err.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aif_stream", "up", *numbers, "--port", "0", *more),
            env=_environ(home),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(None) as patience:
            patience.reschedule(asyncio.get_running_loop().time() + READY_S)
            line = (await process.stdout.readline()).decode().rstrip("\n")
            patience.reschedule(None)
            assert line.startswith("ready http://127.0.0.1:"), f"{line!r}\n{err.read_text()}"
            yield Up(home, line.split()[1], process, err, http, line)
    finally:
        for pid in family(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.communicate()


async def ended(home: Path, *words: str) -> Ended:
    """``aif …`` that should end by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aif_stream", *words),
        env=_environ(home),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(READY_S):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


def family(home: Path) -> dict[int, str]:
    """The live processes that were started with this home, directly or not: id -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:  # somebody else's, or just gone
            continue
        if f"AIF_HOME={home}".encode() in environ.split(b"\0"):
            found[int(entry.name)] = command.replace(b"\0", b" ").decode().strip()
    return found


def with_command(home: Path, words: str) -> list[int]:
    return [pid for pid, command in family(home).items() if words in command]
