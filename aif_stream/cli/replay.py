"""``aif replay``: a request log against a running server, and what came out of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aif_stream.cli.entry import with_settings
from aif_stream.cli.values import Finite, plain
from aif_stream.errors import BadInput
from aif_stream.settings import Settings

if TYPE_CHECKING:
    from aif_stream.replay.run import Outcome, Plan
    from aif_stream.replay.run import Progress as Step

_KAFKA = "kafka:"
_FELL_SHORT = 3
_SHOWN = 10


@click.command()
@click.argument("source", metavar="FILE|kafka:SINCE..UNTIL")
@click.option("--speed", type=Finite(min=0, min_open=True), help="times the original timing  [default: 1]")
@click.option("--rate", type=Finite(min=0, min_open=True), help="requests per second instead")
@click.option("--to", help="server to send to  [default: AIF_SERVE_URL, or the one that `aif up` started]")
@click.option("--against", default="", metavar="URL|VERSION", help="send everything here too, and compare the two")
@click.option("--as-of", metavar="TIME", help="on the index as it was then: -15m, -2h, 2026-01-31T12:00:00Z, or ms")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="write one HTML page")
@click.option("--max-drift", type=Finite(min=0), help="exit 3 when the drift is larger")
@click.option("--retrieve", is_flag=True, help="candidates that retrieval had named: let retrieval name them again")
@click.option("--timeout", default=10.0, show_default=True, type=Finite(min=0, min_open=True), help="seconds")
@click.option("--connections", default=512, show_default=True, type=click.IntRange(1, 2048), help="per server, at most")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@with_settings
def replay(
    settings: Settings,
    source: str,
    *,
    speed: float | None,
    rate: float | None,
    to: str | None,
    against: str,
    as_of: str | None,
    report: Path | None,
    max_drift: float | None,
    retrieve: bool,
    timeout: float,
    connections: int,
    as_json: bool,
) -> int:
    """Send the requests of a log again, each when it is due, whatever the server does.

    The schedule is fixed beforehand: the original timing, or --rate. Latencies count from the moment a request was
    due, so a server that stands still shows in all requests of that time. "send error" is how late this player was.

    Rankings are compared with the answers in the log, or with --against: another server, or another version of the
    same. drift is the largest of 1 - overlap@k, 1 - rank correlation (means over requests) and the largest change of
    a score; same version, no updates: exactly 0. Answers that fell short of something (degraded) are not compared.

    --as-of rebuilds the index from the topics as it was at TIME (by append time, histories too) in a Redis of its own
    and replays against a server on it; both are gone afterwards. Compared are the answers in the log, or --against.
    A TIME that compaction or retention may have touched is refused.

    \b
    Exit codes: 0 done · 1 failed, or no answer at all · 2 wrong usage ·
    3 drift beyond --max-drift, or nothing could be compared.
    """
    from aif_stream.replay.run import Plan

    if speed is not None and rate is not None:
        raise click.UsageError("--speed and --rate exclude each other")
    if as_of is not None and to is not None:
        raise click.UsageError("--as-of brings a server of its own: leave --to out")
    if as_of is not None and retrieve:
        raise click.UsageError("--retrieve asks today's retrieval: it has no place in --as-of")
    plan = Plan(
        to=(to or settings.serve_url).rstrip("/"),
        against=against.rstrip("/"),
        speed=speed or 1.0,
        rate_per_s=rate,
        timeout_s=timeout,
        connections=connections,
        retrieve=retrieve,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_replay(settings, source, plan, as_of, report, max_drift, as_json))


async def _replay(
    settings: Settings,
    source: str,
    plan: Plan,
    as_of: str | None,
    report: Path | None,
    max_drift: float | None,
    as_json: bool,
) -> int:
    from aif_stream.replay.report import check_writable, write_report
    from aif_stream.replay.run import replaying
    from aif_stream.replay.tape import Tape

    if report is not None:
        check_writable(report)
    async with _lines(settings, source) as lines:
        tape = Tape(lines)
    with tape:
        if max_drift is not None and not plan.against and not tape.answered:
            raise BadInput(
                "the log has no answers to compare with", mend="give --against, or a log of aif requests export"
            )
        async with _target(settings, plan, as_of) as (sent, facts):
            with replaying(sent, tape) as run, _progress() as show:
                outcome = await run.run(show)
    shape = {**outcome.shape(), **facts}
    if report is not None:
        write_report(report, outcome, source)
    if as_json:
        click.echo(orjson.dumps(shape).decode())
    else:
        _show(outcome, shape)
    return _verdict(outcome, max_drift)


@asynccontextmanager
async def _target(settings: Settings, plan: Plan, as_of: str | None) -> AsyncIterator[tuple[Plan, dict[str, Any]]]:
    """The plan with the server to send to, and what is to be said of it."""
    from aif_stream.clock import now_ms
    from aif_stream.replay.lines import parse_time
    from aif_stream.runtime.as_of import as_of_server

    if as_of is None:
        yield plan, {}
        return
    at_ms = parse_time(as_of, now_ms())
    say = partial(click.echo, err=True)
    async with as_of_server(settings, at_ms, lambda step: say(f"as of: {step}")) as then:
        facts = {
            "at_ms": then.at_ms,
            "model_version": then.version,
            "records": then.records,
            "refused": then.refused,
            "rebuild_s": then.rebuild_s,
        }
        yield dataclasses.replace(plan, to=then.url), {"as_of": facts}


def _verdict(outcome: Outcome, max_drift: float | None) -> int:
    if max_drift is None or outcome.drift is None:
        return 0
    if not outcome.drift.compared:
        click.echo("error: no request could be compared: every one was degraded or unanswered", err=True)
        return _FELL_SHORT
    if outcome.drift.value > max_drift:
        click.echo(f"error: drift {outcome.drift.value:.6g} is larger than {max_drift:g}", err=True)
        return _FELL_SHORT
    compared, sent = outcome.drift.compared, outcome.to.status.size
    if 2 * compared < sent:
        click.echo(f"warning: this was judged by {compared:,} of {sent:,} requests; the others say nothing", err=True)
    return 0


@asynccontextmanager
async def _lines(settings: Settings, source: str) -> AsyncIterator[Iterator[bytes]]:
    from aif_stream.clock import now_ms
    from aif_stream.replay.export import logged_lines
    from aif_stream.replay.lines import parse_range, read_lines

    if source.startswith(_KAFKA):
        since_ms, until_ms = parse_range(source.removeprefix(_KAFKA), now_ms())
        async with logged_lines(settings, since_ms, until_ms) as lines:
            yield lines
    else:
        with read_lines(Path(source)) as lines:
            yield lines


@contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """A bar on stderr when that is a terminal. It is drawn twice a second: drawing takes the interpreter for 2 ms."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("loading", total=None)

        def show(step: Step) -> None:
            failed = f", {step.failed:,} failed" if step.failed else ""
            bar.update(task, description=f"{step.phase}{failed}", completed=step.done, total=step.total)

        yield show


