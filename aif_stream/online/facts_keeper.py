"""Facts of answers, written beside them: whoever asks why, asks later, and must be told of that very score.

``offer`` takes references and returns at once; one task gathers, packs and writes. A full queue, too many
facts, or Redis away cost the explanation, never the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from secrets import token_hex
from types import TracebackType
from typing import Final, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.candidates import id_of
from aif_stream.domain.explanations import ExplanationTask, Method, Priority, StartedExplanation, deadline_after
from aif_stream.domain.facts import FactItem, FactsHead, UserInputs, pack_facts, pack_user
from aif_stream.domain.history import ENTRY
from aif_stream.domain.request import RankedItem, RankRequest
from aif_stream.domain.request_log import is_sampled
from aif_stream.domain.row import Rows
from aif_stream.errors import AifError
from aif_stream.index.explanations import ExplanationStore
from aif_stream.online.explanation_work import ExplanationWork
from aif_stream.online.issued_ids import LATE_S, IssuedIds
from aif_stream.online.kept_facts import KeptFacts
from aif_stream.online.scoring import Part
from aif_stream.settings import Settings
from aif_stream.telemetry import EXPLAIN_FACTS, kv

log = logging.getLogger(__name__)

# Answers that wait to be packed hold their candidates' rows (2.5 MB at 10,000): 80 MB at most.
_QUEUE: Final = 32
_CLOSE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer was made of; everything by reference."""

    request_id: str
    request: RankRequest
    version: str
    received_ms: int
    items: list[RankedItem]
    keys: list[int]
    names: dict[int, str]
    parts: list[Part]
    user: UserInputs | None
    started: list[StartedExplanation]
    issued_ms: int


class Packed(NamedTuple):
    """The answer's own part, the name of the user's part ("": none) and its size, and that part, if it was wanted."""

    value: bytes
    user: str
    user_bytes: int
    user_value: bytes


class FactsKeeper:
    """One per server. At most ``explain_facts_mb`` of this server's facts are in Redis; the oldest go first."""

    def __init__(self, settings: Settings, store: ExplanationStore, work: ExplanationWork, ids: IssuedIds) -> None:
        self._settings = settings
        self._store = store
        self._work = work
        self.ids = ids
        self._queue: asyncio.Queue[Answered | None] = asyncio.Queue(_QUEUE)
        self._pool = ThreadPoolExecutor(1, "facts")
        self._task: asyncio.Task[None] | None = None
        self._kept = KeptFacts(settings.explain_facts_mb * 2**20, settings.explain_facts_s)
        self._names = UserNames()
        self._under_way: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="facts")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self._queue.put(None)
                    await asyncio.shield(task)
            except TimeoutError:
                EXPLAIN_FACTS.labels(outcome="stopped").inc(self._queue.qsize())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wants(self, request_id: str, request: RankRequest) -> bool:
        """Whether this answer's facts are to be kept."""
        if request.is_probe:
            return False
        return bool(request.explain) or (not request.replay and is_sampled(request_id, self._settings.explain_rate))

    def offer(self, answered: Answered) -> bool:
        """Take an answer's facts; False when there is no room (counted)."""
        try:
            self._queue.put_nowait(answered)
        except asyncio.QueueFull:
            EXPLAIN_FACTS.labels(outcome="full").inc()
            return False
        self._under_way[answered.request_id] = asyncio.Event()
        for started, item in zip(answered.started, answered.items, strict=False):
            self.ids.give(started.explanation_id, answered.request_id, item.item_id, item.score, answered.received_ms)
        return True

    def started(
        self, request_id: str, items: list[RankedItem], explain: bool | int, issued_ms: int
    ) -> list[StartedExplanation]:
        """The explanations that ``explain: n`` starts: the first n items' (true starts none)."""
        count = 0 if isinstance(explain, bool) else explain
        return [
            StartedExplanation(item.item_id, self.ids.of(request_id, item.item_id, Method.FULL, issued_ms))
            for item in items[:count]
        ]

    async def settled(self, request_id: str) -> None:
        """Return when the facts of this request, if they are on their way here, are written (or lost)."""
        event = self._under_way.get(request_id)
        if event is not None:
            await event.wait()

    async def _run(self) -> None:
        while (answered := await self._queue.get()) is not None:
            try:
                await self._write(answered)
            except AifError as error:
                EXPLAIN_FACTS.labels(outcome="failed").inc()
                log.warning(kv("facts.not_kept", request=answered.request_id, problem=error))
            except Exception:
                EXPLAIN_FACTS.labels(outcome="failed").inc()
                log.exception(kv("facts.failed", request=answered.request_id))
            finally:
                self.ids.lose(each.explanation_id for each in answered.started)  # but for what is recorded
                self._under_way.pop(answered.request_id).set()

    async def _write(self, answered: Answered) -> None:
        if (late_s := (self.ids.now_ms() - answered.issued_ms) / 1000.0) > LATE_S:
            EXPLAIN_FACTS.labels(outcome="late").inc()
            log.warning(kv("facts.late", request=answered.request_id, waited_s=late_s))
            return
        loop = asyncio.get_running_loop()
        packed = await loop.run_in_executor(self._pool, pack, answered, self._names, self._kept.knows)
        value, user, user_bytes, user_value = packed
        gone = self._kept.make_room(len(value), user, user_bytes, monotonic_s())
        if gone.answers:
            EXPLAIN_FACTS.labels(outcome="evicted").inc(len(gone.answers))
            await self._store.drop_facts(gone.answers, gone.users)
        there = bool(user_value) or self._kept.knows(user) or not user
        if not there or not await self._store.put_facts(answered.request_id, value, user, user_value):
            # The room was made of the user's last answer, or Redis has forgotten the part: it is written anew.
            user_value = await loop.run_in_executor(self._pool, pack_user, _inputs(answered))
            await self._store.put_facts(answered.request_id, value, user, user_value)
        self._kept.add(answered.request_id, len(value), user, user_bytes, monotonic_s())
        EXPLAIN_FACTS.labels(outcome="kept").inc()
        scores = {item.item_id: item.score for item in answered.items}
        starts = (
            self._work.start(_task(self._settings, answered, started), scores[started.item_id], self.ids.settle)
            for started in answered.started
        )
        # Side by side: they share their writes to Redis and their Kafka request.
        failed = [each for each in await asyncio.gather(*starts, return_exceptions=True) if isinstance(each, Exception)]
        if failed:
            raise failed[0]


