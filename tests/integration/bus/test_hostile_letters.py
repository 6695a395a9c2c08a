"""Hostile records of ``aif.dead-letters`` between good ones: every verb and the doctor read on and serve the others."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import orjson
from rich.console import Console

from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import MARKER, Filter, LetterState, head_of, letter_of
from aif_stream.bus.mends import export_line
from aif_stream.bus.producer import Producer
from aif_stream.bus.redrive import Redrive, RedriveOptions
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES
from aif_stream.cli.dlq_show import print_letter, shape_of
from aif_stream.cli.dlq_table import groups_table
from aif_stream.runtime.bus_health import check_letters
from aif_stream.settings import Settings
from tests.bus_builders import FakeRecord
from tests.command import aif, aif_json
from tests.hostile_builders import DEEP, Headers, bad_headers, with_header
from tests.integration.bus.conftest import PREFIX, Bus

OWN = (
    *("aif_topic", "aif_partition", "aif_offset", "aif_timestamp", "aif_reason", "aif_attempts", "aif_problem"),
    *("aif_redriven_from", "aif_truncated", "aif_null_value"),
)
GOOD = 5


async def put(settings: Settings) -> tuple[list[int], list[int]]:
    """Numbers of the good letters, whose records can be sent again, and of the hostile ones around them."""
    good: list[int] = []
    wrong: list[int] = []
    record = FakeRecord(topic=PREFIX + ITEM_UPDATES)
    async with Producer(settings, "test") as producer:
        letters = DeadLetters(settings, producer)
        good.append((await letters.put(record, reason="collision", problem="p")).offset)
        base = await _headers_of(settings, good[0])
        for number, (value, headers) in enumerate(hostile(base)):
            key = None if number % 2 and value is not None else b"7"
            wrong.append((await (await producer.send(DEAD_LETTERS, key, value, headers))).offset)
            if number % 20 == 0 and len(good) < GOOD:
                good.append((await letters.put(record, reason="collision", problem="p")).offset)
    assert len(good) == GOOD
    return good, wrong


async def _headers_of(settings: Settings, number: int) -> Headers:
    async with LetterLog(settings) as log:
        async for letter in log.letters([number]):
            head = letter.head
            own = [("aif_topic", PREFIX + head.topic), ("aif_reason", head.reason), ("aif_problem", head.problem)]
            numbers = [("aif_partition", head.partition), ("aif_offset", head.offset), ("aif_timestamp", 1)]
            said = [*own, *numbers, ("aif_attempts", head.attempts)]
            return [*letter.headers, *((name, str(value).encode()) for name, value in said)]
    raise AssertionError("the letter is there")


def hostile(base: Headers) -> list[tuple[bytes | None, Headers]]:
    line = FakeRecord().value
    wrong: list[tuple[bytes | None, Headers]] = [(line, headers) for _, headers in bad_headers(base, *OWN, "ce_time")]
    nested = b'{"a":' * 900 + b"1" + b"}" * 900
    wrong += [(value, base) for value in (DEEP, nested, b"[" * 900 + b"]" * 900, b"", None, b"\xff", b"9" * 5_000)]
    wrong += [(line, with_header(base, "aif_partition", b"%d" % number)) for number in (999, 2**31 - 1, 2**40)]
    wrong += [(line, with_header(base, name, b"[/red][bold]\x1b[2J")) for name in ("aif_reason", "aif_problem")]
    wrong += [(line, with_header(base, "aif_topic", b"[/]")), (line, []), (line, [*base, ("", None), ("x", None)])]
    late = "9999-12-31T23:59:59.999-23:59"
    wrong += [(line, with_header(base, "ce_time", late.encode())), (b"{", with_header(base, "ce_time", late.encode()))]
    wrong += [
        (value, [(MARKER, None)]) for value in (DEEP, b"[1]", b"", b'{"step":"claim","letters":[%s]}' % (b"9" * 5_000))
    ]
    return wrong


async def test_hostile_letters_stop_no_reader(bus: Bus, tmp_path: Path) -> None:
    good, wrong = await put(bus.settings)
    async with LetterLog(bus.settings) as log:
        states = [log.book.entries[number].state for number in good]
        known = [number for number in (*good, *wrong) if number in log.book.entries]
        assert states == [LetterState.OPEN] * GOOD
        read = [letter.head.number async for letter in log.letters(known)]
        assert read == sorted(known)
    assert "wait" in str((await check_letters(bus.settings))[0])
    code, view = await aif_json(bus.settings, "dlq", "ls", "--export", str(tmp_path / "all.jsonl"))
    assert (code, view["open"], view["exported"]) == (0, len(known), len(known))
    exported = [json.loads(line)["letter"] for line in (tmp_path / "all.jsonl").read_bytes().splitlines()]
    assert exported == sorted(known)
    for width in (200, 60):
        Console(width=width, quiet=True).print(groups_table(view["groups"], width))

    async with Redrive(bus.settings, RedriveOptions(rate=0)) as run:
        summary = await run.run(Filter())
    left = {outcome.letter for outcome in summary.left}
    assert not left & set(good), "every good letter is sent"
    assert summary.sent + len(left) == summary.selected
    async with Redrive(bus.settings, RedriveOptions()) as run:
        await run.drop(Filter())
    async with LetterLog(bus.settings) as log:
        assert log.book.in_state(LetterState.OPEN, LetterState.CLAIMED) == []


async def test_hostile_letters_can_be_exported_and_shown(bus: Bus) -> None:
    _, wrong = await put(bus.settings)
    async with LetterLog(bus.settings) as log:
        known = [number for number in wrong if number in log.book.entries]
        entries = log.book.entries
        async for letter in log.letters(known):
            number = letter.head.number
            assert json.loads(export_line(letter))["letter"] == number
            assert json.loads(orjson.dumps(shape_of(entries[number], letter, bus.settings)))["letter"] == number
            if sum(len(data or b"") for _, data in letter.headers) < 100_000:  # a screenful of more takes seconds
                with redirect_stdout(StringIO()):
                    print_letter(entries[number], letter, bus.settings)
    code, _, err = await aif(bus.settings, "dlq", "show", str(known[-1]))
    assert code == 0, err


def test_numbers_of_a_letter_are_bounded() -> None:
    base: Headers = [("aif_topic", b"aif.item-updates"), ("aif_problem", b"p")]
    for kind, headers in bad_headers(base, *OWN):
        head = head_of(FakeRecord(headers=headers, timestamp=2**62), "")
        assert 0 <= head.partition < 2**31, kind
        assert max(head.appended_ms, head.put_ms) < 253_402_300_800_000, kind
        assert 0 <= head.attempts <= 1_000_000, kind
        assert letter_of(FakeRecord(headers=headers), "").event_time_ms is None, kind
