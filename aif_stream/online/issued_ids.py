"""Ids of explanations that answers gave and that Redis does not know yet: pending, whoever is asked.

An answer does not wait for Redis, so its ids are known to clients some ms before their records are there. The server
that gave them knows what they are of. Every other server knows them by their seal (``domain.explanations``): the key is
in Redis, the same for all servers of one index, and the time in an id is Redis' own. So an id without a record is

- pending for ``window_s`` after it was given: by then its record is there, or its server has given it up;
- failed after that, as long as a record would have been kept: its facts could not be kept;
- unknown otherwise, and at once when the seal is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from aif_stream.clock import now_ms
from aif_stream.domain.explanations import ExplanationTask, Method, Priority, State, explanation_id, issued_ms
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.explanations import ExplanationStore, StoredExplanation
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A server gives facts up that have waited longer: Redis takes a ms, so this is an outage.
LATE_S: Final = 30.0
# Round trips to Redis until the record is there: room, facts, facts once more, the record, a script that was forgotten.
_ROUND_TRIPS: Final = 6
_REFRESH_S: Final = 2.0
_KEY_BYTES: Final = 32
_LOST: Final = 1_000  # ids given up that are remembered with the reason; others are known by their seal
_NOT_KEPT: Final = "the facts of its answer could not be kept; rank again to have one explained"


class IssuedIds:
    """``async with IssuedIds(settings, store) as ids``: key and Redis' time are there when Redis answers.

    Until it has answered once, ids are sealed with a key of this process: only this server knows them.
    """

    def __init__(self, settings: Settings, store: ExplanationStore) -> None:
        self._store = store
        self.window_s = LATE_S + _ROUND_TRIPS * settings.redis_timeout_s
        self._keep_s = settings.explain_keep_s
        self._deadline_ms = int(settings.explain_deadline_ms)
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._ahead_ms = 0  # Redis' clock, before ours
        self._here: dict[str, StoredExplanation] = {}
        self._lost: OrderedDict[str, StoredExplanation] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="issued-ids")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def now_ms(self) -> int:
        """Redis' time, as well as it is known here."""
        return now_ms() + self._ahead_ms

    def of(self, request_id: str, item_id: str, method: Method, given_ms: int) -> str:
        """The id of a question about an answer that was given at ``given_ms``."""
        return explanation_id(request_id, item_id, method, given_ms, self._key)

    def give(self, name: str, request_id: str, item_id: str, score: float, answered_ms: int) -> None:
        """An answer is about to give this id; its record is on its way until ``settle`` or ``lose``."""
        asked_ms = now_ms()
        task = ExplanationTask(
            explanation_id=name,
            run=1,
            request_id=request_id,
            item_id=item_id,
            method=Method.FULL,
            priority=Priority.NORMAL,
            asked_ms=asked_ms,
            answered_ms=answered_ms,
            deadline_ms=asked_ms + self._deadline_ms,
        )
        self._here[name] = _unrecorded(task, State.PENDING, asked_ms, score=score)

    def settle(self, names: Iterable[str]) -> None:
        """Their records are in Redis now."""
        for name in names:
            self._here.pop(name, None)

    def lose(self, names: Iterable[str]) -> None:
        """They will not come."""
        for name in names:
            given = self._here.pop(name, None)
            if given is not None:
                self._lost[name] = _unrecorded(given.task, State.FAILED, now_ms(), score=given.score)
                if len(self._lost) > _LOST:
                    self._lost.popitem(last=False)

    def on_its_way(self, name: str) -> StoredExplanation | None:
        """One that this server gave and is about to record."""
        return self._here.get(name)

    def without_record(self, name: str) -> StoredExplanation | None:
        """What an id without a record is: pending, failed, or none that an answer gave."""
        if name in self._here or name in self._lost:
            return self._here.get(name) or self._lost[name]
        given_ms = issued_ms(name, self._key)
        age_s = 0.0 if given_ms is None else (self.now_ms() - given_ms) / 1000.0
        if given_ms is None or age_s > max(self.window_s, self._keep_s):
            return None
        task = ExplanationTask(
            explanation_id=name,
            run=1,
            request_id="",
            item_id="",
            method=Method.FULL,
            priority=Priority.NORMAL,
            asked_ms=given_ms,
            answered_ms=given_ms,
            deadline_ms=given_ms + self._deadline_ms,
        )
        if age_s <= self.window_s:
            return _unrecorded(task, State.PENDING, given_ms)
        return _unrecorded(task, State.FAILED, given_ms + int(self.window_s * 1000))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self.refresh()

    async def refresh(self) -> None:
        """The servers' key, which is ours where there is none yet (or none any more), and Redis' time."""
        began_ms = now_ms()
        try:
            key, redis_ms = await self._store.id_key(self._key)
        except (IndexUnavailable, IndexRefused) as error:
            log.debug(kv("issued_ids.not_refreshed", problem=error))
            return
        if len(key) != _KEY_BYTES:
            log.error(kv("issued_ids.bad_key", bytes=len(key)))
            return
        self._key = key
        self._ahead_ms = redis_ms - (began_ms + now_ms()) // 2


def _unrecorded(task: ExplanationTask, state: State, at_ms: int, score: float | None = None) -> StoredExplanation:
    return StoredExplanation(
        id=task.explanation_id,
        task=task,
        state=state,
        attempt=0,
        lease_ms=0,
        reason=_NOT_KEPT if state is State.FAILED else "",
        cache="",
        score=score,
        stages={},
        times_ms={state.value: at_ms},
        is_recorded=False,
    )
