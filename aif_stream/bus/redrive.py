"""Handling dead letters: send them back, mended or as they were, say that they are handled, cut them off.

Right when several people redrive at once: letters are claimed in the topic itself before they are sent (letters.py).
Sending is at-least-once, like all publishing here: a process that dies between sending and saying so leaves a claim,
and after ``LEASE_MS`` somebody sends again; the index sees the same event twice, which changes nothing.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self

from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import Entry, Filter, Letter, Marker, Step, marker_record
from aif_stream.bus.mends import Mend, Outgoing, check, outgoing
from aif_stream.bus.producer import Ack, Producer
from aif_stream.bus.topics import DEAD_LETTERS, contracts_dir, load_topics
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.errors import BadInput, PublishError
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# One claim: small enough that its marker is a few KiB, and that a crash leaves little for the lease to free.
_CLAIM_LETTERS: Final = 500
_CLAIM_S: Final = 30.0  # a slow rate claims no more than it sends in this time
_SETTLE_S: Final = 30.0


class Outcome(NamedTuple):
    """What became of one letter: sent, dropped, refused, worn-out, taken or failed; the first two are handled."""

    letter: int
    result: str
    problem: str = ""


@dataclass(slots=True)
class RedriveSummary:
    """Numbers by result; ``left`` tells why those that were not handled were not."""

    selected: int = 0
    sent: int = 0
    dropped: int = 0
    left: list[Outcome] = field(default_factory=list)
    dry_run: bool = False

    def add(self, outcome: Outcome) -> None:
        if outcome.result == "sent":
            self.sent += 1
        elif outcome.result == "dropped":
            self.dropped += 1
        else:
            self.left.append(outcome)


OnProgress = Callable[[RedriveSummary], None]


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """How to redrive. ``rate``: records/s, 0 as fast as Kafka takes them. ``max_attempts``: a letter that was tried so
    often is not sent again unmended. ``unchecked``: send also what this release's consumers would refuse again."""

    rate: float = 1000.0
    max_attempts: int = 3
    unchecked: bool = False
    dry_run: bool = False


