"""``aif publish``: JSONL lines, one item, or removals → Kafka, with a truthful summary."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aif_stream.bus.lines import LineKind, LineReader, Reject
from aif_stream.bus.publisher import EventPublisher, PublishSummary
from aif_stream.cli.entry import run_async, with_settings
from aif_stream.errors import BadInput
from aif_stream.settings import Settings

_SHOWN_REJECTS = 10
_REJECT_TEXT_BYTES = 4_096
_EXITS = """
\b
Exit codes: 0 every line is in Kafka · 1 Kafka did not take them all · 2 wrong usage ·
3 some lines were rejected, all others are in Kafka · 130 interrupted.
"""
_LINES_HELP = f"""
FILE holds one JSON object per line; - is stdin. Ids are strings or integers, times are ms UTC
(event_time_ms, default now), unknown fields are kept, blank lines are skipped. A wrong line is
rejected with its number and the others go on. Ctrl-C stops reading and tells what has arrived.
{_EXITS}"""


@click.group()
def publish() -> None:
    """Publish items, users, behaviors and removals."""


def _lines_verb(kind: LineKind, example: str, meaning: str) -> None:
    """``meaning``: of one line."""

    @publish.command(name=kind, help=f"Publish {kind} from JSONL, e.g.\n\n\b\n  {example}\n\n{meaning}\n{_LINES_HELP}")
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
    @click.option(
        "--rejects",
        type=click.Path(dir_okay=False, path_type=Path),
        help='write rejected lines here, as {"line", "problem", "text"} per line',
    )
    @click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
    @with_settings
    def verb(settings: Settings, file: str, rejects: Path | None, as_json: bool) -> int:
        with ExitStack() as stack:
            source = sys.stdin.fileno() if file == "-" else stack.enter_context(Path(file).open("rb")).fileno()
            size = os.fstat(source).st_size if file != "-" else None
            keep = _reject_writer(stack.enter_context(rejects.open("wb"))) if rejects is not None else None
            summary = run_async(_publish_lines(settings, kind, source, size, keep))
        return _finish(summary, as_json)


_lines_verb(
    "items",
    '{"item_id": 7, "category": "books", "attributes": {"price": 9.5}, "content_vector": null}',
    "A line is a whole item and replaces the stored one: what it does not name is removed.",
)
_lines_verb(
    "users",
    '{"user_id": "u1", "attributes": {"age": 31, "city": "Lyon"}}',
    "A line is a whole user and replaces the stored one: what it does not name is removed.",
)
_lines_verb("behaviors", '{"user_id": "u1", "item_id": 7, "kind": "click"}', "A line is one behavior.")


@publish.command(
    help="Publish one item; it replaces the stored item as a whole.\n\n"
    "Attributes and a content vector that are not named are removed from the item: name all of them. "
    "category=… and content_vector=[…] (JSON) and event_time_ms=… are the item's own fields, any other "
    f"name is an attribute: a JSON number, string or list of strings, else the text as it stands.\n{_EXITS}"
)
@click.argument("item_id", metavar="ID")
@click.argument("fields", metavar="NAME=VALUE…", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@with_settings
def item(settings: Settings, item_id: str, fields: tuple[str, ...], as_json: bool) -> int:
    line = item_line(item_id, fields)

    async def work() -> PublishSummary:
        async with EventPublisher(settings, source="aif/publish") as publisher:
            return await publisher.publish_lines("items", [line])

    return _finish(run_async(work()), as_json)


@publish.command(help=f"Remove items: tombstones that an older event cannot undo.\n{_EXITS}")
@click.argument("item_ids", metavar="ID…", nargs=-1, required=True)
@click.option("--event-time-ms", type=int, help="when they were removed (default now)")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@with_settings
def remove(settings: Settings, item_ids: tuple[str, ...], event_time_ms: int | None, as_json: bool) -> int:
    async def work() -> PublishSummary:
        summary = PublishSummary()
        async with EventPublisher(settings, source="aif/publish") as publisher:
            acks = []
            for number, item_id in enumerate(item_ids, start=1):
                try:
                    acks.append(await publisher.remove(item_id, event_time_ms=event_time_ms))
                    summary.sent += 1
                except BadInput as error:
                    summary.rejected += 1
                    summary.rejects.append(Reject(number, str(error)))
            for ack in acks:
                await ack
                summary.acknowledged += 1
        return summary

    return _finish(run_async(work()), as_json)


def item_line(item_id: str, fields: tuple[str, ...]) -> bytes:
    """``ID name=value…`` as the JSON line of an item. Raises ``click.UsageError`` for what is no name=value."""
    line: dict[str, Any] = {"item_id": item_id}
    attributes: dict[str, Any] = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{text!r} is not NAME=VALUE")
        if name in line or name in attributes:
            raise click.UsageError(f"{name} is there twice")
        if name == "category":
            line[name] = value
        elif name in ("content_vector", "event_time_ms"):
            try:
                line[name] = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise click.UsageError(f"{name}: not JSON: {error}") from None
        else:
            attributes[name] = _attribute(value)
    return orjson.dumps({**line, "attributes": attributes})


def _attribute(text: str) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    is_attribute = isinstance(value, (str, int, float, list)) and not isinstance(value, bool)
    return value if is_attribute else text


async def _publish_lines(
    settings: Settings, kind: LineKind, source: int, size: int | None, keep: Callable[[Reject, bytes], None] | None
) -> PublishSummary:
    with _stop_on_signals() as stop:
        async with EventPublisher(settings, source="aif/publish") as publisher:
            reader = LineReader(source, publisher.line_limit_bytes(kind))
            with _progress(kind, reader, size) as show:
                return await publisher.publish_lines(kind, reader, on_progress=show, on_reject=keep, stop=stop)


def _reject_writer(file: BinaryIO) -> Callable[[Reject, bytes], None]:
    def write(reject: Reject, raw: bytes) -> None:
        text = raw[:_REJECT_TEXT_BYTES].decode("utf-8", "replace")
        file.write(orjson.dumps({"line": reject.line, "problem": reject.problem, "text": text}) + b"\n")

    return write


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """Set on the first SIGINT or SIGTERM; the second one ends the process as usual."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _progress(kind: str, reader: LineReader, size: int | None) -> Iterator[Callable[[PublishSummary], None] | None]:
    """A bar on stderr when that is a terminal: bytes of the file that were read, records acknowledged."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{kind} (KiB)", total=size // 1024 if size else None)

        def show(summary: PublishSummary) -> None:
            text = f"{kind}: {summary.acknowledged:,} acknowledged, {summary.rejected:,} rejected · KiB"
            progress.update(task, completed=reader.bytes_read // 1024, description=text)

        yield show


def _finish(summary: PublishSummary, as_json: bool) -> int:
    """Print the summary; the exit code."""
    if as_json:
        shape: dict[str, Any] = {
            "sent": summary.sent,
            "acknowledged": summary.acknowledged,
            "rejected": summary.rejected,
            "rejects": [reject._asdict() for reject in summary.rejects],
            "interrupted": summary.interrupted,
        }
        if summary.problem:
            shape["problem"] = summary.problem
        click.echo(orjson.dumps(shape).decode())
    else:
        end = " (interrupted)" if summary.interrupted else ""
        click.echo(
            f"sent {summary.sent:,} · acknowledged {summary.acknowledged:,} · rejected {summary.rejected:,}{end}"
        )
        for reject in summary.rejects[:_SHOWN_REJECTS]:
            click.echo(f"  line {reject.line}: {reject.problem}", err=True)
        if summary.rejected > _SHOWN_REJECTS:
            click.echo(f"  … {summary.rejected - _SHOWN_REJECTS:,} more (--rejects FILE keeps them)", err=True)
    if summary.problem:
        click.echo(f"error: {summary.problem}", err=True)
    if unknown := summary.sent - summary.acknowledged:
        click.echo(f"error: {unknown:,} were sent but not acknowledged: publish them again", err=True)
    if summary.interrupted:
        return 130
    if not summary.complete:
        return 1
    return 3 if summary.rejected else 0
