"""What every verb begins with: settings read once, logging set up, a loop with a clean stop."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from aif_stream import settings as settings_module
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
) -> None:
    """Run a role until SIGTERM or Ctrl-C sets its stop event; a second one, 2 s later, cancels it."""

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        own = asyncio.current_task()
        first_s = 0.0

        def on_signal(number: int) -> None:
            nonlocal first_s
            if not stop.is_set():
                first_s = loop.time()
                stop.set()
            elif loop.time() - first_s > _ECHO_S and own is not None:
                own.cancel()  # not the default action: it would leave the children of `aif up` behind

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await role(stop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            runner.run(body())
        except asyncio.CancelledError:
            raise click.Abort from None
