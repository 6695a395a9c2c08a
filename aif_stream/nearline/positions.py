"""Where each partition stands: Kafka's commit, Redis' mark, and which of the two to believe (design §5).

A mark is the next offset whose effects Redis still has to receive. Redis may lose its last second (killed with AOF
everysec) or everything (emptied) without telling anybody; its mark goes back with it, so a mark that is not the one
that this worker wrote last means: do not commit, go back to the smaller of commit and mark.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from aif_stream.bus.consumer import GroupConsumer, Partition
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)


class Marks(Protocol):
    """What index.marks.MarkBook gives: partitions are numbers of one topic."""

    async def read(self, partition: int) -> int | None: ...

    async def advance(self, partition: int, expected: int | None, next_offset: int) -> bool: ...

    def server(self, partition: int) -> bytes: ...


@dataclass(slots=True, eq=False)
class Claim:
    """This worker's hold on a partition, from one assignment or seek to the next; compared by identity.

    ``mark`` is the value that this worker wrote (or found) last, ``polled`` the offset after the last record taken,
    ``settled`` the offset after the last record whose effects and commit are done.
    """

    partition: Partition
    mark: int | None
    polled: int
    settled: int
    append_time_ms: int = 0


@dataclass(slots=True, frozen=True)
class Span:
    """The part of a batch that belongs to one claim: records of [start, end)."""

    claim: Claim
    start: int
    end: int
    append_time_ms: int


class Positions:
    """The claims of one lane. ``on_loss`` is awaited when Redis turns out to have less than was committed.

    ``marks`` None: Kafka's commit alone counts.
    """

    def __init__(
        self, lane: str, consumer: GroupConsumer, marks: Marks | None, on_loss: Callable[[], Awaitable[None]]
    ) -> None:
        self._lane = lane
        self._consumer = consumer
        self._marks = marks
        self._on_loss = on_loss
        self._claims: dict[Partition, Claim] = {}
        self._open: set[Partition] = set()
        self._doubted = False  # a mark was not what it should be: Redis may have lost what no mark tells of

    @property
    def claims(self) -> Iterable[Claim]:
        return tuple(self._claims.values())

    @property
    def unplaced(self) -> bool:
        """Whether a partition still waits for ``place``."""
        return bool(self._open)

    def assigned(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._claims.pop(partition, None)
            self._open.add(partition)

    def revoked(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._claims.pop(partition, None)
            self._open.discard(partition)

    def claim_of(self, partition: Partition) -> Claim | None:
        """The claim, or None when records of this partition must not be used (not placed yet, or lost)."""
        return self._claims.get(partition)

    async def place(self) -> None:
        """Seek every partition that has no claim to where it must go on. Raises what Redis and Kafka raise."""
        restored = False
        while self._open:
            partition = next(iter(self._open))
            committed = await self._consumer.committed(partition)
            mark = await self._marks.read(partition.number) if self._marks is not None else committed
            start = await self._start(partition, committed, mark)
            if self._marks is not None and (mark is None or mark < (committed or 0)):
                # Nothing committed either: a first start, which is no loss.
                level = logging.WARNING if committed else logging.INFO
                log.log(level, kv("redis.behind", lane=self._lane, partition=partition, mark=mark, committed=committed))
                behind = True
            else:
                behind = False
            # A quiet second before Redis was killed leaves every mark as it was, and may have held the listing of a
            # version. So whoever lost a claim restores, even where no record has to come again.
            if (behind and not restored) or self._doubted:
                await self._on_loss()
                restored, self._doubted = True, False
            # A first mark before the first rows: if Redis is emptied between these rows and their mark, it shows.
            if self._marks is not None and mark is None:
                if not await self._marks.advance(partition.number, None, start):
                    continue  # another worker was here; look again
                mark = start
            # A rebalance may have taken the partition while we were asking; given again, it is open again.
            if partition in self._open:
                self._open.discard(partition)
                self._consumer.seek(partition, start)
                self._claims[partition] = Claim(partition, mark, start, start)
                log.info(kv("placed", lane=self._lane, partition=partition.number, start=start, committed=committed))

    async def _start(self, partition: Partition, committed: int | None, mark: int | None) -> int:
        beginning = await self._consumer.beginning(partition)
        if mark is None:
            return beginning
        return max(mark if committed is None else min(committed, mark), beginning)

    async def settle(self, spans: Iterable[Span]) -> dict[Partition, int]:
        """Advance the marks over a batch whose effects are acknowledged; returns what may be committed.

        A span of a claim that is gone, or that does not continue where its claim stands, is left out: its records
        come again. A mark that another value has replaced opens its partition for ``place``.
        """
        spans = tuple(spans)
        results = await asyncio.gather(*(self._settle_one(span) for span in spans), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        # From the claims, not from this call's steps: a call that Redis broke off is made again.
        return {span.claim.partition: span.claim.settled for span in spans if self._current(span.claim)}

    async def _settle_one(self, span: Span) -> None:
        claim = span.claim
        if not self._current(claim) or claim.settled != span.start:
            return
        mark = span.end if claim.mark is None else max(claim.mark, span.end)
        advanced = self._marks is None or await self._marks.advance(claim.partition.number, claim.mark, mark)
        if not self._current(claim):
            return
        if not advanced:
            self._lose(claim)
            return
        claim.mark, claim.settled = mark, span.end
        claim.append_time_ms = span.append_time_ms

    async def verify(self) -> None:
        """Compare every mark, and the server that it is on, with what is there now; open the partitions that differ."""
        if self._marks is None:
            return
        for claim in self.claims:
            server = self._marks.server(claim.partition.number)
            found = await self._marks.read(claim.partition.number)
            if self._current(claim) and (found != claim.mark or self._marks.server(claim.partition.number) != server):
                self._lose(claim)

    def _current(self, claim: Claim) -> bool:
        return self._claims.get(claim.partition) is claim

    def _lose(self, claim: Claim) -> None:
        log.warning(kv("mark.differs", lane=self._lane, partition=claim.partition, expected=claim.mark))
        del self._claims[claim.partition]
        self._open.add(claim.partition)
        self._doubted = True
