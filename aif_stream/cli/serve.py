"""``aif serve``: the merger."""

from __future__ import annotations

import click
import uvloop

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@with_settings
def serve(settings: Settings) -> None:
    """Answer POST /v1/rank: user side beside retrieval, join, score."""
    from aif_stream.online.role import run_serve

    run_role(lambda stop: run_serve(settings, stop), loop_factory=uvloop.new_event_loop)
