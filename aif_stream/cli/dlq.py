"""``aif dlq``: dead letters: what is wrong, since when; mend, send again, put away."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import Filter, LetterState, grouped, ranges
from aif_stream.bus.mends import export_line, read_mends
from aif_stream.bus.redrive import Redrive, RedriveOptions, RedriveSummary
from aif_stream.bus.topics import DEAD_LETTERS
from aif_stream.bus.trim import delete_before
from aif_stream.cli.dlq_show import show_letter
from aif_stream.cli.dlq_table import groups_table
from aif_stream.cli.entry import run_async, with_settings
from aif_stream.cli.values import Finite, Since, plain
from aif_stream.clock import now_ms
from aif_stream.errors import BadInput
from aif_stream.replay.lines import write_lines
from aif_stream.settings import Settings

_JSON = click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
_SHOWN_LEFT = 10


def _filtered(verb: Callable[..., Any]) -> Callable[..., Any]:
    verb = click.option("--since", type=Since(), default=0, help="put aside since (-30m, -2h, -7d, RFC 3339, or ms)")(
        verb
    )
    verb = click.option("--topic", "topics", multiple=True, help="source topic (repeatable)")(verb)
    return click.option("--reason", "reasons", multiple=True, help="as `ls` names it (repeatable)")(verb)


@click.group()
def dlq() -> None:
    """Dead letters: list, show, redrive, purge."""


@dlq.command()
@_filtered
@click.option("--all", "everything", is_flag=True, help="handled letters, too")
@click.option("--export", type=click.Path(dir_okay=False, path_type=Path), help="write the letters whole, as JSONL")
@_JSON
@with_settings
def ls(
    settings: Settings,
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    since: int,
    *,
    everything: bool,
    export: Path | None,
    as_json: bool,
) -> None:
    """Letters that wait, by source topic, reason and field.

    --export FILE writes one line per letter: {"letter", "topic", "reason", "problem", "key", "value", "headers",
    "event_time_ms", "line"}. Correct `line` (the line as `aif publish` takes it) and give the file to `redrive --mend`.
    """
    view = run_async(_list(settings, _filter(settings, reasons, topics, since), everything, export))
    if as_json:
        click.echo(orjson.dumps(view).decode())
    else:
        _print_groups(view)


@dlq.command()
@click.argument("number", type=click.IntRange(0))
@_JSON
@with_settings
def show(settings: Settings, number: int, as_json: bool) -> None:
    """Show letter NUMBER whole: where from, what is wrong, headers and bytes, decoded and raw."""
    run_async(show_letter(settings, number, as_json))


@dlq.command()
@click.argument("numbers", type=click.IntRange(0), nargs=-1)
@_filtered
@click.option("--mend", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="corrected records (JSONL)")
@click.option("--rate", type=Finite(0), default=1000.0, show_default=True, help="records/s; 0: no limit")
@click.option("--max-attempts", type=click.IntRange(1), default=3, show_default=True, help="leave those tried so often")
@click.option("--unchecked", is_flag=True, help="send also what this release's consumers would refuse again")
@click.option("--dry-run", is_flag=True, help="say what would happen, send nothing")
@_JSON
@with_settings
def redrive(
    settings: Settings,
    numbers: tuple[int, ...],
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    since: int,
    *,
    mend: Path | None,
    rate: float,
    max_attempts: int,
    unchecked: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Send letters back to where they came from, with their event times.

    As they were (the consumers have been mended, a clock has come right), or, with --mend FILE, as its lines say:
    {"letter": N, "line": {…}}, {"letter": N, "remove": "item id"} or {"letter": N, "drop": true}; only letters of the
    file are touched. Every record is first checked as the consumers will check it. Two redrives at once never
    send the same letter. A record that fails again is a new letter with one attempt more.

    \b
    Exit codes: 0 every letter is handled · 1 Kafka did not answer · 3 some were left (the summary says why).
    """
    options = RedriveOptions(rate=rate, max_attempts=max_attempts, unchecked=unchecked, dry_run=dry_run)
    chosen = _filter(settings, reasons, topics, since, numbers)
    summary = run_async(_redrive(settings, options, chosen, mend))
    _print_summary(summary, as_json, "would be sent" if dry_run else "sent")
    return 3 if summary.left else 0


