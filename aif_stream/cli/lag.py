"""``aif lag``: consumer lag, watermarks, probe, mirrors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.cli.lag_gap import gap_of, seconds
from aif_stream.cli.values import Finite, plain
from aif_stream.domain.freshness import Status
from aif_stream.errors import AifError
from aif_stream.freshness.ask import lag_report
from aif_stream.freshness.report import LagReport, PartitionLag, encode
from aif_stream.settings import Settings

_EVERY_S: Final = 1.0
_WIDE: Final = 110  # columns that hold every figure of a busy topic and a reason
_STYLES: Final = {Status.OK: "green", Status.WARN: "yellow", Status.STALL: "bold red", Status.STOP: "bold red"}
FELL_SHORT: Final = 3


@click.command()
@click.option("--watch", is_flag=True, help="refresh every second until Ctrl-C")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout; with --watch one a line")
@click.option("--max", "max_s", type=Finite(min=0), help="exit 3 when anything is older than SECONDS")
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
        console = Console()
        console.print(table_of(report, idle=True, width=console.width))
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
                    live.update(table_of(report, idle=False, width=live.console.width), refresh=True)
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


def table_of(report: LagReport, *, idle: bool, width: int) -> RenderableType:
    """The report for people. Without ``idle`` the partitions of a group that have no lag share one row, so that it fits
    on a screen; on a narrow one (``width`` columns) topics and ends are left out: the group names the topic, and an end
    is the position plus the lag."""
    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("group", no_wrap=True)
    if wide:
        table.add_column("topic", no_wrap=True)
    for name in ("part", "position", *(("end",) if wide else ()), "lag", "seconds", "rec/s", "catch up"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status")
    reasons: dict[tuple[str, Status, str], list[str]] = {}
    for name, part in _rows(report.partitions, idle=idle):
        if part.reason:
            reasons.setdefault((part.group, part.status, part.reason), []).append(name)
        table.add_row(
            part.group,
            *((part.topic,) if wide else ()),
            name,
            f"{part.position:,}",
            *((f"{part.end:,}",) if wide else ()),
            f"{part.lag_records:,}",
            seconds(part.lag_s),
            f"{part.rate_per_s:,.0f}",
            "–" if part.catch_up_s is None else seconds(part.catch_up_s),
            Text(part.status, style=_STYLES[part.status]),
        )
    gap = () if report.explanations is None else (Text(), *gap_of(report.explanations))
    return Group(table, Text(), *_reasons(reasons), *_below(report), *gap)


def _reasons(reasons: Mapping[tuple[str, Status, str], Sequence[str]]) -> Iterator[Text]:
    """Once for each group and reason: a table with sentences in it reads badly."""
    for (group, status, reason), parts in reasons.items():
        yield Text.assemble((f"{status:<10} ", _STYLES[status]), f"{group} {', '.join(parts)}: {reason}")


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
    lines = [f"watermark  everything appended until {seconds(report.watermark_age_s)} ago is in Redis"]
    if probe.last_s is None:
        lines.append(f"probe      {probe.problem}")
    else:
        lines.append(
            f"probe      an update matters after {seconds(probe.last_s)}"
            f" (p50 {seconds(probe.p50_s)}, p99 {seconds(probe.p99_s)}, {probe.seen} seen)"
        )
    if probe.open_s > 1.0:
        lines.append(f"           one is awaited for {seconds(probe.open_s)} now")
    found = [Text(line) for line in lines]
    for lags in report.freshness:
        where = "Redis" if lags.stage == "redis" else f"the mirror of {lags.process}"
        figures = f"p50 {seconds(lags.p50_s)}, p99 {seconds(lags.p99_s)}, {lags.seen:,} updates of the last minute"
        found.append(Text(f"freshness  an event is in {where} after {figures}"))
    for mirror in report.mirrors:
        what = "joins from Redis" if mirror.rows is None else f"{mirror.rows:,} rows"
        age = "" if mirror.rows is None else f", applied until {seconds(mirror.applied_age_s)} ago"
        line = Text(f"server     {mirror.server} {mirror.version or 'no version'}: {what}{age} ")
        line.append(f"{mirror.status} {mirror.reason}", style=_STYLES[mirror.status])
        found.append(line)
    found += [
        Text(f"clock      {plain(source.source)} is {source.ahead_s:.1f} s ahead of the broker", style="yellow")
        for source in report.sources
        if source.skewed
    ]
    return found
