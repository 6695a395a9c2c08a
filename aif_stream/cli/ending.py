"""How a process ends within 10 s of being told to stop, whatever it computes. Imports nothing but Python's own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final, NoReturn

log = logging.getLogger(__name__)

# A process that was told to stop has ended after 10 s; container engines kill it then.
_LIMIT_S: Final = 9.0
_KILL_S: Final = 0.9  # if Python does not get so far, the kernel ends it so much later
_AT_ONCE: Final = threading.Event()


def leave_at_once() -> None:
    """Let ``leave`` take nothing down: a role's threads may compute for long, and on a busy host the end of an
    interpreter that has imported torch takes half a minute."""
    _AT_ONCE.set()


def leave(code: int) -> NoReturn:
    """Exit with ``code``."""
    if _AT_ONCE.is_set():
        _exit(code)
    sys.exit(code)


class StopLimit:
    """Ends the process ``_LIMIT_S`` after ``begin``: with a log line and exit code 1, else by SIGALRM.

    The thread is there before a role lowers its priority, and ``begin`` may be called by a signal handler.
    """

    def __init__(self) -> None:
        self._armed = False
        self._begun: SimpleQueue[None] = SimpleQueue()  # its put may be interrupted by another signal
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        threading.Thread(target=self._watch, name="stop-limit", daemon=True).start()

    def begin(self) -> None:
        if not self._armed:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, _LIMIT_S + _KILL_S)
            self._begun.put(None)

    def _watch(self) -> None:
        self._begun.get()
        time.sleep(_LIMIT_S)
        busy = ",".join(thread.name for thread in threading.enumerate() if not thread.daemon)
        log.error(f'role.stop_cut after_s={_LIMIT_S:g} threads={busy} hint="what was not committed comes again"')
        _exit(1)


class LoopThreads(ThreadPoolExecutor):
    """The loop's threads. A loop that ends does not wait for what they compute."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
