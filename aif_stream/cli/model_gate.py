"""The gate on the terminal: ``aif model gate``, and activation that asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import orjson
from rich.console import Console
from rich.table import Table

from aif_stream.cli.entry import run_async
from aif_stream.settings import Settings

if TYPE_CHECKING:
    from aif_stream.nearline.gate import GateReport

_FELL_SHORT: Final = 3


def show_gate(settings: Settings, version: str, *, as_json: bool) -> int:
    """Judge and print; the exit code."""
    from aif_stream.nearline.gate import judge

    report = run_async(judge(settings, version))
    if as_json:
        click.echo(orjson.dumps(report.facts()).decode())
    else:
        _print(report)
    return 0 if report.passed else _FELL_SHORT


def activate_or_tell(
    settings: Settings, version: str, *, percent: float = 100.0, force: str = "", as_json: bool = False
) -> int:
    """Activate what passes its gate, else print what fell short; the exit code."""
    from aif_stream.nearline.gate import GateRefused, activate_judged

    try:
        record, report = run_async(activate_judged(settings, version, percent, force))
    except GateRefused as refused:
        if as_json:
            click.echo(orjson.dumps({"version": version, "gate": refused.report.facts()}).decode())
        else:
            _print(refused.report)
            click.echo(f"{version} does not answer; {refused.report.compared_with or 'nothing'} goes on", err=True)
        return _FELL_SHORT
    if as_json:
        facts: dict[str, Any] = {"version": version, "state": record.state.value, "percent": record.percent or 100.0}
        gate = report.facts() if report is not None else None
        click.echo(orjson.dumps({**facts, "note": record.note, "artefact": record.artefact, "gate": gate}).decode())
        return 0
    if record.note:
        click.echo(record.note, err=True)
    if record.percent:
        click.echo(f"{version} answers {record.percent:g} % of the users, {record.replaces} the others")
    else:
        click.echo(f"{version} is active, in place of {record.replaces or 'none'}")
    return 0


def _print(report: GateReport) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "value", "limit", "of"):
        table.add_column(column, justify="right" if column in ("value", "limit") else "left")
    for check in report.checks:
        sign, style = ("ok", "green") if check.passed else ("SHORT", "bold red")
        table.add_row(f"[{style}]{sign}[/]", check.name, f"{check.value:.4g}", f"{check.limit:.4g}", check.detail)
    Console().print(table)
    against = (
        f", compared with {report.compared_with}" if report.compared_with else "; nothing answers yet to compare with"
    )
    passed = "passes its gate" if report.passed else "does not pass its gate"
    click.echo(f"{report.version} {passed}{against} ({report.seconds:.1f} s)")
