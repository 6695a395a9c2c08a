"""``aif model``: publish, list, status, gate, activate, rollback, retire."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.cli.values import Finite
from aif_stream.settings import Settings


@click.group()
def model() -> None:
    """Model versions: publish, list, status, gate, activate, rollback, retire."""


@model.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--wait", is_flag=True, help="return when every row is rebuilt and the version is ready")
@click.option("--activate", is_flag=True, help="wait, then let this version answer, if it passes its gate")
@click.option("--resume", is_flag=True, help="take up a roll-out of this artefact that was broken off")
@click.option("--json", "as_json", is_flag=True, help="the version's record as JSON")
@with_settings
def publish(settings: Settings, directory: Path, wait: bool, activate: bool, resume: bool, as_json: bool) -> int:
    """Publish the artefact in DIRECTORY as a new version and rebuild the rows for it.

    A version is published once; --resume goes on where a roll-out of the same artefact was broken off. Exit code 3:
    it is ready, and does not pass its gate.
    """
    from aif_stream.cli.model_gate import activate_or_tell
    from aif_stream.nearline.rollout import Progress as Rebuilt
    from aif_stream.nearline.rollout import publish_version

    columns = (TextColumn("rebuild"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rebuild", total=None, rate="", visible=False)

        def show(done: Rebuilt) -> None:
            bar.update(
                task, visible=True, completed=done.done, total=done.total, rate=f"{done.items_per_s:,.0f} items/s"
            )

        record = run_async(publish_version(settings, directory, wait=wait or activate, resume=resume, on_progress=show))
    if activate:
        return activate_or_tell(settings, record.version, as_json=as_json)
    _say(as_json, {"version": record.version, "state": record.state.value, "artefact": record.artefact})
    return 0


@model.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="one JSON array on stdout")
@with_settings
def list_versions(settings: Settings, as_json: bool) -> None:
    """List the versions, oldest first."""
    found = run_async(_versions(settings))
    if as_json:
        click.echo(orjson.dumps(found).decode())
        return
    _table(found, ("version", "state", "users", "coverage", "created", "note"))


@model.command()
@click.option("--watch", is_flag=True, help="follow the rebuilds until none is left, with rate and time to go")
@click.option("--json", "as_json", is_flag=True, help="one JSON array on stdout (with --watch one line per second)")
@with_settings
def status(settings: Settings, watch: bool, as_json: bool) -> None:
    """The versions with the progress of their rebuild."""
    from aif_stream.cli.model_watch import watch_rebuilds

    if watch:
        run_async(watch_rebuilds(settings, _versions, as_json))
        return
    found = run_async(_versions(settings))
    if as_json:
        click.echo(orjson.dumps(found).decode())
        return
    _table(found, ("version", "state", "users", "coverage", "rebuild"))


@model.command()
@click.argument("version")
@click.option("--orphan", is_flag=True, help="VERSION has no record: remove the rows that `aif doctor` found")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@with_settings
def retire(settings: Settings, version: str, orphan: bool, as_json: bool) -> None:
    """Retire VERSION for good: nobody writes its rows any more, and their memory is freed.

    Refused while it is active or a server still holds it. Its name cannot be published again; its artefact stays on
    disk. May be repeated when it was broken off.
    """
    from aif_stream.nearline.retirement import retire_version

    done = run_async(retire_version(settings, version, orphan=orphan))
    if as_json:
        click.echo(orjson.dumps({"version": version, "state": "retired", "rows": done.rows}).decode())
        return
    click.echo(f"{version} {'was retired before' if done.again else 'is retired'}, {done.rows:,} rows freed")
    if done.record is not None:
        click.echo(f"its artefact stays: {done.record.artefact}")


@model.command()
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="the report as JSON")
@with_settings
def gate(settings: Settings, version: str, as_json: bool) -> int:
    """Look whether VERSION may answer: rows complete and right, scores like the active version's. Changes nothing.

    Exit code 3: it falls short; the limits are the AIF_GATE_… settings.
    """
    from aif_stream.cli.model_gate import show_gate

    return show_gate(settings, version, as_json=as_json)


@model.command()
@click.argument("version")
@click.option(
    "--percent",
    type=Finite(0, 100, min_open=True),
    default=100.0,
    help="a canary: this share of the users, by a hash of their id; the others stay where they are",
)
@click.option("--force", is_flag=True, help="in spite of the gate; needs --reason")
@click.option("--reason", default="", help="why; kept in the version's record")
@click.option("--json", "as_json", is_flag=True, help="version, state, percent and the gate's report as JSON")
@with_settings
def activate(settings: Settings, version: str, percent: float, force: bool, reason: str, as_json: bool) -> int:
    """Let VERSION answer from now on, if it passes its gate; the one before stays warm for a rollback.

    A canary grows by calling this again with a larger --percent; 100 makes it the active version. Exit code 3: the
    gate's checks that fell short are printed, and what answers is as it was.
    """
    from aif_stream.cli.model_gate import activate_or_tell

    if force != bool(reason.strip()):
        raise click.UsageError("--force and --reason come together")
    return activate_or_tell(settings, version, percent=percent, force=reason.strip(), as_json=as_json)


@model.command()
@click.option("--json", "as_json", is_flag=True, help="the record of the version that answers everybody now, as JSON")
@with_settings
def rollback(settings: Settings, as_json: bool) -> None:
    """End the canary; without one, go back to the version that the active one replaced."""
    from aif_stream.nearline.rollout import rollback_version

    record = run_async(rollback_version(settings))
    if as_json:
        click.echo(orjson.dumps({"version": record.version, "state": record.state.value}).decode())
        return
    click.echo(f"{record.version} answers everybody")


async def _versions(settings: Settings) -> list[dict[str, Any]]:
    from aif_stream.bus.versions import read_versions
    from aif_stream.nearline.rollout import coverage, rebuild_status

    book = await read_versions(settings)
    found: list[dict[str, Any]] = []
    for record in sorted(book.records.values(), key=lambda r: (r.created_ms, r.version)):
        done = await rebuild_status(settings, record.version)
        found.append(
            {
                "version": record.version,
                "state": book.state_of(record.version).value,
                "percent": book.percent_of(record.version),
                "note": record.note,
                "coverage": await coverage(settings, record.version),
                "created_ms": record.created_ms,
                "rebuild": {
                    "done": done.done,
                    "total": done.total,
                    "items": done.items,
                    "items_per_s": done.items_per_s,
                    "eta_s": done.eta_s,
                },
            }
        )
    return found


def _table(found: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in found:
        created = datetime.fromtimestamp(row["created_ms"] / 1000, UTC)
        cells = {
            **row,
            "users": f"{row['percent']:g} %" if row["percent"] else "",
            "coverage": f"{row['coverage']:.1%}",
            "created": f"{created:%Y-%m-%d %H:%M} UTC",
            "rebuild": f"{row['rebuild']['done']}/{row['rebuild']['total']}",
        }
        table.add_row(*(str(cells[column]) for column in columns), style="bold" if row["state"] == "active" else "")
    Console().print(table)


def _say(as_json: bool, record: dict[str, Any]) -> None:
    if as_json:
        click.echo(orjson.dumps(record).decode())
    else:
        click.echo(f"{record['version']} is {record['state']} ({record['artefact']})")
