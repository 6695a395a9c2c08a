"""The hot loop that every lane shares: poll → prepare → write → acknowledge → mark → commit.

::

    poll n+1   prepare n+1 | write n+1 ...
               write n     | acks, marks n        commits: every 0.1 s, what is marked

Some batches are in flight and their writes never overlap, so order is kept while the next batch's computing runs
beside this batch's waiting. Every effect is repeatable: whatever fails, the batch is written again or comes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Generic, TypeVar

from aif_stream import clock
from aif_stream.bus.consumer import GroupConsumer, Lost, Partition, Record
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.domain.freshness import SourceClocks
from aif_stream.errors import (
    AifError,
    BusUnavailable,
    IndexRefused,
    IndexUnavailable,
    PublishError,
    TopicError,
)
from aif_stream.nearline.backoff import Backoff
from aif_stream.nearline.commits import Commits
from aif_stream.nearline.freshness import note_clocks
from aif_stream.nearline.positions import Claim, Marks, Positions, Span
from aif_stream.nearline.work import Poison, Work, Written
from aif_stream.settings import Settings
from aif_stream.telemetry import CONSUMER_LAG, EVENTS_CONSUMED, WATERMARK_AGE, kv

log = logging.getLogger(__name__)

B = TypeVar("B")
P = TypeVar("P")
R = TypeVar("R")

# One writes, the others wait for Kafka's acknowledgement and their marks, each step of which needs a turn of the loop
# between two batches' computing: with two in all, a third of a backlog's time went by waiting (measured).
IN_FLIGHT: Final = 4
VERIFY_EVERY_S: Final = 1.0
REVOKE_WAIT_S: Final = 10.0  # a rebalance waits this long for batches in flight; what is left comes again elsewhere
DRAIN_S: Final = 4.0  # SIGTERM: what Redis and Kafka have not acknowledged by then comes again


class _Stopped(Exception):
    """Nothing more can be written; what is in flight is not committed and comes again."""


class Lane(Generic[B, P]):
    """One topic's records, in order, into the index; a Faust service of the worker (host.py)."""

    def __init__(
        self,
        settings: Settings,
        *,
        group: str,
        topic: str,
        work: Work[B, P],
        marks: Marks | None,
        dead_letters: DeadLetters,
        batch_records: int,
        drain_s: float = DRAIN_S,
    ) -> None:
        """``marks`` None: Kafka's commits alone tell where to go on (work whose loss Redis' replay makes good).
        ``drain_s``: how long a stop waits for batches in flight; 0 gives up work that may take minutes."""
        self.name = work.name
        self.group = group
        self.topic = topic
        self.done_records = 0
        self.clocks = SourceClocks()
        self._settings = settings
        self._work = work
        self._marks = marks
        self._dead_letters = dead_letters
        self._batch_records = batch_records
        self._drain_s = drain_s
        self._flights: list[asyncio.Task[None]] = []
        self._waiting_ms: deque[int] = deque()  # append time of the oldest record of each batch in flight
        self._write_turn = asyncio.Lock()
        self._settle_turn = asyncio.Lock()
        self._verified_s = 0.0
        self._reported: set[str] = set()
        self._troubles: dict[Backoff, str] = {}  # what is repeated now, and the error of its last try
        self._stop = asyncio.Event()
        self._replaced: AifError | None = None
        self._consumer: GroupConsumer | None = None
        self._positions: Positions | None = None
        self._commits: Commits | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``: then the batches in flight are finished and committed, and the group is left.

        Raises what makes going on wrong or useless; the process should end and be started again.
        """
        self._stop = stop
        try:
            async with self._join() as consumer:
                self._consumer = consumer
                self._commits = Commits(self.name, consumer)
                self._positions = Positions(self.name, consumer, self._marks, self._work.restore)
                self._positions.assigned(consumer.assignment())
                try:
                    while not stop.is_set():
                        await self._turn(consumer, self._positions)
                    await self._drain()
                finally:
                    for flight in self._flights:
                        flight.cancel()
                    await asyncio.gather(*self._flights, return_exceptions=True)
                    await self._commits.close()
                    self._consumer = None
        except _Stopped:
            log.warning(kv("lane.stopped_uncommitted", lane=self.name, records="come again"))
        log.info(kv("lane.stopped", lane=self.name, records=self.done_records))

    @property
    def joined(self) -> bool:
        """Whether the lane is a member of its group and its partitions (if any) are placed."""
        return self._consumer is not None and self._positions is not None and not self._positions.unplaced

    @property
    def problem(self) -> str:
        """Why the lane makes no progress now, as Redis or Kafka say; "" while it does."""
        return next(iter(self._troubles.values()), "")

    @property
    def partitions(self) -> list[int]:
        """Numbers of the partitions that are this lane's now."""
        return sorted(claim.partition.number for claim in self._claims())

    @property
    def lag_ms(self) -> float:
        """Time since the append of the oldest record that is taken and not done; 0 when there is none."""
        return max(0.0, clock.now_ms() - self._waiting_ms[0]) if self._waiting_ms else 0.0

    async def report(self) -> None:
        """Lag and watermark of each partition, as gauges."""
        claims = self._claims()
        numbers = {str(claim.partition.number) for claim in claims}
        for where in self._reported - numbers:  # another worker's now: one series per partition, from its owner
            with suppress(KeyError):
                CONSUMER_LAG.remove(self.group, self.topic, where)
                WATERMARK_AGE.remove(f"{self.topic}-{where}")
        self._reported = numbers
        if self._consumer is None or not claims:
            return
        asked_ms = clock.now_ms()
        ends = await self._consumer.end_offsets([claim.partition for claim in claims])
        now_ms = clock.now_ms()
        for claim in claims:
            left = max(0, ends.get(claim.partition, 0) - claim.settled)
            if not left:  # whatever was appended before the question is done; a quiet hour does not age the watermark
                claim.append_time_ms = max(claim.append_time_ms, asked_ms)
            where = str(claim.partition.number)
            CONSUMER_LAG.labels(self.group, self.topic, where).set(left)
            age_s = (now_ms - claim.append_time_ms) / 1000 if left and claim.append_time_ms else 0.0
            WATERMARK_AGE.labels(f"{self.topic}-{where}").set(age_s)

    def _join(self) -> GroupConsumer:
        return GroupConsumer(
            self._settings,
            self.group,
            [self.topic],
            on_revoked=self._on_revoked,
            on_assigned=self._on_assigned,
            on_lost=self._on_lost,
        )

    def _claims(self) -> tuple[Claim, ...]:
        return tuple(self._positions.claims) if self._positions is not None else ()

    async def _turn(self, consumer: GroupConsumer, positions: Positions) -> None:
        await self._until_answered("position", positions.place)
        polled = await self._until_answered(
            "poll", lambda: consumer.poll(self._batch_records, self._settings.batch_wait_ms)
        )
        if self._replaced is not None:
            raise self._replaced
        self._raise_failed()
        if self._commits is not None:
            self._commits.soon()
        records, spans = self._take(polled, positions)
        if records:
            batch, poison = self._decode(records)
            prepared = await self._work.prepare(batch)
            await self._room()
            if self._stop.is_set():
                return  # not begun: they come again
            flight = self._flight(prepared, poison, spans, len(records))
            self._waiting_ms.append(min(record.timestamp for record in records))
            self._flights.append(asyncio.create_task(flight, name=f"{self.name}-batch"))
        elif not self._flights and clock.monotonic_s() - self._verified_s >= VERIFY_EVERY_S:
            await self._until_answered("marks", positions.verify)
            self._verified_s = clock.monotonic_s()

    def _take(self, polled: dict[Partition, list[Record]], positions: Positions) -> tuple[list[Record], list[Span]]:
        """The records that continue a claim. Others were fetched before a seek and come again after it."""
        records: list[Record] = []
        spans: list[Span] = []
        for partition, some in polled.items():
            claim = positions.claim_of(partition)
            if claim is None or not some or some[0].offset < claim.polled:
                continue
            spans.append(Span(claim, claim.polled, some[-1].offset + 1, some[-1].timestamp))
            claim.polled = some[-1].offset + 1
            claim.append_time_ms = claim.append_time_ms or some[0].timestamp
            records.extend(some)
        return records, spans

    def _decode(self, records: Sequence[Record]) -> tuple[B, list[Poison]]:
        EVENTS_CONSUMED.labels(self.name).inc(len(records))
        decoded = self._work.decode(records)
        note_clocks(self.clocks, records)
        return decoded

    async def _flight(self, prepared: P, poison: Sequence[Poison], spans: Sequence[Span], count: int) -> None:
        since_s = clock.monotonic_s()
        async with self._write_turn:
            written = await self._write(prepared)
        # The settle turn is asked for without an await in between, so batches settle in the order of their writes.
        async with self._settle_turn:
            await self._acknowledged(prepared, written, poison)
            await self._mark(spans)
            self._waiting_ms.popleft()
        self.done_records += count
        log.debug(kv("batch.done", lane=self.name, records=count, ms=clock.elapsed_ms(since_s)))

    async def _write(self, prepared: P) -> Written:
        return await self._until_answered("write", lambda: self._work.write(prepared))

    async def _acknowledged(self, prepared: P, written: Written, poison: Sequence[Poison]) -> None:
        """Wait for Kafka; what it did not take is written again as a whole."""
        backoff = Backoff(f"{self.name} acknowledgements")
        while True:
            letters = [
                self._dead_letters.put(record, reason=reason, problem=problem)
                for record, reason, problem in (*poison, *written.poison)
            ]
            results = await asyncio.gather(*written.acks, *letters, return_exceptions=True)
            failed = next((result for result in results if isinstance(result, BaseException)), None)
            if failed is None:
                self._done(backoff)
                return
            if not isinstance(failed, PublishError | BusUnavailable):
                raise failed
            await self._pause(backoff, failed)
            written = await self._write(prepared)

    async def _mark(self, spans: Sequence[Span]) -> None:
        positions, commits = self._positions, self._commits
        assert positions is not None  # noqa: S101 - both are there before the first batch
        assert commits is not None  # noqa: S101
        marked = await self._until_answered("marks", lambda: positions.settle(spans))
        commits.add(marked)

    async def _until_answered(self, what: str, call: Callable[[], Awaitable[R]]) -> R:
        """Repeat ``call`` while Redis or Kafka is away or refuses; nothing is committed meanwhile."""
        backoff = Backoff(f"{self.name} {what}")
        while True:
            try:
                result = await call()
            except (IndexUnavailable, IndexRefused, BusUnavailable, PublishError) as error:
                await self._pause(backoff, error)
            else:
                self._done(backoff)
                return result

    async def _pause(self, backoff: Backoff, error: Exception) -> None:
        if self._stop.is_set():
            raise _Stopped from error
        self._troubles[backoff] = str(error)
        await backoff.pause(error)

    def _done(self, backoff: Backoff) -> None:
        self._troubles.pop(backoff, None)
        backoff.done()

    async def _room(self) -> None:
        while len(self._flights) >= IN_FLIGHT and not self._stop.is_set():
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([*self._flights, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            self._raise_failed()

    def _raise_failed(self) -> None:
        """Forget finished flights; a failed one ends the lane (and later ones commit nothing: positions.settle)."""
        done = [flight for flight in self._flights if flight.done()]
        self._flights = [flight for flight in self._flights if not flight.done()]
        for flight in done:
            flight.result()

    async def _drain(self) -> None:
        late: set[asyncio.Task[None]] = set()
        if self._flights:
            _, late = await asyncio.wait(self._flights, timeout=self._drain_s)
        self._raise_failed()
        if self._commits is not None:
            await self._commits.now()
        if late:
            raise _Stopped

    async def _on_assigned(self, partitions: frozenset[Partition]) -> None:
        if self._positions is not None:
            self._positions.assigned(partitions)

    async def _on_revoked(self, partitions: frozenset[Partition]) -> None:
        if self._flights:
            await asyncio.wait(self._flights, timeout=REVOKE_WAIT_S)
        if self._commits is not None:
            await self._commits.now()
        if self._positions is not None:
            self._positions.revoked(partitions)

    def _on_lost(self, lost: Lost) -> None:
        if not lost.records:
            # The marks are those of the log that was there at the start.
            self._replaced = TopicError(f"the log of {lost.partition} was replaced while it was read")
