"""``aif up``: all roles on the embedded stack, one command."""

from __future__ import annotations

import functools
from pathlib import Path

import click
from rich.console import Console

from aif_stream.cli.entry import run_role, with_settings
from aif_stream.settings import Settings


@click.command()
@click.option("--items", type=click.IntRange(min=0), help="synthetic items, ids 1…N; 0: none at all  [default: 5000]")
@click.option("--users", type=click.IntRange(min=0), help="synthetic users, ids 1…U  [default: 500]")
@click.option("--demo", is_flag=True, help="live traffic: item updates, behaviors, requests")
@click.option("--port", type=click.IntRange(0, 65535), help="port of the server; 0: a free one  [default: the setting]")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="keep all data in this folder")
@with_settings
def up(
    settings: Settings, items: int | None, users: int | None, demo: bool, port: int | None, data: Path | None
) -> None:
    """Run the whole system on an embedded broker and Redis until Ctrl-C.

    Prints `ready http://127.0.0.1:P` when the next request is answered in full, or
    `ready http://127.0.0.1:P (no active version)`. Writes its addresses to $AIF_HOME/run.toml, where every other verb
    finds them. --items 0 seeds nothing: publish your own data, then run `aif model publish DIR --activate`.

    --data keeps everything that was acknowledged: stop and start again with the same folder. A folder that holds data
    is never seeded; --items and --users, if given, must match those of its first start.
    """
    from aif_stream.errors import DataFolderConflict
    from aif_stream.runtime.stack import UpOptions, run_up

    console = Console(stderr=True)

    def report(step: str) -> None:
        console.print(f"[dim]aif up[/dim] {step}", highlight=False)

    def ready(url: str, active: bool) -> None:
        click.echo(f"ready {url}" if active else f"ready {url} (no active version)")
        report(f"dashboard {url}/ · Ctrl-C stops everything")

    options = UpOptions(items, users, demo, port, data)
    try:
        run_role(functools.partial(run_up, settings, options, report=report, ready=ready), limited=False)
    except DataFolderConflict as error:
        raise click.UsageError(str(error)) from None
