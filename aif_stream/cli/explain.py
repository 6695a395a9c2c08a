"""``aif explain``: the worker that finds out why."""

from __future__ import annotations

import asyncio

import click

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@with_settings
def explain(settings: Settings) -> None:
    """Work out explanations of answers, by priority, from the facts of each answer.

    Runs at the lowest OS priority and stands back while servers are busy. Serves /metrics and /readyz on
    AIF_EXPLAIN_PORT. SIGTERM hands unfinished work back.
    """
    from aif_stream.explain.role import serve_explain

    async def role(stop: asyncio.Event) -> None:
        await serve_explain(settings, stop)

    run_role(role)
