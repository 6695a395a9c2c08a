"""``aif replay`` and ``aif requests`` as processes: shapes of the contract, exit codes, the page."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.replay.servers import small_server


async def aif(*arguments: str, home: Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aif_stream",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "AIF_HOME": str(home)},
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def log(path: Path, score: float | None, count: int = 40) -> str:
    """A log whose answers gave item 1 this score (the server gives it 0.5)."""
    line: dict[str, Any] = {"user_id": "<b>ann</b>", "received_ms": 1, "k": 1}
    if score is not None:
        line["items"] = [{"item_id": 1, "score": score}]
    path.write_bytes((orjson.dumps(line) + b"\n") * count)
    return str(path)


async def test_json_is_the_contracts_and_nothing_else_is_on_stdout(tmp_path: Path) -> None:
    async with small_server() as (url, _):
        code, out, err = await aif(
            "replay",
            log(tmp_path / "a", 0.5),
            "--rate",
            "200",
            "--to",
            url,
            "--json",
            "--max-drift",
            "0",
            home=tmp_path,
        )
    assert code == 0, err
    shape = orjson.loads(out)
    assert (shape["sent"], shape["errors"]) == (40, 0)
    assert shape["send_error_ms"].keys() >= {"p50", "p99"}
    assert shape["latency_ms"].keys() >= {"p50", "p99", "max"}
    assert shape["drift"].keys() >= {"overlap_at_k", "rank_correlation", "score_max_abs", "changed_items"}
    assert shape["drift"]["changed_items"] == []


async def test_drift_beyond_the_bound_is_exit_3_and_the_page_names_the_item(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    async with small_server() as (url, _):
        arguments = ("replay", log(tmp_path / "a", 0.25), "--rate", "200", "--to", url, "--report", str(page))
        code, out, err = await aif(*arguments, "--max-drift", "0.2", home=tmp_path)
        wide, _, _ = await aif(*arguments, "--max-drift", "0.3", home=tmp_path)
    assert (code, wide) == (3, 0)
    assert "drift 0.25" in err
    assert "changed item" in out
    html = page.read_text()
    assert "<td>1</td>" in html
    for outside in ("http-equiv", "<script", "<link", "src="):
        assert outside not in html


async def test_a_judgement_by_few_of_the_requests_says_so(tmp_path: Path) -> None:
    lines = [
        {"user_id": user, "received_ms": at, "k": 1, "items": [{"item_id": 1, "score": 0.5}]}
        for at, user in enumerate(["ann"] * 5 + ["cut"] * 15)
    ]
    tape = tmp_path / "a"
    tape.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    async with small_server() as (url, _):
        code, _, err = await aif("replay", str(tape), "--rate", "50", "--to", url, "--max-drift", "0", home=tmp_path)
    assert code == 0
    assert "5 of 20 requests" in err


async def test_a_log_without_answers_is_played_and_cannot_be_judged(tmp_path: Path) -> None:
    async with small_server() as (url, _):
        arguments = ("replay", log(tmp_path / "a", None), "--rate", "200", "--to", url, "--json")
        code, out, _ = await aif(*arguments, home=tmp_path)
        judged, _, err = await aif(*arguments, "--max-drift", "0", home=tmp_path)
    assert code == 0
    assert "drift" not in orjson.loads(out)
    assert judged == 1
    assert "--against" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--speed", "2", "--rate", "5"), 2, "exclude each other"),
        (("--to", "ftp://x"), 1, "is no address"),
        (("--to", "http://127.0.0.1:1"), 1, "does not answer"),
        (("--rate", "0"), 2, "--rate"),
        (("--max-drift", "nan"), 2, "no finite number"),
        (("--report", "nothing/r.html", "--to", "http://127.0.0.1:1"), 1, "cannot be written"),
    ],
)
async def test_wrong_usage_is_told(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, _, err = await aif("replay", log(tmp_path / "a", 0.5), *arguments, home=tmp_path)
    assert found == code
    assert words in err
    assert "Traceback" not in err


async def test_times_that_are_none_are_told(tmp_path: Path) -> None:
    code, _, err = await aif("requests", "export", "--since", "yesterday", str(tmp_path / "x"), home=tmp_path)
    assert code == 1
    assert "-15m" in err
    code, _, err = await aif(
        "requests", "export", "--since", "now", "--until", "-1h", str(tmp_path / "x"), home=tmp_path
    )
    assert code == 2
    code, _, err = await aif("replay", "kafka:-1h", home=tmp_path)
    assert code == 1
    assert "kafka:SINCE..UNTIL" in err
