"""What every verb begins with: settings read once, logging set up, a loop with a clean stop."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from aif_stream import settings as settings_module
from aif_stream.telemetry import configure_logging

_T = TypeVar("_T")


def with_settings(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config FILE`` and pass the frozen ``Settings`` as the first argument."""

    @click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="settings (TOML)")
    @functools.wraps(verb)
    def wrapped(*args: Any, config: Path | None, **kwargs: Any) -> Any:
        settings, _ = settings_module.load(config)
        configure_logging(settings.log_level)
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
    """Run a role until SIGTERM or Ctrl-C sets its stop event; a second signal ends it at once."""

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if stop.is_set():
                loop.remove_signal_handler(number)
                signal.raise_signal(number)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await role(stop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(body())
