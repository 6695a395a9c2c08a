"""Child processes that serve on loopback: free ports, a log file each, a deadline for everything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from aif_stream.errors import EmbeddedError
from aif_stream.orphans import end_with_owner as end_with_owner  # noqa: PLC0414 - benchmarks take it from here

LOOPBACK = "127.0.0.1"
_POLL_S = 0.02  # how often a starting server is asked; a start takes 0.03 s (Redis) to 5 s (three Kafka nodes)
_KILL_DEADLINE_S = 30.0  # after SIGKILL only the kernel is waited for: on a busy host the dying process needs a turn
_LINE_CHARS = 400
_TAIL_LINES = 10
_TAIL_BYTES = 65_536  # a broker's shutdown comes after the error that caused it


class PortTaken(EmbeddedError):
    """Somebody took the port between its choice and the server's bind; another port may work."""


class ServerProcess:
    """One server as a child process, started and ended any number of times; its output is appended to ``log``.

    An owner that is killed takes it along (Linux): it gets SIGTERM when the thread that started it ends, so start it on
    one that lasts. It runs in a session of its own: Ctrl-C in the terminal reaches only the owner, which then stops it
    in order.
    ``environ`` is the child's whole environment; None: the owner's. The child inherits the file descriptors
    ``keep_open`` (a lock that must last as long as the child).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        directory: Path,
        log: Path,
        environ: Mapping[str, str] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._environ = environ
        self._command = [str(part) for part in command]
        self._directory = directory
        self._keep_open = tuple(keep_open)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Raises EmbeddedError when the server is not running."""
        if self._process is None or not self.running:
            raise EmbeddedError(f"{self.name} is not running", mend="start it first")
        return self._process.pid

    def spawn(self) -> None:
        """Starts the child and returns at once. Raises EmbeddedError when it runs already or cannot be executed."""
        if self.running:
            raise EmbeddedError(f"{self.name} runs already", mend="stop or kill it first")
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._directory,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=self._keep_open,
                    preexec_fn=end_with_owner(),  # noqa: PLW1509 - two system calls, prepared before the fork
                )
            except OSError as error:
                raise EmbeddedError(f"{self.name}: {self._command[0]} cannot be started: {error}") from error

    async def wait_ready(self, ready: Callable[[], Awaitable[bool]], deadline_s: float) -> None:
        """Asks ``ready`` (which must not raise) until it says True.

        Raises PortTaken or EmbeddedError, with the log's last lines, when the child ends or the deadline passes;
        the child is dead then. A cancellation kills it too.
        """
        try:
            end_s = time.monotonic() + deadline_s
            while not await ready():
                if not self.running:
                    raise self._failure(f"ended before it was ready ({self.how_ended})")
                if time.monotonic() > end_s:
                    raise self._failure(f"was not ready after {deadline_s:.0f} s")
                await asyncio.sleep(_POLL_S)
        except BaseException:
            await self._kill()
            raise

    @property
    def how_ended(self) -> str:
        """``exit code 1``, ``SIGKILL``; "" while it runs, and before its first start."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return ""
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def account(self, what: str) -> str:
        """One line about its end: ``aif nearline WHAT (exit code 1): error: …``. Who is killed, or ends without an
        error, has no cause in its log."""
        failed = self._process is not None and (self._process.poll() or 0) > 0
        cause = self.last_error() if failed else ""
        return f"{self.name} {what} ({self.how_ended})" + (f": {cause}" if cause else "")

    def last_error(self) -> str:
        """The line of what this start wrote that tells most of its end; "" when there is none."""
        lines = [line.strip() for line in self._written().splitlines() if line.strip()]
        told = [line for line in lines[-_TAIL_LINES:] if line.startswith("error: ") or " ERROR " in line]
        return (told or lines or [""])[-1][:_LINE_CHARS]

    async def kill9(self) -> None:
        """SIGKILL to the child and to whatever it forked; returns when it is gone. Raises EmbeddedError if it stays."""
        if not await self._kill():
            problem, hint = self._unkillable()
            raise EmbeddedError(problem, mend=hint)

    async def stop(self, deadline_s: float) -> str:
        """SIGTERM, then SIGKILL when the child is still there after ``deadline_s``, or when this wait is cancelled.

        Returns what went wrong, in one line; "" when it ended in order. Never raises for a child that does not end.
        """
        if self._process is None or not self.running:
            return ""
        self._process.terminate()
        try:
            if not await self._gone(deadline_s):
                gone = await self._kill()
                late = f"{self.name} did not stop within {deadline_s:g} s"
                return f"{late} and was killed" if gone else f"{late}; {self._unkillable()[0]}"
        except BaseException:
            if self.running:
                os.killpg(self._process.pid, signal.SIGKILL)
            raise
        if self._process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM):  # the last one is a JVM's
            return ""
        return self.account("did not stop in order")

    async def _kill(self) -> bool:
        """SIGKILL to the group; whether the child is gone."""
        process = self._process
        if process is None or not self.running:  # the id of an ended child may be another process' by now
            return True
        os.killpg(process.pid, signal.SIGKILL)
        return await self._gone(_KILL_DEADLINE_S)

    async def _gone(self, within_s: float) -> bool:
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        try:
            await asyncio.to_thread(process.wait, within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _unkillable(self) -> tuple[str, str]:
        return (
            f"{self.name} (process {self.pid}) is still there {_KILL_DEADLINE_S:.0f} s after SIGKILL",
            "look at its state (ps): the kernel ends it when its disk answers or a core is free",
        )

    def _failure(self, what: str) -> EmbeddedError:
        text = self._written()
        kind = PortTaken if "address already in use" in text.lower() else EmbeddedError
        mend = "choose another port" if kind is PortTaken else "read the whole log"
        return kind(f"{self.name} {what}; its log {self.log} says:\n{telling_lines(text)}\n", mend=mend)

    def _written(self) -> str:
        """What this start wrote, the end of it."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")


def telling_lines(output: str) -> str:
    """What a person needs of a server's output: its errors, then its last lines, without Java's stack frames."""
    lines = [line for line in output.splitlines() if not line.startswith(("\tat ", "\t... "))]
    last = lines[-_TAIL_LINES:]
    errors = [line for line in lines[:-_TAIL_LINES] if " ERROR " in line or line.startswith("Caused by")]
    return "\n".join([*errors[-_TAIL_LINES:], *last])


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which nobody listens now (somebody may before the caller does: PortTaken)."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


async def exchange(port: int, request: bytes, read: Callable[[asyncio.StreamReader], Awaitable[bytes]]) -> bytes | None:
    """One request and its reply on a fresh loopback connection; None when nothing sensible comes within a second."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(request)
                return await read(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return None


async def run_tool(command: Sequence[str | Path], *, directory: Path, deadline_s: float, mend: str) -> str:
    """Runs a command to its end and gives its output (stdout and stderr).

    Raises EmbeddedError with the last lines when it fails, cannot be started or needs longer than ``deadline_s``.
    """
    words = [str(part) for part in command]
    try:
        child = await asyncio.create_subprocess_exec(
            *words,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise EmbeddedError(f"{words[0]} cannot be started: {error}", mend=mend) from error
    try:
        output, _ = await asyncio.wait_for(child.communicate(), deadline_s)
    except TimeoutError:
        raise EmbeddedError(f"{words[0]} was not done after {deadline_s:.0f} s", mend=mend) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    text = output.decode(errors="replace")
    if child.returncode != 0:
        raise EmbeddedError(f"{words[0]} ended with {child.returncode}:\n{telling_lines(text)}\n", mend=mend)
    return text
