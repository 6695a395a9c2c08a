"""Child processes that end with their parent, also when it is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def end_with_owner(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A child's ``preexec_fn``: the kernel sends it this signal when the thread that starts it ends, also when the
    thread's process is killed. SIGKILL also ends a child that computes, stands still or gets no CPU."""
    if sys.platform != "linux":
        return None
    prctl, owner = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, number.value, 0, 0, 0)
        if os.getppid() != owner:  # it ended between fork and here
            os._exit(1)

    return prepare
