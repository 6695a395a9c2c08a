"""A child that its owner started so ends with it, even while it stands still."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.processes import ended
from tests.stack import eventually

SCRIPT = """
import asyncio, signal
from aif_stream.orphans import end_with_owner

async def main():
    child = await asyncio.create_subprocess_exec("sleep", "600", preexec_fn=end_with_owner(signal.SIGKILL))
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux' own")
async def test_stopped_child_ends_with_a_killed_owner() -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    child = int(await owner.stdout.readline())
    os.kill(child, signal.SIGSTOP)
    owner.kill()
    await owner.wait()

    async def gone() -> bool:
        return ended(child)

    await eventually(gone, what="the child has ended")
