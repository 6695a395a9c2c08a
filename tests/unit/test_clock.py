"""Stamps survive the text form in which they travel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.clock import cpu_ms, cpu_s, from_rfc3339, to_rfc3339


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_comes_back_to_the_millisecond(ms: int) -> None:
    assert from_rfc3339(to_rfc3339(ms)) == ms


def test_an_offset_is_understood_and_its_absence_refused() -> None:
    assert from_rfc3339("2023-11-15T00:13:20.123+02:00") == from_rfc3339("2023-11-14T22:13:20.123Z")
    with pytest.raises(ValueError, match="no time zone"):
        from_rfc3339("2023-11-14T22:13:20")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the CPU time of another process")
def test_the_cpu_time_of_a_process_is_told_while_it_lives() -> None:
    before_s, own_ms, after_s = cpu_s(os.getpid()), cpu_ms(), cpu_s(os.getpid())
    assert before_s - 1e-6 <= own_ms / 1000 <= after_s + 1e-6  # one clock, read three times
    waits = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert cpu_s(waits.pid) >= 0.0
    waits.communicate(b"\n")
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_s(waits.pid)
