"""``aif up``: all roles on the embedded stack, one command."""

from __future__ import annotations

import functools
from pathlib import Path

import click
from rich.console import Console

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@click.option("--items", type=click.IntRange(min=0), default=5000, show_default=True, help="synthetic items, ids 1…N")
@click.option("--users", type=click.IntRange(min=0), default=500, show_default=True, help="synthetic users, ids 1…U")
@click.option("--demo", is_flag=True, help="live traffic: item updates, behaviors, requests")
@click.option("--port", type=click.IntRange(0, 65535), help="port of the server; 0: a free one  [default: the setting]")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="keep Redis and models in this folder")
@with_settings
def up(settings: Settings, items: int, users: int, demo: bool, port: int | None, data: Path | None) -> None:
    """Run the whole system on an embedded broker and Redis until Ctrl-C.

    Prints `ready http://127.0.0.1:P` when a request would be answered in full, and writes its addresses to
    $AIF_HOME/run.toml, where every other verb finds them. With --items 0 there is no catalogue and no model: publish
    your own, then `aif model publish DIR --activate`.
    """
    from aif_stream.runtime.stack import UpOptions, run_up

    console = Console(stderr=True)

    def report(step: str) -> None:
        console.print(f"[dim]aif up[/dim] {step}", highlight=False)

    def ready(url: str) -> None:
        click.echo(f"ready {url}")
        report(f"dashboard {url}/ · Ctrl-C stops everything")

    options = UpOptions(items, users, demo, port, data)
    run_role(functools.partial(run_up, settings, options, report=report, ready=ready), limited=False)
