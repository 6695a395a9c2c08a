"""``aif nearline``: the worker that keeps the index up to date."""

from __future__ import annotations

import asyncio

import click
import uvloop

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@with_settings
def nearline(settings: Settings) -> None:
    """Item, user, behavior and model events → rows, profiles and histories in Redis.

    Serves /metrics and /readyz on AIF_METRICS_PORT. Exits 1 with the reason when a lane dies; SIGTERM drains, commits
    and leaves the groups.
    """
    from aif_stream.nearline.role import serve_nearline

    async def role(stop: asyncio.Event) -> None:
        await serve_nearline(settings, stop)

    run_role(role, loop_factory=uvloop.new_event_loop)
