"""One request's life: pin a version; user side beside retrieval; join and score each part as it comes; answer.

    user ─────────────┐
    channel ─ join ───┴─ score ┐
    channel ──── join ── score ┼─ fill up ─ join ─ score ─ top k ─ answer
    channel ─ join ───── score ┘

Everything waits inside one deadline. What does not come in time, or fails, is missing from the answer, and
``degraded`` names it; the version that was pinned on arrival is the only one used.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from aif_stream.clock import elapsed_ms, monotonic_s, now_ms
from aif_stream.domain.candidates import Candidates, id_of, keys_and_names
from aif_stream.domain.freshness import PROBE_KEY
from aif_stream.domain.ids import Keys, canonical_id, key_of
from aif_stream.domain.request import AgeMs, Coverage, Freshness, RankAnswer, RankedItem, RankRequest, Timings
from aif_stream.domain.request_log import AnsweredRequest
from aif_stream.errors import AifError, IndexRefused, IndexUnavailable, UpstreamError
from aif_stream.online.deadline import Deadline, Reserve
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.pool import Pool, distinct
from aif_stream.online.recompute import Recompute
from aif_stream.online.retrieval_client import RetrievalClient
from aif_stream.online.scoring import Part, Ranked, part_of, rank, score_part
from aif_stream.online.serving import Serving
from aif_stream.online.user_side import UserPart, UserSides
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A wait for a thread that stops by itself at the deadline, plus this, is the latest that an answer goes out.
_GRACE_S: Final = 0.02


@dataclass(slots=True)
class _Span:
    """From the first beginning to the last end of a stage, monotonic seconds; empty while it has not begun."""

    begin_s: float = float("inf")
    end_s: float = float("-inf")

    @contextmanager
    def open(self) -> Iterator[None]:
        self.begin_s = min(self.begin_s, monotonic_s())
        try:
            yield
        finally:
            self.end_s = max(self.end_s, monotonic_s())

    @property
    def ms(self) -> float:
        return max(0.0, self.end_s - self.begin_s) * 1000.0


@dataclass(slots=True)
class _Run:
    """What one request has so far. Stage times in ms."""

    request: RankRequest
    serving: Serving
    deadline: Deadline
    reserve_s: float
    pool: Pool
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    user: asyncio.Task[UserPart] | None = None
    received_ms: int = field(default_factory=now_ms)
    asked: list[Keys] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    user_s: _Span = field(default_factory=_Span)
    retrieval_s: _Span = field(default_factory=_Span)
    join_ms: float = 0.0
    score_ms: float = 0.0
    failure: AifError | None = None

    def short_of(self, reason: str) -> None:
        if reason and reason not in self.degraded:
            self.degraded.append(reason)


class Merger:
    """``rank`` is safe for any number of requests at a time."""

    def __init__(
        self,
        settings: Settings,
        *,
        pin: Callable[[str | None], Serving],
        users: UserSides,
        retrieval: RetrievalClient,
        recompute: Recompute,
        threads: ComputeThreads,
        behind: Callable[[], bool],
        answered: Callable[[AnsweredRequest], None],
    ) -> None:
        """``behind()``: the rows may be older than what Redis holds (the change log could not be confirmed).
        ``answered`` hears of every answer (the request log); it neither waits nor raises."""
        self._settings = settings
        self._pin = pin
        self._users = users
        self._retrieval = retrieval
        self._recompute = recompute
        self._threads = threads
        self._behind = behind
        self._answered = answered
        self._reserve = Reserve()
        self._last: Candidates | None = None

    async def rank(self, request: RankRequest) -> RankAnswer:
        """Answer a checked request. Raises ``VersionError`` (not the version that is served), ``Overloaded`` (none
        is), ``UpstreamError`` (no candidates to be had), ``IndexUnavailable`` (no rows to be had)."""
        serving = self._pin(request.model_version)
        deadline = Deadline.after(request.deadline_ms or self._settings.deadline_ms)
        named = request.candidates is not None
        pool = Pool(0, ()) if named else Pool(self._settings.retrieval_k, self._retrieval.channels)
        run = _Run(request, serving, deadline, self._reserve.of(deadline), pool)
        async with asyncio.TaskGroup() as tasks:
            run.user = tasks.create_task(self._user_side(run))
            await (self._named(run) if named else self._retrieved(run))
        if run.failure is not None and not run.parts:
            raise run.failure
        answer = await self._answer(run)
        if request.is_probe:
            return answer
        if not any(reason.startswith("deadline") for reason in run.degraded):
            self._reserve.observe(monotonic_s() - max(run.user_s.end_s, run.retrieval_s.end_s))
        self._answered(AnsweredRequest(request, answer, run.received_ms, run.asked, run.names))
        return answer

    async def _user_side(self, run: _Run) -> UserPart:
        log.debug(kv("user.begun", request=run.request_id))
        with run.user_s.open():
            part = await self._users.of(run.serving, key_of(run.request.user), run.deadline, run.reserve_s)
        log.debug(kv("user.done", request=run.request_id, ms=run.user_s.ms))
        run.short_of(part.short_of)
        return part

    async def _named(self, run: _Run) -> None:
        """The request brought its candidates."""
        given = run.request.candidates or []

        def convert() -> tuple[Keys, dict[int, str]]:
            keys, names = keys_and_names([canonical_id(item, "candidates") for item in given])
            return distinct(keys if run.request.is_probe else _without_probe(keys)), names

        keys, run.names = await self._threads.run(convert)
        run.pool.size = int(keys.size)
        await self._join_and_score(run, keys)

    async def _retrieved(self, run: _Run) -> None:
        channels = self._retrieval.channels
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._channel(run, channel)) for channel in channels]
        failed = [task.result() for task in asked if task.result() is not None]
        if len(failed) == len(channels):
            run.short_of("retrieval")
            if self._last is None:
                if channels and not run.deadline.left_s(run.reserve_s):
                    return  # the client left no time to ask: an empty answer that says so
                run.failure = failed[0] if failed else UpstreamError("AIF_RETRIEVAL_CHANNELS names no channel")
                return
            run.names = self._last.names
            await self._join_and_score(run, run.pool.take("", self._last.keys))
        else:
            await self._join_and_score(run, run.pool.fill())

    async def _channel(self, run: _Run, channel: str) -> UpstreamError | None:
        """Ask one channel; join and score what is new in its answer as soon as that is possible."""
        budget_s = run.deadline.left_s(run.reserve_s, self._settings.retrieval_budget_ms / 1000.0)
        asked = run.pool.share_of(channel)
        try:
            with run.retrieval_s.open():
                found = await self._retrieval.ask(run.request_id, run.request.user, channel, asked, budget_s)
        except UpstreamError as error:
            run.short_of(f"retrieval:{channel}")
            return error
        found = Candidates(found.channel, _without_probe(found.keys), found.names)
        run.names.update(found.names)
        if channel == self._retrieval.channels[-1] and found.keys.size:
            self._last = found  # the filler knows everybody: what is answered when nobody answers us
        await self._join_and_score(run, run.pool.take(channel, found.keys))
        return None

    async def _join_and_score(self, run: _Run, keys: Keys) -> None:
        if not keys.size or run.user is None:
            return
        run.asked.append(keys)
        part = await self._join(run, keys)
        if part is None:
            return
        user = await asyncio.shield(run.user)
        started_s = monotonic_s()
        run.parts.append(part)
        due_s = run.deadline.due_s
        try:
            async with asyncio.timeout(run.deadline.left_s() + _GRACE_S):
                await self._threads.run(lambda: score_part(run.serving.model, user.side, part, due_s))
        except TimeoutError:
            pass
        if part.done < part.keys.size:
            run.short_of("deadline:score")
        run.score_ms += elapsed_ms(started_s)

    async def _join(self, run: _Run, keys: Keys) -> Part | None:
        """Rows of the keys, with missing and too old ones recomputed within bounds; None: no rows, and why is said."""
        started_s = monotonic_s()
        try:
            async with asyncio.timeout(run.deadline.left_s(run.reserve_s / 2)):
                rows, found = await run.serving.join.rows(keys)
                part = part_of(keys, rows, found)
        except TimeoutError:
            run.short_of("deadline:join")
            return None
        except (IndexUnavailable, IndexRefused) as error:
            run.short_of("join")
            run.failure = error
            return None
        for reason in await self._recompute.complete(run.serving.model, part, run.deadline, run.reserve_s):
            run.short_of(reason)
        run.join_ms += elapsed_ms(started_s)
        return part

    async def _answer(self, run: _Run) -> RankAnswer:
        now = now_ms()
        ranked = await self._threads.run(lambda: rank(run.parts, run.request.k, now))
        if run.request.explain:
            run.short_of("explain:unavailable")
        if self._behind():
            run.short_of("freshness")
        user_age_ms = run.user.result().age_ms if run.user is not None else 0.0
        return RankAnswer(
            request_id=run.request_id,
            model_version=run.serving.name,
            items=_items(ranked, run.names),
            coverage=Coverage(
                candidates=run.pool.size,
                scored=ranked.scored,
                recomputed=sum(part.recomputed for part in run.parts),
                missing=run.pool.size - ranked.scored,
            ),
            freshness=Freshness(
                age_ms=AgeMs(p50=ranked.age_p50_ms, max=max(ranked.age_max_ms, user_age_ms)),
                stale=sum(part.stale for part in run.parts),
                newest_event_ms=ranked.newest_event_ms,
            ),
            degraded=run.degraded,
            timings_ms=_timings(run),
        )


def _without_probe(keys: Keys) -> Keys:
    """The watch's own item is ranked alone (``RankRequest.is_probe``) or not at all."""
    others = keys != PROBE_KEY
    return keys if others.all() else keys[others]


def _items(ranked: Ranked, names: dict[int, str]) -> list[RankedItem]:
    pairs = zip(ranked.keys, ranked.scores, strict=True)
    return [RankedItem(id_of(key, names), score) for key, score in pairs]


def _timings(run: _Run) -> Timings:
    """``join`` and ``score`` add up over parts, some of which were worked on while others were still awaited."""
    user_ms, retrieval_ms = run.user_s.ms, run.retrieval_s.ms
    together_ms = _Span(
        min(run.user_s.begin_s, run.retrieval_s.begin_s), max(run.user_s.end_s, run.retrieval_s.end_s)
    ).ms
    return Timings(
        user=round(user_ms, 3),
        retrieval=round(retrieval_ms, 3),
        join=round(run.join_ms, 3),
        score=round(run.score_ms, 3),
        total=round(run.deadline.elapsed_ms(), 3),
        overlap_saved=round(user_ms + retrieval_ms - together_ms, 3),
    )