def _show(outcome: Outcome, shape: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"sent {shape['sent']:,} in {shape['scheduled_s']:.1f} s · {shape['errors']:,} errors · "
        f"send error p50 {shape['send_error_ms']['p50']:.2f} p99 {shape['send_error_ms']['p99']:.2f} ms",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("latency, ms", *("p50", "p90", "p99", "p999", "max"), box=None, pad_edge=False)
    table.add_row(shape["to"], *_cells(shape["latency_ms"]))
    against = shape.get("against")
    if against is not None:
        table.add_row(against["name"], *_cells(against["latency_ms"]))
    console.print(table)
    if against is not None:
        for name, found in against["difference_ms"].items():
            text = f"{name} {found['value']:+.2f} ms [{found['low']:+.2f}, {found['high']:+.2f}]"
            console.print(f"difference of {text}", highlight=False, soft_wrap=True)
    for reason, times in outcome.failures():
        console.print(f"  {times:,} × {plain(reason)}", highlight=False, soft_wrap=True, style="yellow")
    if outcome.drift is not None:
        _show_drift(console, shape["drift"])


def _show_drift(console: Console, drift: dict[str, Any]) -> None:
    left_out = drift["not_compared"]
    console.print(
        f"against {drift['compared_with']}: {drift['compared']:,} requests compared"
        f" ({left_out['degraded']:,} degraded, {left_out['unanswered']:,} unanswered)",
        highlight=False,
        soft_wrap=True,
    )
    overlap, correlation = (drift["intervals"][name] for name in ("overlap_at_k", "rank_correlation"))
    console.print(
        f"drift {drift['value']:.6g} · overlap@k {overlap['value']:.4f} [{overlap['low']:.4f}, {overlap['high']:.4f}]"
        f" · rank correlation {correlation['value']:.4f} [{correlation['low']:.4f}, {correlation['high']:.4f}]"
        f" · largest change of a score {drift['score_max_abs']:.6g}",
        highlight=False,
        soft_wrap=True,
    )
    if not drift["changed_items_total"]:
        return
    table = Table("changed item", "requests", "apart", "lost", "gained", "largest", box=None, pad_edge=False)
    for change in drift["changes"][:_SHOWN]:
        counts = (f"{change[name]:,}" for name in ("requests", "apart", "lost", "gained"))
        table.add_row(plain(change["item_id"]), *counts, f"{change['max_abs']:.6g}")
    console.print(table)
    if drift["changed_items_total"] > _SHOWN:
        console.print(f"… of {drift['changed_items_total']:,} (--json, --report)", highlight=False, soft_wrap=True)
    console.print("apart: requests in which most other scores stayed, so that the item itself changed", soft_wrap=True)


def _cells(quantiles: dict[str, float]) -> list[str]:
    return [f"{quantiles[name]:.2f}" for name in ("p50", "p90", "p99", "p999", "max")]