class Redrive:
    """One run over the letters of ``chosen``; ``async with`` it, then ``run``."""

    def __init__(self, settings: Settings, options: RedriveOptions, mends: Mapping[int, Mend] | None = None) -> None:
        self._settings = settings
        self._options = options
        self._mends = mends
        self._log = LetterLog(settings)
        self._producer = Producer(settings, "aif-dlq", linger_ms=5)
        self._stack = AsyncExitStack()
        self._specs = load_topics(contracts_dir(settings))
        self._by = f"{_user()}@{socket.gethostname()}:{os.getpid()}"
        self._next_s = 0.0
        self.summary = RedriveSummary(dry_run=options.dry_run)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._log)
            await stack.enter_async_context(self._producer)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def choose(self, chosen: Filter) -> list[Entry]:
        """The letters that this run is about: free, taken by the filter, and in the mend file if there is one."""
        now = now_ms()
        entries = [e for e in self._log.book.entries.values() if e.free(now) and chosen.takes(e.head)]
        if self._mends is None:
            return entries
        return [entry for entry in entries if entry.head.number in self._mends]

    def known(self) -> set[int]:
        """Numbers of all letters in the topic, handled ones too."""
        return set(self._log.book.entries)

    async def run(self, chosen: Filter, on_progress: OnProgress | None = None) -> RedriveSummary:
        """Send them, oldest first. Raises ``BusUnavailable`` and ``PublishError`` when Kafka stays away."""
        entries = self.choose(chosen)
        self.summary.selected = len(entries)
        fresh = []
        for entry in entries:
            if self._worn_out(entry):
                problem = f"was tried {entry.head.attempts} times"
                self.summary.add(Outcome(entry.head.number, "worn-out", problem))
            else:
                fresh.append(entry.head.number)
        rate = self._options.rate
        step = max(1, min(_CLAIM_LETTERS, int(rate * _CLAIM_S))) if rate else _CLAIM_LETTERS
        for first in range(0, len(fresh), step):
            numbers = fresh[first : first + step]
            await (self._try(numbers) if self._options.dry_run else self._handle(numbers, on_progress))
            if on_progress is not None:
                on_progress(self.summary)
        return self.summary

    async def drop(self, chosen: Filter) -> RedriveSummary:
        """Say that these are handled without sending anything."""
        numbers = [entry.head.number for entry in self.choose(chosen)]
        self.summary.selected = len(numbers)
        for first in range(0, len(numbers), _CLAIM_LETTERS):
            part = numbers[first : first + _CLAIM_LETTERS]
            if self._options.dry_run:
                self.summary.dropped += len(part)
                continue
            claim, held = await self._claim(part)
            await self._mark(Step.HANDLED, claim, sorted(held), "dropped")
            self.summary.dropped += len(held)
        return self.summary

    def _worn_out(self, entry: Entry) -> bool:
        return self._mends is None and entry.head.attempts >= self._options.max_attempts

    async def _try(self, numbers: Sequence[int]) -> None:
        found = set()
        async for letter in self._log.letters(numbers):
            found.add(letter.head.number)
            built = await self._build(letter)
            if isinstance(built, Outcome):
                self.summary.add(built)
            else:
                self.summary.sent += 1
        self._gone(set(numbers) - found)

    async def _handle(self, numbers: Sequence[int], on_progress: OnProgress | None) -> None:
        """Claim, send, wait for every acknowledgement, then mark; whatever happens, the claim is settled."""
        claim, held = await self._claim(numbers)
        for number in numbers:
            if number not in held:
                self.summary.add(Outcome(number, "taken", "somebody else is at it"))
        sending: list[tuple[int, Ack]] = []
        dropped: list[int] = []
        found: set[int] = set()
        try:
            async for letter in self._log.letters(sorted(held)):
                found.add(letter.head.number)
                built = await self._build(letter)
                if isinstance(built, Outcome):
                    self.summary.add(built)
                    if built.result == "dropped":
                        dropped.append(built.letter)
                    continue
                await self._pace()
                sending.append((letter.head.number, await self._send(built)))
                if on_progress is not None and len(sending) % 100 == 0:
                    on_progress(self.summary)
            self._gone(held - found)
        finally:
            async with asyncio.timeout(_SETTLE_S):
                await self._settle(claim, held, sending, dropped)

    async def _settle(self, claim: str, held: set[int], sending: Sequence[tuple[int, Ack]], dropped: list[int]) -> None:
        done: list[int] = []
        for number, ack in sending:
            try:
                await ack
            except PublishError as error:
                self.summary.add(Outcome(number, "failed", str(error)))
            else:
                done.append(number)
                self.summary.add(Outcome(number, "sent"))
        await self._mark(Step.HANDLED, claim, done, "redriven" if self._mends is None else "mended")
        await self._mark(Step.HANDLED, claim, dropped, "dropped")
        await self._mark(Step.RELEASED, claim, sorted(held - {*done, *dropped}), "")

    async def _build(self, letter: Letter) -> Outgoing | Outcome:
        number = letter.head.number
        mend = self._mends[number] if self._mends is not None else None
        if mend is not None and mend.drop:
            return Outcome(number, "dropped")
        spec = self._specs.get(letter.head.topic)
        if spec is None or spec.name == DEAD_LETTERS:
            return Outcome(number, "refused", f"its source {letter.head.topic!r} is none of our topics")
        try:
            record = outgoing(letter, mend, spec.max_record_bytes)
            if not self._options.unchecked:
                check(record, self._settings.max_ahead_ms)
            self._producer.check_size(record.topic, record.key, record.value, record.headers)
        except (BadInput, PublishError) as error:
            return Outcome(number, "refused", str(error))
        if record.key is None and record.partition >= await self._producer.partitions_of(record.topic):
            return Outcome(number, "refused", f"{record.topic} has no partition {record.partition}")
        return record

    async def _send(self, record: Outgoing) -> Ack:
        # A record without a key goes where it was; one with a key to its key's place.
        partition = record.partition if record.key is None else None
        return await self._producer.send(record.topic, record.key, record.value, record.headers, partition=partition)

    async def _claim(self, numbers: Sequence[int]) -> tuple[str, set[int]]:
        """Ask for letters; returns the claim's name and those that it got."""
        claim = uuid.uuid4().hex
        position = await self._mark(Step.CLAIM, claim, numbers, "")
        await self._log.refresh(position)
        return claim, self._log.book.held_by(claim, numbers)

    async def _mark(self, step: Step, claim: str, numbers: Sequence[int], how: str) -> int:
        """Append one marker and wait for it; returns the offset after it. Nothing to say: nothing is written."""
        if not numbers:
            return 0
        marker = Marker(step=step, claim=claim, by=self._by, how=how, letters=list(numbers))
        position = await (await self._producer.send(DEAD_LETTERS, *marker_record(marker)))
        log.debug(kv("letters.marked", step=step, letters=len(numbers)))
        return position.offset + 1

    async def _pace(self) -> None:
        if not self._options.rate:
            return
        self._next_s = max(self._next_s + 1 / self._options.rate, monotonic_s() - 0.1)
        await asyncio.sleep(max(0.0, self._next_s - monotonic_s()))

    def _gone(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            self.summary.add(Outcome(number, "failed", "the broker no longer has it"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
