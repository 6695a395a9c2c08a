"""The fold of model versions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.versions import (
    VersionBook,
    VersionRecord,
    VersionState,
    check_version_name,
    decode_version,
    in_canary,
)
from aif_stream.errors import BadEvent, VersionError

NAMES = ["v1", "v2", "v3"]


def record(
    version: str, state: VersionState, activation: int = 0, created_ms: int = 0, percent: float = 0
) -> VersionRecord:
    return VersionRecord(
        version=version,
        state=state,
        artefact=f"/models/{version}",
        manifest_sha256="0" * 64,
        created_ms=created_ms,
        activation=activation,
        percent=percent,
    )


def fold(log: list[VersionRecord]) -> VersionBook:
    book = VersionBook()
    for entry in log:
        book.apply(entry)
    return book


def compacted(log: list[VersionRecord]) -> list[VersionRecord]:
    last = {entry.version: offset for offset, entry in enumerate(log)}
    return [entry for offset, entry in enumerate(log) if last[entry.version] == offset]


@st.composite
def logs(draw: st.DrawFn) -> list[VersionRecord]:
    """What publishers may write: activations numbered from what they read, sometimes two with one number."""
    log: list[VersionRecord] = []
    for _ in range(draw(st.integers(0, 12))):
        book = fold(log)
        name, state = draw(st.sampled_from(NAMES)), draw(st.sampled_from(list(VersionState)))
        known = book.records.get(name)
        number = known.activation if known else 0
        if state is VersionState.ACTIVE:
            number = max(1, book.activation + draw(st.sampled_from([1, 1, 0])))
            if known and known.activation == number:
                number += 1  # one writer never uses a number twice
        percent = draw(st.sampled_from([0.0, 0.0, 5.0, 40.0])) if state is VersionState.READY else 0.0
        log.append(record(name, state, book.activation + 1 if percent else number, percent=percent))
    return log


@given(logs())
def test_the_compacted_topic_names_the_same_active_version_as_the_whole_one(log: list[VersionRecord]) -> None:
    whole, short = fold(log), fold(compacted(log))
    assert (whole.active, whole.activation, whole.records) == (short.active, short.activation, short.records)
    assert whole.canary == short.canary


@given(logs())
def test_the_users_are_shared_among_the_active_version_and_at_most_one_canary(log: list[VersionRecord]) -> None:
    book = fold(log)
    assert sum(book.percent_of(name) for name in NAMES) == (100.0 if book.active else 0.0)
    if book.canary is not None:
        assert book.active not in (None, book.canary)
        assert book.state_of(book.canary) is VersionState.READY


@given(logs())
def test_apply_says_truly_whether_the_active_version_changed(log: list[VersionRecord]) -> None:
    book = VersionBook()
    for entry in log:
        before = book.active
        assert book.apply(entry) == (book.active != before)
        assert book.active is None or book.records[book.active].state is VersionState.ACTIVE


def test_of_two_activations_with_one_number_the_first_wins() -> None:
    book = fold([record("v1", VersionState.ACTIVE, 5), record("v2", VersionState.ACTIVE, 5)])
    assert book.active == "v1"
    assert book.state_of("v2") is VersionState.READY


def test_a_rollback_is_an_activation_with_the_next_number() -> None:
    book = fold([record("v1", VersionState.ACTIVE, 1), record("v2", VersionState.ACTIVE, 2)])
    assert book.active == "v2"
    assert book.state_of("v1") is VersionState.READY
    book.apply(record("v1", VersionState.ACTIVE, book.activation + 1))
    assert book.active == "v1"


def test_a_canary_ends_with_its_share_or_any_later_activation() -> None:
    begin = [record("v1", VersionState.ACTIVE, 1), record("v2", VersionState.READY, 2, percent=10)]
    assert (fold(begin).active, fold(begin).canary, fold(begin).percent_of("v1")) == ("v1", "v2", 90.0)
    for end in (
        record("v2", VersionState.READY, 2),
        record("v1", VersionState.ACTIVE, 3),
        record("v2", VersionState.ACTIVE, 3),
        record("v3", VersionState.ACTIVE, 3),
        record("v2", VersionState.RETIRED, 2, percent=10),
    ):
        assert fold([*begin, end]).canary is None
    more = fold([*begin, record("v3", VersionState.READY, 3, percent=20)])
    assert (more.canary, more.percent_of("v2"), more.percent_of("v3")) == ("v3", 0.0, 20.0)


def test_a_share_is_about_as_large_as_it_says_grows_without_moving_users_and_differs_between_versions() -> None:
    users = [str(n) for n in range(20_000)]
    some, more = ({u for u in users if in_canary("v2", u, percent)} for percent in (5, 25))
    assert abs(len(some) / 20_000 - 0.05) < 0.01
    assert abs(len(more) / 20_000 - 0.25) < 0.02
    assert some < more
    other = {u for u in users if in_canary("v3", u, 25)}
    assert abs(len(other & more) / 20_000 - 0.0625) < 0.01
    assert all(in_canary("v2", u, 100) and not in_canary("v2", u, 0) for u in users)


def test_retired_versions_are_not_live_and_the_others_come_oldest_first() -> None:
    book = fold(
        [
            record("v2", VersionState.READY, created_ms=2),
            record("v1", VersionState.ACTIVE, 1, created_ms=1),
            record("v3", VersionState.RETIRED, created_ms=3),
        ]
    )
    assert [entry.version for entry in book.live()] == ["v1", "v2"]
    with pytest.raises(VersionError, match="unknown"):
        book.state_of("v9")


def test_a_record_comes_back_as_it_was_written_and_unknown_fields_are_ignored() -> None:
    original = record("v1", VersionState.ACTIVE, 3)
    assert decode_version(original.encode()) == original
    more = msgspec.json.decode(original.encode()) | {"later": True}
    assert decode_version(msgspec.json.encode(more)) == original


def test_a_share_beyond_all_users_is_refused() -> None:
    with pytest.raises(BadEvent, match="percent"):
        decode_version(record("v1", VersionState.READY, 1, percent=101).encode())


@pytest.mark.parametrize("value", [b"", b"{}", b'{"version": 1}', b"\xff"])
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_version(value)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "ü", "v1\n"])
def test_a_name_that_could_leave_its_directory_or_key_is_refused(name: str) -> None:
    with pytest.raises(VersionError):
        check_version_name(name)
