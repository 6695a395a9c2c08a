"""What every verb begins with: settings read once, logging set up, a loop with a clean stop, an end in time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from aif_stream import settings as settings_module
from aif_stream.telemetry import configure_logging, kv, stand_still

log = logging.getLogger(__name__)

_T = TypeVar("_T")
# One "stop" often arrives twice (`timeout`, a process group): the second within this time is the same one.
_ECHO_S: Final = 2.0
# A process that was told to stop has ended after 10 s, whatever it computes; container engines kill it then.
_LIMIT_S: Final = 9.0
_KILL_S: Final = 0.9  # and if Python does not get so far, the kernel ends it so much later
_THREADS_S: Final = 2.0  # what threads still compute at the very end is nobody's any more
_LEFT: Final = threading.Event()  # the exit code is known


def with_settings(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config FILE`` and pass the frozen ``Settings`` as the first argument."""

    @click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="settings (TOML)")
    @functools.wraps(verb)
    def wrapped(*args: Any, config: Path | None, **kwargs: Any) -> Any:
        settings, _ = settings_module.load(config)
        configure_logging(settings.log_level)
        if not settings.metrics:
            stand_still()
        return verb(settings, *args, **kwargs)

    return wrapped


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a verb that ends by itself; Ctrl-C cancels it."""
    return asyncio.run(work)


def run_role(
    role: Callable[[asyncio.Event], Awaitable[None]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    limited: bool = True,
) -> None:
    """Run a role until SIGTERM or Ctrl-C sets its stop event; a second one, 2 s later, cancels it.

    The process ends within 10 s of the first, or of the role setting the event itself: ``limited`` False is for a
    role that waits for child processes, which have that limit themselves.
    """
    limit = _Limit() if limited else None

    async def body() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_Helpers())
        stop, own = asyncio.Event(), asyncio.current_task()
        first_s = 0.0

        def noticed() -> None:
            nonlocal first_s
            if not stop.is_set():
                first_s = loop.time()
                stop.set()
            elif loop.time() - first_s > _ECHO_S and own is not None:
                own.cancel()  # not the default action: it would leave the children of `aif up` behind

        def on_signal(*_: object) -> None:
            # Python runs this also while the loop is held up by a computation.
            if limit is not None:
                limit.begin()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends already
                loop.call_soon_threadsafe(noticed)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        ending = asyncio.create_task(_begins(stop, limit), name="stop-limit")
        try:
            await role(stop)
        finally:
            ending.cancel()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            runner.run(body())
        except asyncio.CancelledError:
            raise click.Abort from None


async def _begins(stop: asyncio.Event, limit: _Limit | None) -> None:
    await stop.wait()
    if limit is not None:
        limit.begin()


def leave(code: int) -> NoReturn:
    """Exit with ``code``; threads that still compute are not waited for."""

    def cut() -> None:
        time.sleep(_THREADS_S)
        _exit(code)

    threading.Thread(target=cut, name="leave", daemon=True).start()
    _LEFT.set()
    sys.exit(code)


class _Limit:
    """Ends the process ``_LIMIT_S`` after ``begin``: with a log line and exit code 1, else by SIGALRM.

    The thread is there before a role lowers its priority, and ``begin`` may be called by a signal handler.
    """

    def __init__(self) -> None:
        self._begun = threading.Event()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        threading.Thread(target=self._watch, name="stop-limit", daemon=True).start()

    def begin(self) -> None:
        if not self._begun.is_set():
            signal.setitimer(signal.ITIMER_REAL, _LIMIT_S + _KILL_S)
            self._begun.set()

    def _watch(self) -> None:
        self._begun.wait()
        time.sleep(_LIMIT_S)
        if not _LEFT.is_set():
            busy = ",".join(thread.name for thread in threading.enumerate() if not thread.daemon)
            log.error(kv("role.stop_cut", after_s=_LIMIT_S, threads=busy, hint="what was not committed comes again"))
            _exit(1)


class _Helpers(ThreadPoolExecutor):
    """The loop's threads. A loop that ends does not wait for what they compute."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
