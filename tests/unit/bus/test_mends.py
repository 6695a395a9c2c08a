"""What is sent in a dead letter's place: as it was or mended, with its event time, checked as consumers check."""

from __future__ import annotations

import json

import pytest

from aif_stream.bus.dead_letters import dead_letter_headers
from aif_stream.bus.events import behavior_from_record, item_from_record
from aif_stream.bus.letters import Letter, letter_of
from aif_stream.bus.mends import Outgoing, check, export_line, outgoing, read_mends
from aif_stream.errors import BadEvent, BadInput
from tests.bus_builders import NOW_MS, FakeRecord

LIMIT = 100_000
LINE = {"item_id": 7, "category": "c"}


def _letter(record: FakeRecord | None = None, **more: object) -> Letter:
    source = record or FakeRecord()
    headers = dead_letter_headers(source, reason="invalid", problem="p", attempts=1)
    made = [*headers, *((name, str(value).encode()) for name, value in more.items())]
    return letter_of(FakeRecord(value=source.value or b"", key=source.key, offset=5, headers=made), "")


def _mended(letter: Letter, **mend: object) -> Outgoing:
    line = json.dumps({"letter": 5, **mend}).encode()
    return outgoing(letter, read_mends([line])[5], LIMIT)


def test_a_letter_goes_back_as_it_was_and_says_how_often_it_was_tried() -> None:
    sent = outgoing(_letter(), None, LIMIT)
    source = FakeRecord()
    assert (sent.topic, sent.key, sent.value, sent.partition) == ("aif.item-updates", b"7", source.value, 3)
    assert list(sent.headers) == [*source.headers, ("aif_attempts", b"1"), ("aif_redriven_from", b"5")]
    check(sent, 0)
    assert item_from_record(sent).order.event_time_ms == NOW_MS


def test_a_tombstone_goes_back_as_a_tombstone() -> None:
    assert outgoing(_letter(FakeRecord(value=None)), None, LIMIT).value is None


def test_a_letter_of_which_only_a_part_is_here_is_not_sent() -> None:
    with pytest.raises(BadInput, match=r"bytes are here → the whole record is at aif\.item-updates/3/41"):
        outgoing(_letter(aif_truncated=9_999), None, LIMIT)


def test_a_stored_batch_that_could_not_be_parsed_is_not_sent_as_if_it_were_a_record() -> None:
    with pytest.raises(BadInput, match=r"publish what was at aif\.item-updates/3/41 from its source"):
        outgoing(_letter(aif_reason="unparseable"), None, LIMIT)


def test_a_batch_that_cannot_be_taken_apart_is_not_sent_as_a_record() -> None:
    headers = dead_letter_headers(FakeRecord(), reason="unparseable", problem="p", attempts=1)
    letter = letter_of(FakeRecord(headers=headers), "")
    with pytest.raises(BadInput, match="stored batch of Kafka"):
        outgoing(letter, None, LIMIT)


def test_a_mended_line_gets_its_key_and_keeps_the_event_time() -> None:
    sent = _mended(_letter(FakeRecord(value=b"{", key=b"wrong")), line=LINE)
    check(sent, 0)
    event = item_from_record(sent)
    assert (event.id_text, event.order.event_time_ms) == ("7", NOW_MS)


def test_the_event_time_is_the_lines_the_mends_the_letters_or_that_of_its_append() -> None:
    good, bare = _letter(), _letter(FakeRecord(headers=[]))
    times = [
        _mended(good, line={**LINE, "event_time_ms": 1}, event_time_ms=2),
        _mended(good, line=LINE, event_time_ms=2),
        _mended(good, line=LINE),
        _mended(bare, line=LINE),
    ]
    assert [item_from_record(sent).order.event_time_ms for sent in times] == [1, 2, NOW_MS, NOW_MS + 10]


def test_an_item_may_be_removed_instead() -> None:
    event = item_from_record(_mended(_letter(), remove="7"))
    assert (event.id_text, event.item) == ("7", None)


def test_behaviors_are_mended_by_lines_and_not_removed() -> None:
    letter = _letter(FakeRecord(topic="aif.behaviors"))
    sent = _mended(letter, line={"user_id": "u", "item_id": 1, "kind": "click"})
    assert behavior_from_record(sent).behavior.user_id == "u"
    with pytest.raises(BadInput, match="only items are removed"):
        _mended(letter, remove="7")


@pytest.mark.parametrize(
    ("mend", "problem"),
    [
        ({"line": {"item_id": 7}}, "category"),
        ({"line": None}, "neither line nor remove nor drop"),
        ({"line": [1]}, "Expected `object`"),
        ({"line": {**LINE, "title": "x" * LIMIT}}, "longer than"),
        ({"remove": ""}, "remove"),
    ],
)
def test_a_mend_that_is_wrong_says_why(mend: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        _mended(_letter(), **mend)


def test_records_of_other_topics_are_not_mended_by_lines() -> None:
    with pytest.raises(BadInput, match="not mended by lines"):
        _mended(_letter(FakeRecord(topic="aif.rebuild-tasks")), line=LINE)


def test_what_would_fail_again_is_refused_before_it_is_sent() -> None:
    with pytest.raises(BadEvent, match="category"):
        check(outgoing(_letter(FakeRecord(value=b'{"item_id":7}')), None, LIMIT), 0)
    with pytest.raises(BadEvent, match="ahead"):
        check(_mended(_letter(), line={**LINE, "event_time_ms": NOW_MS * 2}), 0)


@pytest.mark.parametrize("lines", [[b"nope"], [b'{"line":{}}'], [b'{"letter":1}', b"", b'{"letter":1}']])
def test_a_mend_file_that_is_wrong_names_the_line(lines: list[bytes]) -> None:
    with pytest.raises(BadInput, match=f"line {len(lines)}"):
        read_mends(lines)


def test_an_exported_line_is_a_mend_as_it_stands() -> None:
    letter = _letter()
    exported = export_line(letter)
    assert json.loads(exported)["line"] == {"item_id": 7, "category": "c"}
    sent = outgoing(letter, read_mends([exported])[5], LIMIT)
    assert item_from_record(sent).order.event_time_ms == NOW_MS
    broken = json.loads(export_line(_letter(FakeRecord(value=b"\xff"))))
    assert (broken["value"], broken["line"]) == ("hex:ff", None)
