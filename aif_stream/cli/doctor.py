"""``aif doctor``: is everything in place? Each finding with its mend."""

from __future__ import annotations

from collections import Counter
from typing import Final

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.settings import Settings

_STYLE: Final = {"error": "bold red", "warning": "yellow", "ok": "green"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@click.option("--quiet", is_flag=True, help="leave out what is as it should be")
@with_settings
def doctor(settings: Settings, as_json: bool, quiet: bool) -> int:
    """Check broker, topics, rights, Redis, clocks, versions, artefacts, marks, dead letters and servers.

    Changes nothing but for two tombstones on aif.model-updates, whose append time tells the broker's clock.

    \b
    Exit codes: 0 no errors (there may be warnings) · 3 at least one error.
    """
    from aif_stream.runtime.doctor import examine
    from aif_stream.runtime.findings import Level

    found = run_async(examine(settings))
    shown = [finding for finding in found if not (quiet and finding.level is Level.OK)]
    counts = Counter(finding.level.value for finding in found)
    worst = next((level for level in Level if counts[level.value]), Level.OK)
    if as_json:
        findings = [{"check": f.check, "level": f.level.value, "what": f.what, "mend": f.mend} for f in shown]
        click.echo(orjson.dumps({"status": worst.value, "findings": findings}).decode())
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("", "check", "finding"):
            table.add_column(name, no_wrap=name != "finding", overflow="fold")
        for finding in shown:
            mend = f"\n→ {escape(finding.mend)}" if finding.mend else ""
            level = finding.level.value
            table.add_row(f"[{_STYLE[level]}]{level}[/]", finding.check, escape(finding.what) + mend)
        Console().print(table)
        click.echo(f"{_some(counts['error'], 'error')}, {_some(counts['warning'], 'warning')}, {counts['ok']} ok")
    return 3 if counts["error"] else 0


def _some(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
