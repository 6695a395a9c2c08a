"""Lines of JSONL: what is refused, and that what is accepted is sent as it came."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.bus.lines import KINDS, LineReader, parse_line, split_lines
from aif_stream.cli.publish import item_line
from aif_stream.domain.events import decode_item
from aif_stream.errors import BadEvent, BadInput

ITEMS, USERS, BEHAVIORS = KINDS["items"], KINDS["users"], KINDS["behaviors"]
LIMIT = 10_000
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=5))
JSON_VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
ATTRIBUTES = st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers(0, 9), max_size=4)


@given(ATTRIBUTES, st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=3), st.booleans())
def test_a_line_without_duplicate_keys_is_accepted_and_kept_byte_for_byte(
    attributes: dict[str, Any], unknown: dict[str, Any], spaced: bool
) -> None:
    data = {**unknown, "item_id": 7, "category": "c", "attributes": attributes}
    for name in ("content_vector", "event_time_ms"):
        data.pop(name, None)
    line = json.dumps(data, separators=None if spaced else (",", ":")).encode()
    assert parse_line(ITEMS, line, LIMIT) == (b"7", line, None)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"item_id":1,"item_id":2,"category":"c"}', "item_id"),
        (b'{"item_id":1,"category":"c","attributes":{"a":1,"a":2}}', "a"),
        (b'{"item_id":1,"category":"c","attributes":{"a":1},"attributes":{"a":1}}', "attributes"),
        (b'{"item_id":1,"category":"c","x":{"y":1,"y":1}}', "y"),
        (b'{"item_id" : 1 , "item_id" : 1 , "category" : "c"}', "item_id"),
        (b'{"item_id":1,"item\\u005fid":2,"category":"c"}', "item_id"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(line: bytes, field: str) -> None:
    with pytest.raises(BadInput, match="twice") as caught:
        parse_line(ITEMS, line, LIMIT)
    assert caught.value.field == field


def test_an_attribute_may_have_the_name_of_a_field() -> None:
    line = b'{"item_id":1,"category":"c","attributes":{"item_id":5,"category":"d"}}'
    assert parse_line(ITEMS, line, LIMIT).key == b"1"


def test_the_key_is_the_id_as_text_and_the_event_time_is_taken_out() -> None:
    assert parse_line(ITEMS, b'{"item_id":7,"category":1,"event_time_ms":5}', LIMIT)[::2] == (b"7", 5)
    assert parse_line(USERS, '{"user_id":"ö","attributes":{}}'.encode(), LIMIT).key == "ö".encode()
    assert parse_line(BEHAVIORS, b'{"user_id":"u","item_id":7,"kind":"buy"}', LIMIT).key == b"u"


def test_a_line_beyond_the_limit_is_refused_with_the_limit() -> None:
    line = json.dumps({"item_id": 1, "category": "x" * LIMIT}).encode()
    with pytest.raises(BadInput, match=f"longer than {LIMIT} bytes"):
        parse_line(ITEMS, line, LIMIT)


@pytest.mark.parametrize("line", [b"nope", b"[]", b'{"item_id":1}', b'{"item_id":-1,"category":"c"}', b"\xff\xfe"])
def test_a_wrong_line_is_a_bad_event(line: bytes) -> None:
    with pytest.raises(BadEvent):
        parse_line(ITEMS, line, LIMIT)


@pytest.mark.parametrize("huge", ["item_id", "user_id"])
def test_an_id_of_too_many_digits_is_refused_with_its_field(huge: str) -> None:
    line = json.dumps({"user_id": 1, "item_id": 1, "kind": "click"} | {huge: 10**300}).encode()
    with pytest.raises(BadInput) as caught:
        parse_line(BEHAVIORS, line, LIMIT)
    assert caught.value.field == huge


def test_a_body_splits_into_its_lines() -> None:
    assert split_lines(b"\xef\xbb\xbfa\r\nb\n\nc") == [b"a", b"b", b"", b"c"]
    assert split_lines(b"a\n") == [b"a"]


@given(st.lists(st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"").rstrip(b"\r")), max_size=30))
def test_a_file_gives_its_lines_cut_to_one_byte_more_than_the_limit(lines: list[bytes]) -> None:
    assert _read(b"".join(line + b"\r\n" for line in lines), limit=20) == [line[:21] for line in _no_bom(lines)]


def test_a_huge_line_is_never_in_memory_whole_and_the_next_one_is_read() -> None:
    data = b"a" * 3_000_000 + b"\nb\nlast without an end"
    assert _read(data, limit=100) == [b"a" * 101, b"b", b"last without an end"]


async def test_the_reader_gives_the_lines_of_a_pipe_as_they_come() -> None:
    out, into = os.pipe()
    try:
        lines = aiter(LineReader(out, 100))
        os.write(into, b"one\ntwo\npart")
        assert await anext(lines) == [b"one", b"two"]
        os.write(into, b"ner\n")
        assert await anext(lines) == [b"partner"]
    finally:
        os.close(into)
        os.close(out)


def _no_bom(lines: list[bytes]) -> list[bytes]:
    return [lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]] if lines else []


def _read(data: bytes, limit: int) -> list[bytes]:
    async def work() -> list[bytes]:
        out, into = os.pipe()
        writer = threading.Thread(target=_write_all, args=(into, data))
        writer.start()
        try:
            return [line for chunk in [c async for c in LineReader(out, limit)] for line in chunk]
        finally:
            writer.join()
            os.close(out)

    return asyncio.run(work())


def _write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as pipe:  # a descriptor has no path
        pipe.write(data)


def test_an_item_of_the_command_line_is_its_fields_and_attributes() -> None:
    fields = ("category=5", "content_vector=[1, 2]", "price=9.5", "name=a,b", 'tags=["x","y"]', "ok=true", "zip=007")
    item = decode_item(item_line("42", fields))
    assert (item.item_id, item.category, item.content_vector) == ("42", "5", [1.0, 2.0])
    assert item.attributes == {"price": 9.5, "name": "a,b", "tags": ["x", "y"], "ok": "true", "zip": "007"}


@pytest.mark.parametrize("fields", [("category",), ("=x",), ("a=1", "a=2"), ("content_vector=1,2",)])
def test_what_is_no_name_and_value_is_wrong_usage(fields: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        item_line("42", fields)


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from aif_stream.cli.publish import publish

    assert CliRunner().invoke(publish, ["items", str(tmp_path / "none")]).exit_code == 2
