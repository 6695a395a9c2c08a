"""Files of request lines, and the words that name a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.clock import to_rfc3339
from aif_stream.errors import BadInput
from aif_stream.replay.lines import parse_range, parse_time, read_lines, write_lines

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.zst"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    lines = [b'{"user_id": "%d", "x": "%s"}' % (i, b"abc" * (i % 400)) for i in range(5_000)]
    with write_lines(tmp_path / name) as write:
        for line in lines:
            write(line)
    with read_lines(tmp_path / name) as found:
        assert [line.rstrip(b"\n") for line in found] == lines
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_compressed_export_is_smaller(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.zst"):
        with write_lines(tmp_path / name) as write:
            for i in range(1_000):
                write(b'{"user_id": "%d", "received_ms": 1700000000000}' % i)
    assert (tmp_path / "a.jsonl.zst").stat().st_size * 4 < (tmp_path / "a.jsonl").stat().st_size


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> None:
        with write_lines(tmp_path / "log.jsonl") as write:
            write(b"{}")
            raise BadInput("broken")

    with pytest.raises(BadInput):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_written_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe, target, link = (tmp_path / name for name in ("pipe", "target", "link"))
    os.mkfifo(pipe)
    target.touch()
    link.symlink_to(target)
    held = os.open(pipe, os.O_RDWR)  # so that neither end waits for the other
    try:
        for path in (pipe, link, Path(os.devnull)):
            with write_lines(path) as write:
                write(b"{}")
        assert os.read(held, 10) == b"{}\n"
    finally:
        os.close(held)
    assert link.is_symlink()
    assert target.read_bytes() == b"{}\n"
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "target", "link"}


@pytest.mark.parametrize("name", ["", "nothing/log.jsonl"])
def test_where_no_file_can_be_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput), write_lines(tmp_path / name):
        pass


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.zst"
    path.write_bytes(b"{}\n")
    with pytest.raises(BadInput, match=r"log\.jsonl\.zst"), read_lines(path):
        pass
    with pytest.raises(BadInput, match="nothing"), read_lines(tmp_path / "nothing"):
        pass


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("now", NOW_MS),
        ("-90s", NOW_MS - 90_000),
        ("-1.5h", NOW_MS - 5_400_000),
        ("-2d", NOW_MS - 172_800_000),
        ("30m", NOW_MS - 1_800_000),
        ("-99999999d", 0),
        ("1699999999999", 1_699_999_999_999),
        ("2023-11-14T22:13:20Z", NOW_MS),
        ("2023-11-14T23:13:20+01:00", NOW_MS),
    ],
)
def test_a_time_may_be_said_in_four_ways(text: str, ms: int) -> None:
    assert parse_time(text, NOW_MS) == ms


@given(ms=st.integers(0, 253_402_300_799_999))
def test_every_time_is_read_back_from_rfc_3339(ms: int) -> None:
    assert parse_time(to_rfc3339(ms), NOW_MS) == ms


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "-1w",
        "",
        "2023-11-14T22:13:20",
        "1e3",
        "1969-12-31T23:59:59Z",
        "9" * 20,
        "9" * 5_000,
        "9" * 400 + "d",
    ],
)
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BadInput, match="-15m"):
        parse_time(text, NOW_MS)


def test_a_range_may_be_open_and_must_not_end_before_it_begins() -> None:
    assert parse_range("..", NOW_MS) == (0, NOW_MS)
    assert parse_range("-1m..now", NOW_MS) == (NOW_MS - 60_000, NOW_MS)
    for text in ("now..-1h", "-1h"):
        with pytest.raises(BadInput):
            parse_range(text, NOW_MS)
