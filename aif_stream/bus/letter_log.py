"""The dead-letter topic as its readers see it: its book, read to the end, and letters whole when they are asked for."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from aif_stream.bus.consumer import Record
from aif_stream.bus.letters import Letter, LetterBook, letter_of
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import DEAD_LETTERS
from aif_stream.domain.decoding import fault_of
from aif_stream.errors import BadEvent, TopicError
from aif_stream.settings import Settings
from aif_stream.telemetry import EVENTS_SKIPPED, kv

log = logging.getLogger(__name__)

_POLL_LETTERS: Final = 500  # whole ones: no more at once than a claim has (redrive.py)


class LetterLog:
    """The dead-letter topic, read to its end, with its book. Raises ``BusUnavailable``, ``TopicError``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._reader = LogReader(settings, DEAD_LETTERS, client_id="aif-dlq")
        self.book = LetterBook(settings.topic_prefix)
        self.beginning = 0
        self.end = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._reader)
            if self._reader.partitions() != [0]:
                raise TopicError(
                    f"{DEAD_LETTERS} has {len(self._reader.partitions())} partitions: its numbers mean nothing",
                    mend="make it anew with one partition (topics/aif.dead-letters.toml)",
                )
            self.beginning = (await self._reader.beginning_offsets())[0]
            await self.refresh()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def refresh(self, at_least: int = 0) -> None:
        """Read on to the end, and to ``at_least`` (an offset that is known to exist)."""
        ends = await self._reader.end_offsets()
        ends[0] = max(ends[0], at_least)
        while not await self._reader.caught_up(ends):
            for record in await self._reader.poll():
                try:
                    self.book.apply(record)
                except Exception as error:  # noqa: BLE001  # the edge of one record
                    _skip(record, fault_of(error))
        self.end = ends[0]

    async def letters(self, numbers: Sequence[int]) -> AsyncIterator[Letter]:
        """These letters whole, by number; those that the broker has dropped meanwhile are left out."""
        wanted = sorted(numbers)
        if not wanted:
            return
        async with LogReader(self._settings, DEAD_LETTERS, client_id="aif-dlq") as reader:
            first = max(wanted[0], (await reader.beginning_offsets())[0])
            reader.seek({0: first})
            left = set(wanted)
            while not await reader.caught_up({0: wanted[-1] + 1}):
                for record in await reader.poll(max_records=_POLL_LETTERS):
                    if record.offset in left:
                        left.discard(record.offset)
                        if (letter := _letter(record, self._settings.topic_prefix)) is not None:
                            yield letter


def _letter(record: Record, prefix: str) -> Letter | None:
    try:
        return letter_of(record, prefix)
    except Exception as error:  # noqa: BLE001  # the edge of one record
        _skip(record, fault_of(error))
        return None


def _skip(record: Record, fault: BadEvent) -> None:
    """Count and log a record that cannot be read as a letter; the others are listed without it."""
    EVENTS_SKIPPED.labels("letters", fault.reason).inc()
    where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    log.error(kv("letter.unreadable", **where, problem=fault))
