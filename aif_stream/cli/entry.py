"""What every verb begins with: settings read once, logging set up, a loop with a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from aif_stream import settings as settings_module
from aif_stream.cli.ending import LoopThreads, StopLimit, leave_at_once
from aif_stream.telemetry import configure_logging, stand_still

_T = TypeVar("_T")
# One "stop" often arrives twice (`timeout`, a process group): the second within this time is the same one.
_ECHO_S: Final = 2.0


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
    limit = StopLimit() if limited else None
    leave_at_once()

    async def body() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(LoopThreads())
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


async def _begins(stop: asyncio.Event, limit: StopLimit | None) -> None:
    await stop.wait()
    if limit is not None:
        limit.begin()
