"""``aif monitor``: the watch as a process."""

from __future__ import annotations

import functools

import click

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@with_settings
def monitor(settings: Settings) -> None:
    """Probe, lag, watermarks and status, exported on AIF_MONITOR_PORT (/metrics, /v1/lag, /readyz).

    Updates a probe item every two seconds through the real topic and reads it through every server's rank path. The
    probe shows up in no result, log or training data. Run one per system.
    """
    from aif_stream.freshness.monitor import run_monitor

    run_role(functools.partial(run_monitor, settings))
