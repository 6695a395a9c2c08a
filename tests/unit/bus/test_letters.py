"""The book of dead letters: what markers do, whatever their order; kinds, numbers, tries."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from aif_stream.bus.dead_letters import dead_letter_headers
from aif_stream.bus.letters import (
    LEASE_MS,
    Filter,
    LetterBook,
    LetterState,
    Marker,
    Step,
    grouped,
    head_of,
    letter_of,
    marker_record,
    ranges,
)
from tests.bus_builders import NOW_MS, FakeRecord


def _letter(number: int, **more: object) -> FakeRecord:
    source = FakeRecord(topic="p.aif.item-updates")
    headers = dead_letter_headers(source, reason="invalid", problem="category: is missing → say it", attempts=1)
    record = FakeRecord(topic="p.aif.dead-letters", partition=0, offset=number, headers=headers, timestamp=NOW_MS)
    for name, value in more.items():
        setattr(record, name, value)
    return record


def _marker(number: int, step: Step, claim: str, letters: list[int], at_ms: int = NOW_MS) -> FakeRecord:
    key, value, headers = marker_record(Marker(step=step, claim=claim, by="me", how="redriven", letters=letters))
    return FakeRecord(value=value, key=key, offset=number, headers=headers, timestamp=at_ms)


def _book(*records: FakeRecord) -> LetterBook:
    book = LetterBook("p.")
    for record in records:
        book.apply(record)
    return book


def test_a_letter_tells_where_it_comes_from_and_keeps_its_own_headers() -> None:
    letter = letter_of(_letter(4), "p.")
    assert (letter.head.topic, letter.head.partition, letter.head.offset) == ("aif.item-updates", 3, 41)
    assert (letter.head.reason, letter.head.field, letter.head.attempts) == ("invalid", "category", 1)
    assert list(letter.headers) == list(FakeRecord().headers)


def test_of_two_claims_the_first_in_the_log_has_the_letter() -> None:
    book = _book(_letter(0), _letter(1), _marker(2, Step.CLAIM, "a", [0]), _marker(3, Step.CLAIM, "b", [0, 1]))
    assert book.held_by("a", [0, 1]) == {0}
    assert book.held_by("b", [0, 1]) == {1}


def test_a_claim_that_was_left_is_free_after_its_lease_and_not_before() -> None:
    for late, owner in ((LEASE_MS, "a"), (LEASE_MS + 1, "b")):
        book = _book(_letter(0), _marker(1, Step.CLAIM, "a", [0]), _marker(2, Step.CLAIM, "b", [0], NOW_MS + late))
        assert book.held_by(owner, [0]) == {0}


def test_released_letters_are_open_again_and_handled_ones_never() -> None:
    book = _book(_letter(0), _letter(1), _marker(2, Step.CLAIM, "a", [0, 1]))
    book.apply(_marker(3, Step.RELEASED, "b", [0, 1]))  # not its claim
    assert book.held_by("a", [0, 1]) == {0, 1}
    book.apply(_marker(4, Step.HANDLED, "a", [0]))
    book.apply(_marker(5, Step.RELEASED, "a", [0, 1]))
    assert [e.head.number for e in book.in_state(LetterState.OPEN)] == [1]
    assert book.handled_up_to(6) == 1
    book.apply(_marker(6, Step.CLAIM, "c", [0, 1], NOW_MS + 10 * LEASE_MS))
    assert book.held_by("c", [0, 1]) == {1}
    book.apply(_marker(7, Step.HANDLED, "c", [1]))
    assert book.handled_up_to(8) == 8


def test_markers_that_cannot_be_read_or_name_unknown_letters_change_nothing() -> None:
    key, _, headers = marker_record(Marker(step=Step.CLAIM, claim="a", by="me", letters=[0]))
    book = _book(_letter(0), FakeRecord(b"[]", key, headers=headers), _marker(2, Step.HANDLED, "a", [99]))
    assert book.entries.keys() == {0}
    assert book.entries[0].state is LetterState.OPEN


@given(st.lists(st.tuples(st.sampled_from(list(Step)), st.sampled_from("abc"), st.sets(st.integers(0, 3)))))
def test_no_letter_is_ever_held_by_two_and_a_handled_one_by_nobody(steps: list[tuple[Step, str, set[int]]]) -> None:
    book = _book(*(_letter(number) for number in range(4)))
    handled: set[int] = set()
    for at, (step, claim, letters) in enumerate(steps):
        book.apply(_marker(10 + at, step, claim, sorted(letters)))
        handled |= letters if step is Step.HANDLED else set()
        held = [book.held_by(name, range(4)) for name in "abc"]
        assert sum(map(len, held)) == len(set().union(*held))
        assert not set().union(*held) & handled
        assert {e.head.number for e in book.in_state(LetterState.HANDLED)} == handled


def test_a_record_that_somebody_else_put_there_is_listed_too() -> None:
    head = head_of(FakeRecord(headers=[], offset=7), "p.")
    assert (head.reason, head.topic, head.attempts, head.field) == ("unlabelled", "", 1, "")


def test_tries_of_redriven_records_add_up_and_our_headers_do_not_pile_up() -> None:
    again = FakeRecord(headers=[*FakeRecord().headers, ("aif_attempts", b"2"), ("aif_redriven_from", b"12")])
    headers = dead_letter_headers(again, reason="r", problem="p", attempts=1)
    head = head_of(FakeRecord(headers=headers), "")
    assert (head.attempts, head.redriven_from) == (3, 12)
    assert len([name for name, _ in headers if name == "aif_attempts"]) == 1


def test_letters_are_grouped_by_topic_reason_and_field() -> None:
    unreadable = dead_letter_headers(FakeRecord(), reason="unreadable", problem="not JSON: at 3: x", attempts=1)
    records = [_letter(0), _letter(1, timestamp=NOW_MS + 5), _letter(2, headers=unreadable)]
    random.Random(1).shuffle(records)
    groups = grouped(_book(*records).entries.values())
    assert [(g.reason, g.field, len(g.numbers)) for g in groups] == [("invalid", "category", 2), ("unreadable", "", 1)]
    assert groups[0].newest_ms - groups[0].oldest_ms == 5


def test_a_filter_takes_what_fits_all_its_parts() -> None:
    head = head_of(_letter(3), "p.")
    assert Filter().takes(head)
    assert Filter(frozenset({"invalid"}), frozenset({"aif.item-updates"}), NOW_MS, frozenset({3})).takes(head)
    for wrong in (
        Filter(reasons=frozenset({"key"})),
        Filter(topics=frozenset({"aif.behaviors"})),
        Filter(since_ms=NOW_MS + 1),
        Filter(numbers=frozenset({4})),
    ):
        assert not wrong.takes(head)


def test_numbers_are_written_as_ranges() -> None:
    assert ranges([7, 1, 2, 3]) == "1-3, 7"
    assert ranges([]) == ""
