"""Questions about child processes, as /proc answers them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path


def children(pid: int) -> list[int]:
    """Ids of a process' own children; empty when it is gone."""
    try:
        tasks = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    return [int(child) for text in tasks for child in text.split()]


def command(pid: int) -> str:
    """Its command line; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def ended(pid: int) -> bool:
    """Gone, or waiting for a parent that need not care (a container's first process)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def ends(process: asyncio.subprocess.Process, within_s: float) -> float:
    """Seconds until the process has ended; SIGKILL and a failure when it is still there after ``within_s``."""
    begin_s = time.monotonic()
    try:
        await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        raise AssertionError(f"process {process.pid} was still there after {within_s:g} s") from None
    return time.monotonic() - begin_s
