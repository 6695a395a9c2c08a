"""`aif dlq` on the embedded broker: what is sent, given up, left, and what that broker cannot do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aif_stream.bus import redrive as redrive_module
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import Filter, LetterState, Marker, Step, marker_record
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.redrive import Redrive, RedriveOptions, RedriveSummary
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES
from aif_stream.bus.trim import delete_before
from aif_stream.errors import TopicError
from aif_stream.settings import Settings
from tests.bus_builders import FakeRecord
from tests.command import aif, aif_json
from tests.integration.bus.conftest import PREFIX, Bus
from tests.letter_builders import write_lines


async def _put(settings: Settings, count: int, reason: str = "collision", **more: object) -> list[int]:
    """Letters whose records are good: only a consumer that has been mended can tell."""
    async with Producer(settings, "test") as producer:
        letters = DeadLetters(settings, producer)
        record = FakeRecord(topic=PREFIX + ITEM_UPDATES, **more)  # type: ignore[arg-type]
        return [(await letters.put(record, reason=reason, problem="p")).offset for _ in range(count)]


async def _redrive(settings: Settings, chosen: Filter | None = None, **options: object) -> RedriveSummary:
    async with Redrive(settings, RedriveOptions(**options)) as run:  # type: ignore[arg-type]
        return await run.run(chosen or Filter())


async def _states(settings: Settings) -> dict[int, LetterState]:
    async with LetterLog(settings) as log:
        return {number: entry.state for number, entry in log.book.entries.items()}


async def _sent(settings: Settings) -> int:
    async with LogReader(settings, ITEM_UPDATES) as reader:
        return sum((await reader.end_offsets()).values())


async def test_a_dry_run_sends_and_marks_nothing(bus: Bus) -> None:
    numbers = await _put(bus.settings, 3)
    summary = await _redrive(bus.settings, dry_run=True)
    assert (summary.selected, summary.sent, summary.left) == (3, 3, [])
    assert await _states(bus.settings) == dict.fromkeys(numbers, LetterState.OPEN)
    assert await _sent(bus.settings) == 0


async def test_only_what_the_filter_takes_is_sent_and_once(bus: Bus) -> None:
    await _put(bus.settings, 2)
    others = await _put(bus.settings, 2, reason="key")
    chosen = Filter(reasons=frozenset({"key"}))
    assert (await _redrive(bus.settings, chosen)).sent == 2
    assert (await _redrive(bus.settings, chosen)).selected == 0
    states = await _states(bus.settings)
    assert [number for number, state in states.items() if state is LetterState.HANDLED] == others
    assert await _sent(bus.settings) == 2


async def test_a_letter_that_somebody_holds_is_left_to_him_until_his_lease_ends(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (number,) = await _put(bus.settings, 1)
    async with Producer(bus.settings, "test") as producer:
        marker = Marker(step=Step.CLAIM, claim="a process that died", by="it", letters=[number])
        await (await producer.send(DEAD_LETTERS, *marker_record(marker)))
    assert (await _redrive(bus.settings)).selected == 0
    monkeypatch.setattr("aif_stream.bus.letters.LEASE_MS", -1)
    assert (await _redrive(bus.settings)).sent == 1
    assert await _states(bus.settings) == {number: LetterState.HANDLED}


async def test_a_redrive_that_is_broken_off_gives_back_what_it_has_not_sent(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive_module, "_CLAIM_S", 1_000.0)
    numbers = await _put(bus.settings, 200)  # 40 s of them: however late it is looked at, some are left
    async with Redrive(bus.settings, RedriveOptions(rate=5.0)) as run:
        running = asyncio.create_task(run.run(Filter()))
        async with asyncio.timeout(30):
            while await _sent(bus.settings) < 2:
                pass
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    states = await _states(bus.settings)
    handled = [number for number, state in states.items() if state is LetterState.HANDLED]
    assert handled == numbers[: len(handled)]
    assert len(handled) == run.summary.sent == await _sent(bus.settings) < 200
    assert set(states.values()) == {LetterState.HANDLED, LetterState.OPEN}


async def test_a_source_that_is_none_of_our_topics_is_refused(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        await (await producer.send(DEAD_LETTERS, b"k", b"v", []))
    (left,) = (await _redrive(bus.settings)).left
    assert (left.result, "none of our topics" in left.problem) == ("refused", True)
    assert set((await _states(bus.settings)).values()) == {LetterState.OPEN}


async def test_the_embedded_broker_says_that_it_cannot_delete(bus: Bus) -> None:
    with pytest.raises(TopicError, match="cannot delete records"):
        await delete_before(bus.settings, DEAD_LETTERS, 0, 1)


async def test_the_verb_lists_shows_mends_and_gives_up(bus: Bus, tmp_path: Path) -> None:
    numbers = await _put(bus.settings, 3, reason="unreadable", value=b"{", key=b"\xff")
    code, view = await aif_json(bus.settings, "dlq", "ls", "--reason", "unreadable", "--since", "1h")
    assert (code, view["open"], view["groups"][0]["letters"]) == (0, 3, numbers)
    code, letter = await aif_json(bus.settings, "dlq", "show", str(numbers[0]))
    assert (code, letter["value_hex"], letter["key_hex"], letter["state"]) == (0, "7b", "ff", "open")
    assert "not JSON" in letter["now"]
    code, out, _ = await aif(bus.settings, "dlq", "show", str(numbers[0]))
    assert (code, b"hex:ff" in out, b"offset 41" in out) == (0, True, True)
    code, _, err = await aif(bus.settings, "dlq", "show", "999")
    assert (code, "no letter 999" in err) == (1, True)
    code, _, err = await aif(bus.settings, "dlq", "redrive", "999")
    assert (code, "no letters 999" in err) == (1, True)
    code, _, err = await aif(bus.settings, "dlq", "ls", "--export", str(tmp_path / "nothing" / "x"))
    assert (code, "No such file" in err) == (1, True)

    line = {"letter": numbers[0], "line": {"item_id": 1, "category": "c"}}
    file = write_lines(tmp_path / "m.jsonl", [line, {"letter": numbers[1], "drop": True}])
    code, summary = await aif_json(bus.settings, "dlq", "redrive", "--mend", str(file))
    assert (code, summary["sent"], summary["dropped"], summary["left"]) == (0, 1, 1, [])
    code, _, err = await aif(
        bus.settings, "dlq", "redrive", "--mend", str(write_lines(tmp_path / "x.jsonl", [{"letter": 77}]))
    )
    assert (code, "no letters 77" in err) == (1, True)

    code, summary = await aif_json(bus.settings, "dlq", "redrive")
    assert (code, [left["result"] for left in summary["left"]]) == (3, ["refused"])
    code, _, err = await aif(bus.settings, "dlq", "purge", "--reason", "unreadable")
    assert (code, "--discard" in err) == (2, True)
    code, _, err = await aif(bus.settings, "dlq", "purge", "--discard", "--yes")
    assert (code, "cannot delete records" in err) == (1, True)
    code, out, _ = await aif(bus.settings, "dlq", "ls", "--json")
    assert (json.loads(out)["open"], json.loads(out)["handled"]) == (0, 3)
