"""``aif dlq show N``: one letter, decoded and raw."""

from __future__ import annotations

import json
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import Entry, Letter
from aif_stream.bus.mends import Outgoing, check, export_line, text_of
from aif_stream.cli.values import plain
from aif_stream.clock import now_ms, to_rfc3339
from aif_stream.errors import BadEvent, BadInput
from aif_stream.settings import Settings

_DUMP_BYTES: Final = 1_024  # of a value that is no text; --json has all of it


async def show_letter(settings: Settings, number: int, as_json: bool) -> None:
    """Print it. Raises ``BadInput`` when there is no such letter."""
    async with LetterLog(settings) as letters:
        entry = letters.book.entries.get(number)
        if entry is None:
            raise BadInput(f"there is no letter {number}", mend="aif dlq ls --all")
        found = [letter async for letter in letters.letters([number])]
    if not found:
        raise BadInput(f"the broker no longer has letter {number}", mend="aif dlq ls")
    if as_json:
        click.echo(orjson.dumps(shape_of(entry, found[0], settings)).decode())
    else:
        print_letter(entry, found[0], settings)


def shape_of(entry: Entry, letter: Letter, settings: Settings) -> dict[str, Any]:
    """What ``--json`` prints."""
    shape: dict[str, Any] = orjson.loads(export_line(letter))
    return {
        **shape,
        "state": entry.state.value,
        "handled_by": entry.by or None,
        "how": entry.how or None,
        "redriven_from": letter.head.redriven_from,
        "appended_ms": letter.head.appended_ms,
        "truncated_bytes": letter.head.truncated,
        "key_hex": letter.key.hex() if letter.key is not None else None,
        "value_hex": letter.value.hex() if letter.value is not None else None,
        "headers_hex": {name: None if data is None else data.hex() for name, data in letter.headers},
        "now": verdict(letter, settings),
    }


def verdict(letter: Letter, settings: Settings) -> str:
    """What this release's consumers would say to it today: "usable" or the problem."""
    head = letter.head
    try:
        record = Outgoing(head.topic, letter.key, letter.value, letter.headers, now_ms(), head.partition)
        check(record, settings.max_ahead_ms)
    except BadEvent as error:
        return str(error)
    return "usable"


def print_letter(entry: Entry, letter: Letter, settings: Settings) -> None:
    """For people."""
    head = letter.head
    facts = {
        "letter": f"{head.number}, {entry.state.value}{f' ({entry.how} by {entry.by})' if entry.how else ''}",
        "put aside": to_rfc3339(head.put_ms),
        "from": f"{head.topic or 'unknown'}, partition {head.partition}, offset {head.offset}",
        "appended": to_rfc3339(max(0, head.appended_ms)),
        "reason": head.reason,
        "problem": head.problem,
        "today": verdict(letter, settings),
        "attempts": str(head.attempts),
        "key": _bytes(letter.key),
    }
    if head.redriven_from is not None:
        facts["sent again from"] = f"letter {head.redriven_from}"
    if head.truncated is not None:
        facts["cut"] = f"{head.size_bytes} of {head.truncated} bytes are here"
    facts |= {f"header {name}": _bytes(data) for name, data in letter.headers}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(escape(plain(name)), escape(plain(text)))
    console = Console()
    console.print(table)
    console.print()
    console.print(escape(plain(_value(letter.value))), highlight=False)


def _bytes(data: bytes | None) -> str:
    if data is None:
        return "none"
    text = text_of(data) or ""
    return text if text.startswith("hex:") else f"{text}  (hex {data.hex()[:80]}{'…' if len(data) > 40 else ''})"


def _value(value: bytes | None) -> str:
    """JSON indented, text as it is, other bytes as a dump."""
    if value is None:
        return "no value (a tombstone)"
    try:
        return json.dumps(orjson.loads(value), indent=2, ensure_ascii=False)
    except (orjson.JSONDecodeError, RecursionError):  # not JSON, or nested too deep to be indented
        pass
    try:
        return f"{len(value)} bytes, not JSON:\n{value.decode()}"
    except UnicodeDecodeError:
        return f"{len(value)} bytes, not UTF-8:\n{_dump(value[:_DUMP_BYTES])}"


def _dump(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:06x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)
