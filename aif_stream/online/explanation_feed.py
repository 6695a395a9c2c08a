"""What happens to explanations, for those who wait at this server: one reader of the wake stream for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from aif_stream.clock import now_ms
from aif_stream.domain.explanations import FINAL, Action, Reply, State, Told
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.connection import open_redis
from aif_stream.index.explanations import START, ExplanationStore, StoredEvent, StoredExplanation
from aif_stream.online.issued_ids import IssuedIds
from aif_stream.settings import Settings
from aif_stream.telemetry import EXPLAIN_SUBSCRIBERS, EXPLANATIONS, kv

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 10.0  # proxies cut what is silent for a minute; a page shows "reconnecting" after two missed
# A hint may be lost with Redis' last second: whoever waits looks by itself after so long.
_LOOK_S: Final = 5.0
_BLOCK_MS: Final = 1_000
_RETRY_S: Final = 0.5


class ExplanationFeed:
    """``subscribe`` for any number of waiters; each costs a task and an entry here."""

    def __init__(self, settings: Settings, store: ExplanationStore, ids: IssuedIds) -> None:
        self._settings = settings
        self._store = store
        self._ids = ids
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        """End every subscription: its client comes back, here or elsewhere, with the last id that it has."""
        self.closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def current(self, name: str) -> StoredExplanation | None:
        """The record, or what its id says as long as there is none; None for an id that no answer gave. One that is
        past its deadline, and that nobody works on, is expired by being looked at."""
        if (given := self._ids.on_its_way(name)) is not None:
            return given
        found = await self._store.read(name)
        if found is None:
            return self._ids.without_record(name)
        if found.state in FINAL or now_ms() <= found.task.deadline_ms:
            return found
        reason = b"its deadline passed before a worker was done"
        said = await self._store.tell(name, Told(Action.EXPIRE), {"reason": reason})
        if said.reply is Reply.OK:
            EXPLANATIONS.labels(state=State.EXPIRED, cache="none").inc()
        return await self._store.read(name)

    async def subscribe(self, name: str, after: str) -> AsyncIterator[StoredEvent | None]:
        """Events after ``after``, each once and in order, until the final one; None now and then: still here.

        Redis away: waits for it. An id whose record does not come has one event, its end. Ends early when the server
        stops.
        """
        changed = asyncio.Event()
        self._waiting.setdefault(name, set()).add(changed)
        EXPLAIN_SUBSCRIBERS.inc()
        self._follow()
        silent_s = 0.0
        try:
            while not self.closed:
                changed.clear()
                try:
                    events = await self._store.events(name, after)
                    if not events:
                        found = await self.current(name)
                        if found is None:
                            return
                        events = await self._store.events(name, after)
                        if found.state in FINAL and not events:
                            if not found.is_recorded and after == START:
                                yield _end_of(found)
                            return
                except (IndexUnavailable, IndexRefused) as error:
                    log.warning(kv("explanation.unread", explanation=name, problem=error))
                    await asyncio.sleep(_RETRY_S)
                    events = []
                if events:
                    self._ids.settle([name])
                for event in events:
                    after, silent_s = event.id, 0.0
                    yield event
                if events and events[-1].state in FINAL:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await changed.wait()
                        continue
                silent_s += _LOOK_S
                if silent_s >= HEARTBEAT_S:
                    silent_s = 0.0
                    yield None
        finally:
            waiting = self._waiting[name]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[name]
            EXPLAIN_SUBSCRIBERS.inc(-1)

    def _follow(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read(), name="explanation-feed")

    async def _read(self) -> None:
        """Wake waiters until nobody waits any more."""
        block_ms = min(_BLOCK_MS, int(self._settings.redis_timeout_s * 500))
        while True:
            try:
                async with open_redis(self._settings) as redis:  # its own: a blocking read holds up all behind it
                    store = ExplanationStore(redis, keep_s=1, facts_s=1)
                    last = await store.last_wake()
                    self._wake(set(self._waiting))  # what came while nobody read
                    while True:
                        last, names = await store.wakes(last, block_ms)
                        self._wake(names)
            except (IndexUnavailable, IndexRefused) as error:
                log.warning(kv("explanation_feed.unreachable", problem=error))
                await asyncio.sleep(_RETRY_S)

    def _wake(self, names: set[str]) -> None:
        for name in names & self._waiting.keys():
            for event in self._waiting[name]:
                event.set()


def _end_of(found: StoredExplanation) -> StoredEvent:
    """Before any id that Redis gives, and after ``START``: who comes back with it has heard all."""
    fields = {
        "kind": b"state",
        "state": found.state.encode(),
        "run": b"%d" % found.task.run,
        "attempt": b"%d" % found.attempt,
        "at_ms": b"%d" % found.times_ms[found.state],
        "reason": found.reason.encode(),
    }
    return StoredEvent("0-1", fields)
