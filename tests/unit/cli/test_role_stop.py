"""SIGTERM ends a role in 10 s, whatever it computes; its exit code says whether it stopped by itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process

from tests.processes import ends
from tests.stack import eventually

# The process itself allows 10 s; the rest is for a machine that is busy.
WITHIN_S = 20.0
HEAD = """
import asyncio, os, sys, threading, time
from collections import deque
from itertools import repeat
from concurrent.futures import ThreadPoolExecutor
import uvloop
from aif_stream.cli.ending import leave
from aif_stream.cli.entry import run_role
from aif_stream.errors import AifError

def compute():
    os.nice(19)
    while True:
        pass

def hang():
    time.sleep(3600)

async def serving(stop):
    print("up", flush=True)
    await stop.wait()
"""
TAIL = """
code = 0
try:
    run_role(role, loop_factory=uvloop.new_event_loop if sys.argv[1:] == ["uvloop"] else None)
except AifError as error:
    print(error, file=sys.stderr)
    code = 1
leave(code)
"""
# What the role does, its loop, its exit code, a word of its log.
ROLES = {
    "hangs in the loop's threads": (
        """
async def role(stop):
    asyncio.get_running_loop().run_in_executor(None, hang)
    await serving(stop)
""",
        *("uvloop", 0, ""),
    ),
    "computes in threads of its own": (
        """
async def role(stop):
    ThreadPoolExecutor(1).submit(hang)
    threading.Thread(target=compute).start()
    await serving(stop)
""",
        *("asyncio", 0, ""),
    ),
    "waits for what never comes": (
        """
async def role(stop):
    await serving(stop)
    await asyncio.Event().wait()
""",
        *("uvloop", 1, "role.stop_cut"),
    ),
    "does not let itself be cancelled": (
        """
async def role(stop):
    await serving(stop)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
""",
        *("asyncio", 1, "role.stop_cut"),
    ),
    "computes in the loop": (
        """
async def role(stop):
    print("up", flush=True)
    while True:
        time.sleep(0.001)
""",
        *("uvloop", 1, "role.stop_cut"),
    ),
    "takes the interpreter's lock for good": (
        """
async def role(stop):
    await serving(stop)
    deque(repeat(None), maxlen=0)
""",
        *("asyncio", -signal.SIGALRM, ""),
    ),
    "dies while its threads hang": (
        """
async def role(stop):
    asyncio.get_running_loop().run_in_executor(None, hang)
    await serving(stop)
    raise AifError("the disk is full")
""",
        *("asyncio", 1, "the disk is full"),
    ),
}


async def _started(script: str, *words: str) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HEAD + script + TAIL, *words, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process


async def _check(name: str) -> None:
    script, loop, code, word = ROLES[name]
    process = await _started(script, loop)
    process.send_signal(signal.SIGTERM)
    await ends(process, WITHIN_S)
    _, err = await process.communicate()
    assert process.returncode == code, (name, err.decode())
    assert word in err.decode(), name


async def test_sigterm_ends_a_role_whatever_it_computes() -> None:
    await asyncio.gather(*map(_check, ROLES))


async def test_second_signal_cancels_a_role() -> None:
    script = """
async def role(stop):
    await serving(stop)
    await asyncio.Event().wait()
"""
    process = await _started(script)

    async def cancelled() -> bool:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)  # those of the first two seconds are echoes of the first
        return process.returncode is not None

    await eventually(cancelled, what="the role is cancelled")
    _, err = await process.communicate()
    assert "Abort" in err.decode()
    assert "role.stop_cut" not in err.decode()
