from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aif_stream import priority

_SAY = """
import os
from aif_stream import priority
priority.lower({niceness}, own_session=True)
print(os.nice(0), os.getsid(0) == os.getpid())
try:
    print(open("/proc/self/autogroup").read().split()[-1])
except (OSError, IndexError):  # another kernel; a session that the kernel does not group
    print("none")
"""


def said(niceness: int) -> list[str]:
    command = [sys.executable, "-c", _SAY.format(niceness=niceness)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_lowered_process_is_low_in_its_session_and_its_session_beside_others() -> None:
    niceness, leads, group = said(priority.LEAST)
    assert int(niceness) == priority.LEAST
    assert leads == "True"
    if group == "none":
        pytest.skip("the kernel does not group sessions here")
    assert int(group) == priority.LEAST


def test_zero_changes_nothing() -> None:
    assert said(0)[:2] == [str(os.nice(0)), "False"]  # the tests themselves may run under nice
