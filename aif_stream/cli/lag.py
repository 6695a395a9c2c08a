"""``aif lag``: consumer lag, watermarks, probe, mirrors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.domain.freshness import Status
from aif_stream.errors import AifError
from aif_stream.freshness.ask import lag_report
from aif_stream.freshness.report import LagReport, PartitionLag, encode
from aif_stream.settings import Settings

_EVERY_S: Final = 1.0
_STYLES: Final = {Status.OK: "green", Status.WARN: "yellow", Status.STALL: "bold red", Status.STOP: "bold red"}
FELL_SHORT: Final = 3


@click.command()
@click.option("--watch", is_flag=True, help="refresh every second until Ctrl-C")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout; with --watch one a line")
@click.option("--max", "max_s", type=click.FloatRange(min=0), help="exit 3 when anything is older than SECONDS")
@with_settings
def lag(settings: Settings, watch: bool, as_json: bool, max_s: float | None) -> int:
    """Show how far every consumer is, in records and seconds, and how long an update takes to matter.

    Seconds are the age of the record at the committed position, read from the log; 0 when caught up. STALL: somebody
    is there and does not get on. STOP: nobody is there. With a running `aif monitor` statuses come from its windows
    and the probe's figures are there; without one this looks for itself, for some seconds when somebody stands still.
    """
    if watch:
        return run_async(_watch(settings, as_json=as_json, max_s=max_s))
    report = run_async(lag_report(settings))
    if as_json:
        click.echo(encode(report).decode())
    else:
        Console().print(table_of(report, idle=True))
    return _verdict(report, max_s)


async def _watch(settings: Settings, *, as_json: bool, max_s: float | None) -> int:
    worst = 0
    with Live(console=Console(stderr=as_json), auto_refresh=False, transient=as_json) as live:
        while True:
            try:
                report = await lag_report(settings)
            except AifError as error:
                live.update(Text(f"error: {error}", style="red"), refresh=True)
            else:
                if as_json:
                    click.echo(encode(report).decode())
                else:
                    live.update(table_of(report, idle=False), refresh=True)
                worst = max(worst, _verdict(report, max_s))
                if worst:
                    return worst
            await asyncio.sleep(_EVERY_S)


def _verdict(report: LagReport, max_s: float | None) -> int:
    """3 when an age passes the limit, or one that should be known is not."""
    if max_s is None:
        return 0
    worst_s = report.worst_s()
    return FELL_SHORT if worst_s is None or worst_s > max_s else 0


def table_of(report: LagReport, *, idle: bool) -> RenderableType:
    """The report for people. Without ``idle`` the partitions of a group that have no lag share one row, so that it fits
    on a screen."""
    table = Table(box=None, pad_edge=False)
    for name in ("group", "topic"):
        table.add_column(name)
    for name in ("part", "position", "end", "lag", "seconds", "rec/s", "catch up"):
        table.add_column(name, justify="right")
    table.add_column("status", overflow="fold")
    for name, part in _rows(report.partitions, idle=idle):
        status = Text(part.status, style=_STYLES[part.status])
        if part.reason:
            status.append(f" {part.reason}", style="dim")
        table.add_row(
            part.group,
            part.topic,
            name,
            f"{part.position:,}",
            f"{part.end:,}",
            f"{part.lag_records:,}",
            _seconds(part.lag_s),
            f"{part.rate_per_s:,.0f}",
            "–" if part.catch_up_s is None else _seconds(part.catch_up_s),
            status,
        )
    return Group(table, Text(), *_below(report))


def _rows(parts: list[PartitionLag], *, idle: bool) -> Iterator[tuple[str, PartitionLag]]:
    """(which partitions, their figures): sums for those that share a row."""
    alike: dict[tuple[str, Status, str], list[PartitionLag]] = {}
    for part in parts:
        if idle or part.lag_records:
            yield str(part.partition), part
        else:
            alike.setdefault((part.group, part.status, part.reason), []).append(part)
    for some in alike.values():
        yield (
            f"{len(some)}×",
            msgspec.structs.replace(
                some[0],
                position=sum(part.position for part in some),
                end=sum(part.end for part in some),
                rate_per_s=sum(part.rate_per_s for part in some),
            ),
        )


def _below(report: LagReport) -> list[Text]:
    probe = report.probe
    lines = [f"watermark  everything appended until {_seconds(report.watermark_age_s)} ago is in Redis"]
    if probe.last_s is None:
        lines.append(f"probe      {probe.problem}")
    else:
        lines.append(
            f"probe      an update matters after {_seconds(probe.last_s)}"
            f" (p50 {_seconds(probe.p50_s)}, p99 {_seconds(probe.p99_s)}, {probe.seen} seen)"
        )
    if probe.open_s > 1.0:
        lines.append(f"           one is awaited for {_seconds(probe.open_s)} now")
    found = [Text(line) for line in lines]
    for lags in report.freshness:
        where = "Redis" if lags.stage == "redis" else f"the mirror of {lags.process}"
        figures = f"p50 {_seconds(lags.p50_s)}, p99 {_seconds(lags.p99_s)}, {lags.seen:,} updates of the last minute"
        found.append(Text(f"freshness  an event is in {where} after {figures}"))
    for mirror in report.mirrors:
        what = "joins from Redis" if mirror.rows is None else f"{mirror.rows:,} rows"
        age = "" if mirror.rows is None else f", applied until {_seconds(mirror.applied_age_s)} ago"
        line = Text(f"server     {mirror.server} {mirror.version or 'no version'}: {what}{age} ")
        line.append(f"{mirror.status} {mirror.reason}", style=_STYLES[mirror.status])
        found.append(line)
    found += [
        Text(f"clock      {source.source} is {source.ahead_s:.1f} s ahead of the broker", style="yellow")
        for source in report.sources
        if source.skewed
    ]
    return found


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return "0" if value == 0 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:,.1f} s"
