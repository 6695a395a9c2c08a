"""``aif serve``: the merger."""

from __future__ import annotations

import click
import uvloop

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="processes behind one port")
@with_settings
def serve(settings: Settings, workers: int) -> None:
    """Answer POST /v1/rank: user side beside retrieval, join, score."""
    if workers > 1:
        from aif_stream.online.workers import run_workers

        source = click.get_current_context().params.get("config")
        arguments = [] if source is None else ["--config", str(source)]
        run_role(lambda stop: run_workers(settings, workers, arguments, stop), limited=False)
        return
    from aif_stream.online.role import run_serve

    run_role(lambda stop: run_serve(settings, stop), loop_factory=uvloop.new_event_loop)
