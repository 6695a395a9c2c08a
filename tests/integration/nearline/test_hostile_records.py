"""Single hostile records between good ones: each is put aside, every good one is applied, and the lanes go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from aif_stream.bus.events import event_headers
from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS, ITEM_UPDATES, REBUILD_TASKS, USER_UPDATES
from aif_stream.domain.events import EventType
from aif_stream.domain.ids import key_of
from aif_stream.index.histories import HistoryStore
from tests.hostile_builders import DEEP, Headers, bad_headers, deep_json, with_header
from tests.nearline_builders import T0_MS, Stack, item_line, worker
from tests.stack import eventually

CE = ("ce_specversion", "ce_type", "ce_id", "ce_source", "ce_time")
TRIES = ("aif_attempts", "aif_redriven_from")
HUGE = b"9" * 5_000


def headers_of(kind: EventType) -> Headers:
    return event_headers(kind, "e", "test", T0_MS)


def wrong_attributes(kind: EventType) -> list[Headers]:
    """Each ``ce_*`` header without a value, and as bytes that are no text; some that we do not know among them."""
    names = (*CE, "ce_traceparent", "CE_OTHER", "ce_firstoffset")
    return [with_header(headers_of(kind), name, value) for name in names for value in (None, b"\xff\xfe")]


def wrong_tries(kind: EventType) -> list[Headers]:
    return [headers for _, headers in bad_headers(headers_of(kind), *TRIES) if not _is_number(headers[-1][1])]


def _is_number(value: bytes | None) -> bool:
    return value is not None and value.isdigit() and len(value) < 10


async def reasons(stack: Stack, count: int) -> Counter[str]:
    """Reasons of the dead letters, which are ``count`` at the end."""
    letters = await stack.topic(DEAD_LETTERS, count)
    assert len(letters) == count
    return Counter(dict(letter.headers)["aif_reason"].decode() for letter in letters)


async def test_wrong_item_headers_are_letters_and_good_items_live(stack: Stack, tmp_path: Path) -> None:
    wrong = [*wrong_attributes(EventType.ITEM_UPSERTED), *wrong_tries(EventType.ITEM_UPSERTED)]
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        for number, headers in enumerate(wrong):
            await stack.put.raw(ITEM_UPDATES, b"bad", item_line("bad"), headers)
            await stack.put.item(str(number), T0_MS)
        for number in range(len(wrong)):
            await stack.has(str(number), T0_MS)
            await stack.check_row(str(number), item_line(str(number)), T0_MS)
        assert await reasons(stack, len(wrong)) == {"envelope": len(wrong)}
        assert await stack.items("bad") == [None]
    async with worker(stack.settings):  # their offsets are committed: none comes again
        await stack.put.item("again", T0_MS)
        await stack.has("again", T0_MS)
        assert await reasons(stack, len(wrong)) == {"envelope": len(wrong)}


async def test_bad_items_with_wrong_tries_are_letters_once(stack: Stack) -> None:
    """The lane used to end while it counted the tries of a record that it put aside for another reason."""
    headers = with_header(headers_of(EventType.ITEM_UPSERTED), "aif_attempts", HUGE)
    values = [b"{not json", DEEP, b"", b"\x00", b"\xff", deep_json(item_id="1", category="tea")]
    async with worker(stack.settings):
        for value in values:
            await stack.put.raw(ITEM_UPDATES, b"1", value, headers)
        await stack.put.item("2", T0_MS)
        await stack.has("2", T0_MS)
        assert await reasons(stack, len(values)) == {"envelope": len(values)}


async def test_wrong_numbers_in_items_are_letters(stack: Stack, tmp_path: Path) -> None:
    numbers = [b"-1", b"1e400", b"-1" + b"0" * 400, HUGE, b"NaN", b"[]", b"1" + b"0" * 400]
    lines = [b'{"item_id":"1","category":%s}' % number for number in numbers]
    lines += [b'{"item_id":"1","category":"tea","attributes":{"price":%s}}' % n for n in (b"NaN", b"1e400", HUGE)]
    lines += [b'{"item_id":"1","category":"tea","content_vector":[%s]}' % n for n in (b"NaN", b"1e400", HUGE)]
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        for line in lines:
            await stack.put.raw(ITEM_UPDATES, b"1", line, headers_of(EventType.ITEM_UPSERTED))
        await stack.put.item("2", T0_MS)
        await stack.check_row("2", item_line("2"), (await stack.has("2", T0_MS)).order.event_time_ms)
        assert sum((await reasons(stack, len(lines))).values()) == len(lines)


async def test_wrong_users_and_behaviors_are_letters(stack: Stack) -> None:
    user, click = b'{"user_id":"u","attributes":{}}', b'{"user_id":"u","item_id":"1","kind":"click"}'
    wrong: list[tuple[str, bytes, Any]] = []
    for headers in (*wrong_attributes(EventType.USER_UPSERTED), *wrong_tries(EventType.USER_UPSERTED)):
        wrong.append((USER_UPDATES, user, headers))
    for headers in (*wrong_attributes(EventType.BEHAVIOR), *wrong_tries(EventType.BEHAVIOR)):
        wrong.append((BEHAVIORS, click, headers))
    deep = deep_json(user_id="u", attributes={}), deep_json(user_id="u", item_id="1", kind="click")
    wrong += [(USER_UPDATES, deep[0], headers_of(EventType.USER_UPSERTED))]
    wrong += [(BEHAVIORS, deep[1], headers_of(EventType.BEHAVIOR))]
    async with worker(stack.settings):
        for number, (topic, value, headers) in enumerate(wrong):
            await stack.put.raw(topic, b"u", value, headers)
            await stack.put.user(f"u{number}", T0_MS, {"age": number})
            await stack.put.behavior("fan", str(number), T0_MS + number)
        histories = HistoryStore(stack.redis, stack.settings.history_long)

        async def all_there() -> bool:
            users = [await histories.read(key_of(f"u{number}")) for number in range(len(wrong))]
            ages = [(user.attributes or {}).get("age") for user in users]
            clicks = (await histories.read(key_of("fan"))).history
            return ages == list(range(len(wrong))) and len(clicks) == len(wrong)

        await eventually(all_there, what="every good user and behavior is applied")
        found = await reasons(stack, len(wrong))
    assert found == {"envelope": len(wrong) - 2, "unreadable": 2}


async def test_hostile_rebuild_tasks_are_letters_and_rebuilds_end(stack: Stack, tmp_path: Path) -> None:
    bucket = b'{"version":"v","bucket":%s}'
    tasks = [DEEP, deep_json(version="v", bucket=1), b"", b"null", b"[1,2]", b'{"version":"a\\u0000b","bucket":1}']
    tasks += [b'{"version":"%s","bucket":1}' % (b"x" * 100_000)]
    tasks += [bucket % number for number in (b"-1", b"1" + b"0" * 30, b"1e400", HUGE, b"1.5", b"true", b"NaN")]
    async with worker(stack.settings):
        for number in range(8):
            await stack.put.item(str(number), T0_MS)
        for number in range(8):
            await stack.has(str(number), T0_MS)
        for task in tasks:
            await stack.put.raw(REBUILD_TASKS, b"1", task)
        async with asyncio.timeout(60):  # its own tasks lie behind the hostile ones
            await stack.publish_model(tmp_path)
        for number in range(8):
            await stack.check_row(str(number), item_line(str(number)), T0_MS)
        assert sum((await reasons(stack, len(tasks))).values()) == len(tasks)


async def test_repeated_headers_count_once_and_the_last_wins(stack: Stack) -> None:
    twice = [*headers_of(EventType.ITEM_UPSERTED), ("ce_time", b"2023-11-14T22:13:21.000Z")]
    async with worker(stack.settings):
        await stack.put.raw(ITEM_UPDATES, b"1", item_line("1"), [("ce_source", b"other"), *twice])
        await stack.has("1", 1_700_000_001_000)


async def test_odd_foreign_headers_do_not_cost_a_good_item(stack: Stack) -> None:
    own = headers_of(EventType.ITEM_UPSERTED)
    odd: list[Headers] = [
        [*own, ("trace", b"x" * 1_000_000)],
        [*own, ("trace", b"\xff"), ("trace", None), ("", b"")],
        with_header(own, "ce_source", b"[/]" * 1_000),
        with_header(own, "ce_id", "é".encode()),
    ]
    async with worker(stack.settings) as nearline:
        for number, headers in enumerate(odd):
            await stack.put.raw(ITEM_UPDATES, str(number).encode(), item_line(str(number)), headers)
        for number in range(len(odd)):
            await stack.has(str(number), T0_MS)
        assert all(len(name) <= 256 for name in nearline.facts("")["sources"])
