"""``aif publish`` as a process: exit codes, the JSON shape, the rejects file, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aif_stream.bus.events import item_from_record
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.settings import Settings
from tests.integration.bus.conftest import Bus

GOOD = b'{"item_id":1,"category":"c"}\n'


async def start(settings: Settings, *words: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "AIF_KAFKA_BOOTSTRAP": settings.kafka_bootstrap, "AIF_TOPIC_PREFIX": "t."}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aif_stream", "publish", *words),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(settings: Settings, *words: str, stdin: bytes = b"") -> tuple[int | None, Any]:
    process = await start(settings, *words, "--json")
    out, err = await process.communicate(stdin)
    assert out, err.decode()
    return process.returncode, json.loads(out)


async def items(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with LogReader(settings, ITEM_UPDATES) as reader, asyncio.timeout(30):
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            for record in await reader.poll():
                event = item_from_record(record)
                found[event.id_text] = event.item
    return found


async def test_a_file_is_published_and_wrong_lines_go_to_the_rejects_file(bus: Bus, tmp_path: Path) -> None:
    file, rejects = tmp_path / "items.jsonl", tmp_path / "rejects.jsonl"
    file.write_bytes(
        GOOD + b"\nnope\n" + b'{"item_id":2,"category":"' + b"x" * 10_000_000 + b'"}\n' + b'{"item_id":3,"category":4}'
    )
    code, summary = await run(bus.settings, "items", str(file), "--rejects", str(rejects))
    assert code == 3
    assert (summary["sent"], summary["acknowledged"], summary["rejected"]) == (2, 2, 2)
    assert [reject["line"] for reject in summary["rejects"]] == [3, 4]
    assert "longer than 10" in summary["rejects"][1]["problem"]
    kept = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(reject["line"], reject["text"][:8]) for reject in kept] == [(3, "nope"), (4, '{"item_i')]
    assert set(await items(bus.settings)) == {"1", "3"}


async def test_stdin_users_and_behaviors_are_published(bus: Bus) -> None:
    code, summary = await run(bus.settings, "users", "-", stdin=b'{"user_id":"u","attributes":{}}\n')
    assert (code, summary["acknowledged"], summary["rejects"]) == (0, 1, [])
    code, summary = await run(bus.settings, "behaviors", "-", stdin=b'{"user_id":"u","item_id":1,"kind":"buy"}')
    assert (code, summary["acknowledged"]) == (0, 1)


async def test_one_item_and_removals_are_published(bus: Bus) -> None:
    code, summary = await run(bus.settings, "item", "7", "category=x", "content_vector=[1,2]", "price=5")
    assert (code, summary["sent"], summary["acknowledged"], summary["rejected"]) == (0, 1, 1, 0)
    assert (await items(bus.settings))["7"].attributes == {"price": 5}
    code, summary = await run(bus.settings, "remove", "7", "", "8")
    assert (code, summary["acknowledged"], [reject["line"] for reject in summary["rejects"]]) == (3, 2, [2])
    assert await items(bus.settings) == {"7": None, "8": None}
    code, summary = await run(bus.settings, "item", "9", "price=5")
    assert (code, summary["rejected"]) == (3, 1)
    assert "category" in summary["rejects"][0]["problem"]


async def test_ctrl_c_leaves_a_truthful_summary(bus: Bus) -> None:
    process = await start(bus.settings, "items", "-", "--json")
    assert process.stdin is not None
    process.stdin.write(GOOD * 10)
    await process.stdin.drain()
    async with asyncio.timeout(60):
        while not await items(bus.settings):  # it has read them, and waits for more
            pass
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.gather(process.stdout.read(), process.stderr.read())  # type: ignore[union-attr]
        assert await process.wait() == 130
    summary = json.loads(out)
    assert (summary["sent"], summary["acknowledged"], summary["interrupted"]) == (10, 10, True)


async def test_without_a_broker_the_error_says_where_and_the_exit_is_1(bus: Bus) -> None:
    await bus.broker.set_down()
    process = await start(bus.settings, "items", "-")
    out, err = await process.communicate(GOOD)
    assert (process.returncode, out) == (1, b"")
    assert bus.settings.kafka_bootstrap.encode() in err
    assert b"AIF_KAFKA_BOOTSTRAP" in err
