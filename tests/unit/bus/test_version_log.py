"""The log of model versions under bad records, late copies and compaction: every reader ends with the same book."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aif_stream.bus.events import FIRST_OFFSET
from aif_stream.bus.versions import apply_record
from aif_stream.domain.versions import LogEntry, VersionBook, VersionRecord, VersionState
from tests.bus_builders import FakeRecord
from tests.hostile_builders import version_values

NAMES = ("v1", "v2")
BAD = (b"{", b"", None, b'{"version":"v1","state":"gone"}', b'{"a":' * 3_000)


def good(name: str, state: VersionState, activation: int = 0, percent: float = 0) -> VersionRecord:
    return VersionRecord(
        version=name,
        state=state,
        artefact="/m",
        manifest_sha256="0",
        created_ms=1,
        activation=activation,
        percent=percent,
    )


@dataclass
class Reader:
    """A process: its book, and the offset that it reads next."""

    book: VersionBook = field(default_factory=VersionBook)
    position: int = 0


@dataclass
class Log:
    """The topic; ``truth`` is the book of the good records alone."""

    records: list[FakeRecord] = field(default_factory=list)
    end: int = 0
    truth: VersionBook = field(default_factory=VersionBook)

    def append(self, key: str, value: bytes | None, first: int | None = None) -> None:
        headers = [] if first is None else [(FIRST_OFFSET, b"%d" % first)]
        self.records.append(FakeRecord(value, key.encode(), offset=self.end, headers=headers))
        self.end += 1

    def write(self, record: VersionRecord) -> None:
        self.truth.apply(record, LogEntry(record.encode(), self.end))
        self.append(record.version, record.encode())

    def compact(self) -> None:
        last = {record.key: record.offset for record in self.records}
        self.records = [record for record in self.records if last[record.key] == record.offset]

    def read(self, reader: Reader, most: int) -> None:
        for record in [r for r in self.records if r.offset >= reader.position][:most]:
            apply_record(reader.book, record)
            reader.position = record.offset + 1

    def repair(self, reader: Reader) -> bool:
        """What a role does with what its book has lost, whether or not it has read the end of the log."""
        lost = reader.book.displaced_entries()
        for name, entry in lost.items():
            self.append(name, entry.value, entry.order)
        return bool(lost)


def step(log: Log, readers: list[Reader], draw: st.DrawFn) -> None:
    what = draw(st.sampled_from(("write", "write", "spoil", "read", "read", "repair", "compact", "start")))
    if what == "write":
        log.write(_written(log.truth, draw))
    elif what == "spoil":
        log.append(draw(st.sampled_from(NAMES)), draw(st.sampled_from(BAD)))
    elif what == "compact":
        log.read(readers[0], log.end)  # one role at least has read what compaction takes away
        log.compact()
    elif what == "start":
        readers.append(Reader())
    else:
        reader = draw(st.sampled_from(readers))
        if what == "read":
            log.read(reader, draw(st.integers(1, 3)))
        else:
            log.repair(reader)


def _written(book: VersionBook, draw: st.DrawFn) -> VersionRecord:
    """What a publisher may write: activations numbered from what it read, sometimes two with one number."""
    name, state = draw(st.sampled_from(NAMES)), draw(st.sampled_from(list(VersionState)))
    known = book.records.get(name)
    number = known.activation if known else 0
    if state is VersionState.ACTIVE:
        number = max(1, book.activation + draw(st.sampled_from([1, 1, 0])))
        number += known is not None and known.activation == number  # one writer never uses a number twice
    percent = draw(st.sampled_from([0.0, 0.0, 5.0])) if state is VersionState.READY else 0.0
    return good(name, state, book.activation + 1 if percent else number, percent)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Log, list[Reader]]:
    log, readers = Log(), [Reader()]
    for _ in range(draw(st.integers(0, 25))):
        step(log, readers, draw)
    return log, readers


def _facts(book: VersionBook) -> tuple[object, ...]:
    return book.records, book.active, book.canary, book.activation, book.displaced


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lines of what is expected would hide what is not."""
    caplog.set_level(logging.CRITICAL, "aif_stream.bus.versions")


@given(worlds())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_reader_ends_with_the_book_of_the_good_records(world: tuple[Log, list[Reader]]) -> None:
    log, readers = world
    for _ in range(10):
        for reader in readers:
            log.read(reader, log.end)
        if not any(log.repair(reader) for reader in readers):
            break
    else:
        pytest.fail("the holders write again and again")
    log.compact()
    late = Reader()
    log.read(late, log.end)
    log.truth.displaced = {name: at for name, at in late.book.displaced.items() if name not in log.truth.records}
    for reader in (*readers, late):
        known = {name: at for name, at in reader.book.displaced.items() if name in log.truth.records}
        assert known == {}
        reader.book.displaced = log.truth.displaced
        assert _facts(reader.book) == _facts(log.truth)


@pytest.mark.parametrize(("kind", "value"), version_values(good("v1", VersionState.READY).encode()).items())
def test_a_bad_version_record_changes_nothing(kind: str, value: bytes) -> None:
    book = VersionBook()
    assert apply_record(book, FakeRecord(good("v1", VersionState.ACTIVE, 1).encode(), b"v1", offset=0)) is not None
    assert apply_record(book, FakeRecord(value, b"v1", offset=7)) is None, kind
    assert (book.active, book.displaced, book.displaced_entries().keys()) == ("v1", {"v1": 7}, {"v1"})
    assert apply_record(book, FakeRecord(good("v2", VersionState.READY).encode(), b"v2", offset=8)) is not None


def test_a_tombstone_of_an_unknown_name_says_nothing() -> None:
    book = VersionBook()
    for key in (b"aif clock", b"v1", b"\xff", b"x" * 1_000_000, None):
        assert apply_record(book, FakeRecord(None, key)) is None
    assert book.displaced == {}


def test_a_replaced_log_is_believed_whatever_its_offsets() -> None:
    book = VersionBook()
    for offset, name in ((100, "v1"), (101, "v2")):
        apply_record(book, FakeRecord(good(name, VersionState.ACTIVE, 5).encode(), name.encode(), offset=offset))
    book.log_replaced()
    assert (book.active, book.displaced_entries()) == ("v1", {})
    apply_record(book, FakeRecord(good("v2", VersionState.ACTIVE, 6).encode(), b"v2", offset=0))
    assert (book.active, book.order_of("v2"), book.order_of("v1")) == ("v2", 0, -1)