@dlq.command()
@_filtered
@click.option("--discard", is_flag=True, help="first give up the letters that wait and fit the filter")
@click.option("--yes", is_flag=True, help="do not ask before --discard")
@click.option("--dry-run", is_flag=True, help="say what would happen, delete nothing")
@_JSON
@with_settings
def purge(
    settings: Settings,
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    since: int,
    *,
    discard: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete handled letters from the broker, up to the first one that still waits.

    Kafka deletes a topic's beginning only; handled letters behind a waiting one go with the next purge (and after 30
    days in any case). --discard gives up waiting letters without sending them: this cannot be undone.
    """
    if (reasons or topics or since) and not discard:
        raise click.UsageError("a filter says what to --discard; handled letters are purged whatever they are")
    if discard and not (yes or dry_run):
        click.confirm("give up these letters for good?", abort=True, err=True)
    chosen = _filter(settings, reasons, topics, since) if discard else None
    found = run_async(_purge(settings, chosen, dry_run))
    if as_json:
        click.echo(orjson.dumps(found).decode())
        return
    would = "would be " if dry_run else ""
    click.echo(f"{found['discarded']} letters {would}given up, {found['deleted']} records {would}deleted")
    click.echo(f"{found['waiting']} letters wait, {found['behind']} handled ones lie behind them")


async def _list(settings: Settings, chosen: Filter, everything: bool, export: Path | None) -> dict[str, Any]:
    async with LetterLog(settings) as letters:
        book, now = letters.book, now_ms()
        states = tuple(LetterState) if everything else (LetterState.OPEN, LetterState.CLAIMED)
        entries = [entry for entry in book.in_state(*states) if chosen.takes(entry.head)]
        if export is not None:
            with write_lines(export) as write:
                async for letter in letters.letters([entry.head.number for entry in entries]):
                    write(export_line(letter))
        return {
            **{state.value: len(book.in_state(state)) for state in LetterState},
            "exported": len(entries) if export is not None else None,
            "groups": [
                {
                    "topic": group.topic,
                    "reason": group.reason,
                    "field": group.field,
                    "count": len(group.numbers),
                    "oldest_age_s": round((now - group.oldest_ms) / 1000, 1),
                    "newest_age_s": round((now - group.newest_ms) / 1000, 1),
                    "attempts": group.most_attempts,
                    "problem": group.example,
                    "letters": group.numbers,
                }
                for group in grouped(entries)
            ],
        }


async def _redrive(settings: Settings, options: RedriveOptions, chosen: Filter, mend: Path | None) -> RedriveSummary:
    mends = None
    if mend is not None:
        with mend.open("rb") as lines:
            mends = read_mends(lines)
    async with Redrive(settings, options, mends) as run:
        if mends is not None and (strangers := sorted(mends.keys() - run.known())):
            raise BadInput(f"{mend}: no letters {ranges(strangers)[:200]}", mend="aif dlq ls --all")
        if strangers := sorted((chosen.numbers or frozenset()) - run.known()):
            raise BadInput(f"there are no letters {ranges(strangers)[:200]}", mend="aif dlq ls --all")
        with _progress(len(run.choose(chosen))) as show:
            return await run.run(chosen, show)


async def _purge(settings: Settings, chosen: Filter | None, dry_run: bool) -> dict[str, int]:
    discarded = 0
    if chosen is not None:
        async with Redrive(settings, RedriveOptions(dry_run=dry_run)) as run:
            discarded = (await run.drop(chosen)).dropped
    async with LetterLog(settings) as letters:
        book = letters.book
        cut = book.handled_up_to(letters.end)
        before = letters.beginning
        if cut > before and not dry_run:
            await delete_before(settings, DEAD_LETTERS, 0, cut)
        handled = book.in_state(LetterState.HANDLED)
        return {
            "discarded": discarded,
            "deleted": cut - before,
            "waiting": len(book.entries) - len(handled),
            "behind": sum(entry.head.number > cut for entry in handled),
        }


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[RedriveSummary], None]]:
    columns = (TextColumn("letters"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("letters", total=total)

        def show(summary: RedriveSummary) -> None:
            bar.update(task, completed=summary.sent + summary.dropped + len(summary.left))

        yield show


def _filter(
    settings: Settings, reasons: tuple[str, ...], topics: tuple[str, ...], since: int, numbers: tuple[int, ...] = ()
) -> Filter:
    bases = frozenset(topic.removeprefix(settings.topic_prefix) for topic in topics)
    return Filter(frozenset(reasons), bases, since, frozenset(numbers) if numbers else None)


def _print_groups(view: dict[str, Any]) -> None:
    console = Console()
    if view["groups"]:
        console.print(groups_table(view["groups"], console.width))
    elif view["open"] or view["claimed"]:
        click.echo("no letter fits the filter")
    click.echo(f"{view['open']} open, {view['claimed']} being redriven, {view['handled']} handled")
    if view["exported"] is not None:
        click.echo(f"{view['exported']} letters exported")


def _print_summary(summary: RedriveSummary, as_json: bool, sent: str) -> None:
    if as_json:
        left = [{"letter": o.letter, "result": o.result, "problem": o.problem} for o in summary.left]
        shape = {"selected": summary.selected, "sent": summary.sent, "dropped": summary.dropped}
        click.echo(orjson.dumps({**shape, "left": left, "dry_run": summary.dry_run}).decode())
        return
    click.echo(
        f"{summary.selected} letters: {summary.sent} {sent}, {summary.dropped} dropped, {len(summary.left)} left"
    )
    for outcome in summary.left[:_SHOWN_LEFT]:
        click.echo(f"  {outcome.letter} {outcome.result}: {plain(outcome.problem)}")
    if len(summary.left) > _SHOWN_LEFT:
        click.echo(f"  … and {len(summary.left) - _SHOWN_LEFT} more (--json lists them)")
