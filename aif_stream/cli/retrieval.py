"""``aif retrieval``: the reference upstream."""

from __future__ import annotations

import click
import uvloop

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@with_settings
def retrieval(settings: Settings) -> None:
    """Name a user's candidates over HTTP, from the source topics (neighbours, category, popular)."""
    from aif_stream.retrieval.server import run_retrieval

    run_role(lambda stop: run_retrieval(settings, stop), loop_factory=uvloop.new_event_loop)