def _task(settings: Settings, answered: Answered, started: StartedExplanation) -> ExplanationTask:
    now = now_ms()
    return ExplanationTask(
        explanation_id=started.explanation_id,
        run=0,
        request_id=answered.request_id,
        item_id=started.item_id,
        method=Method.FULL,
        priority=Priority.NORMAL,
        asked_ms=now,
        answered_ms=answered.received_ms,
        deadline_ms=deadline_after(now, settings.explain_deadline_ms),
    )


class UserNames:
    """Names of users' parts by their content, and by this server: another one may drop its own. For one thread."""

    def __init__(self) -> None:
        self._server = token_hex(4)
        self._known: WeakKeyDictionary[UserInputs, str] = WeakKeyDictionary()

    def of(self, user: UserInputs) -> str:
        """ "" for a user without entries. .4 ms the first time, for 1,000 entries."""
        if not user.nbytes + user.newest.nbytes:
            return ""
        name = self._known.get(user)
        if name is None:
            digest = blake2b(pack_user(user), digest_size=16).hexdigest()
            name = self._known[user] = f"{self._server}-{digest}"
        return name


def pack(answered: Answered, names: UserNames, knows: Callable[[str], bool]) -> Packed:
    """Gather the rows of the answer's items and of the best item left out; pack them, and the user's part unless
    Redis ``knows`` it. In a thread."""
    rows, cut = _item_rows([part for part in answered.parts if part.keys.size], answered.keys)
    user = _inputs(answered)
    name = names.of(user)
    head = FactsHead(
        request_id=answered.request_id,
        user_id=answered.request.user,
        version=answered.version,
        answered_ms=answered.received_ms,
        k=answered.request.k,
        items=[FactItem(item.item_id, item.score) for item in answered.items],
        cut=None if cut is None else FactItem(id_of(cut[0], answered.names), cut[1]),
        attributes=None if user.attributes is None else dict(user.attributes),
        context=answered.request.context,
        entries=len(user.entries),
        newest=len(user.newest),
        row_bytes=rows.dtype.itemsize,
        user_part=name,
        issued_ms=answered.issued_ms,
    )
    value = pack_user(user) if name and not knows(name) else b""
    return Packed(pack_facts(head, rows), name, user.nbytes + user.newest.nbytes, value)


def _inputs(answered: Answered) -> UserInputs:
    return answered.user if answered.user is not None else _NOBODY


_NONE: Final = np.empty(0, ENTRY)
_NOBODY: Final = UserInputs(None, _NONE, _NONE, _NONE)  # of no rows, so of whatever layout


def _item_rows(parts: list[Part], keys: list[int]) -> tuple[Rows, tuple[int, float] | None]:
    """Rows of ``keys``, in their order, then of the best other candidate; that one's key and score, if there is one."""
    all_keys = np.concatenate([part.keys for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    offsets = np.cumsum([0, *(part.keys.size for part in parts)])
    chosen = np.flatnonzero(np.isin(all_keys, np.array(keys, np.uint64)))
    place = dict(zip(all_keys[chosen].tolist(), chosen.tolist(), strict=True))
    at = [place[key] for key in keys]
    rest = np.where(np.isfinite(scores), scores, -np.inf)
    rest[chosen] = -np.inf
    best = int(rest.argmax())
    cut = (int(all_keys[best]), float(rest[best])) if np.isfinite(rest[best]) else None
    if cut is not None:
        at.append(best)
    rows = np.empty(len(at), parts[0].rows.dtype)
    for to, position in enumerate(at):
        number = int(np.searchsorted(offsets, position, side="right")) - 1
        rows[to] = parts[number].row(position - int(offsets[number]))
    return rows, cut
