"""The roles as child processes of ``aif up``, watched: the first one that ends takes the whole stack down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from aif_stream.embedded.process import ServerProcess
from aif_stream.errors import AifError
from aif_stream.settings import handed_on

# A role imports torch (2-4 s on a busy machine) and may read an index back; a start beyond this is stuck.
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 20.0  # each ends within 10 s (cli/ending.py); the rest is for a host that is busy
_WATCH_S = 0.5


def spawn_role(role: str, log: Path, environ: Mapping[str, str], *, under: Sequence[str] = ()) -> ServerProcess:
    """Start ``aif <role>`` and return at once: in the folder of its log, on this process' environment with ``environ``
    over it, with one OpenMP thread, for roles share a machine. ``under``: a command that runs it (``taskset -c 0``).
    """
    process = ServerProcess(
        f"aif {role}",
        [*under, sys.executable, "-m", "aif_stream", role],
        directory=log.parent,
        log=log,
        environ=handed_on({"OMP_NUM_THREADS": "1", **environ}),
    )
    process.spawn()
    return process


class Roles:
    """Starts ``aif <role>`` processes that share one environment; logs go to ``directory/<role>.log``, anew."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._environ = dict(settings)
        self._running: list[ServerProcess] = []

    def start(self, role: str) -> ServerProcess:
        """Spawn one role and return at once."""
        log = self._directory / f"{role}.log"
        log.unlink(missing_ok=True)  # an earlier stack's; one that still runs keeps writing to its own
        process = spawn_role(role, log, self._environ)
        self._running.append(process)
        return process

    def named(self, role: str) -> ServerProcess:
        """The process of a started role."""
        return next(process for process in self._running if process.name == f"aif {role}")

    async def watch(self) -> None:
        """Return never while every role lives; raises ``AifError`` naming the role that ended, how, and its log."""
        while True:
            for process in self._running:
                if not process.running:
                    raise AifError(process.account("ended by itself"), mend=f"read {process.log}")
            await asyncio.sleep(_WATCH_S)

    async def stop(self) -> list[str]:
        """SIGTERM in the reverse order of the starts, all at once; each drains and commits.

        Returns a line for each role that did not stop in order. Never raises for one.
        """
        ends = await asyncio.gather(*(process.stop(STOP_DEADLINE_S) for process in reversed(self._running)))
        return [line for line in ends if line]


async def until_ready(session: aiohttp.ClientSession, url: str, process: ServerProcess) -> None:
    """Wait for ``GET url`` to answer 200; raises ``EmbeddedError`` with the log's end otherwise."""

    async def ready() -> bool:
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    await process.wait_ready(ready, START_DEADLINE_S)
