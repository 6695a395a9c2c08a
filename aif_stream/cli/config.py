"""``aif config show``: every setting, its value and where it came from."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.table import Table

from aif_stream import settings as settings_module


@click.group()
def config() -> None:
    """Settings: AIF_… variables, one optional TOML file."""


@config.command()
@click.option("--config", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="settings (TOML)")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
def show(file: Path | None, as_json: bool) -> None:
    """Print each setting with its value (secrets masked) and origin."""
    _, origins = settings_module.load(file)
    if as_json:
        found = {o.name: {"value": o.value, "origin": o.origin} for o in origins}
        click.echo(orjson.dumps(found).decode())
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("variable", "value", "origin", "meaning"):
        table.add_column(heading, overflow="fold")
    for origin in origins:
        style = "" if origin.origin == "default" else "bold"
        table.add_row(settings_module.variable(origin.name), origin.value, origin.origin, origin.help, style=style)
    Console().print(table)
