"""One request's life: pin a version; user side beside retrieval; join and score each part as it comes; answer.

    user ────────┐
    channel ─────┼─ join, score ──┐
    channel ─────┼────────────────┼─ fill up, join, score, top k ─ answer
    channel ─────┴────────────────┘

Everything waits inside one deadline. What does not come in time, or fails, is missing from the answer, and
``degraded`` names it; the version that was pinned on arrival is the only one used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from msgspec import UNSET

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.candidates import Candidates, ids_of, keys_and_names
from aif_stream.domain.events import Id
from aif_stream.domain.explanations import StartedExplanation
from aif_stream.domain.freshness import PROBE_KEY
from aif_stream.domain.ids import Keys, canonical_id, key_of
from aif_stream.domain.request import AgeMs, Coverage, Freshness, RankAnswer, RankedItem, RankRequest
from aif_stream.domain.request_log import AnsweredRequest
from aif_stream.errors import UpstreamError
from aif_stream.kernels.distinct import DistinctKeys
from aif_stream.kernels.ids import direct_keys
from aif_stream.online.admission import Admission, Stay
from aif_stream.online.deadline import Deadline, Reserve
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.facts_keeper import Answered, FactsKeeper
from aif_stream.online.pool import Pool
from aif_stream.online.progress import Progress
from aif_stream.online.recompute import Recompute
from aif_stream.online.retrieval_client import RetrievalClient
from aif_stream.online.run import Run
from aif_stream.online.scoring import Ranked, rank
from aif_stream.online.serving import Serving
from aif_stream.online.user_side import UserPart, UserSides
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)


# Channels of one upstream answer within a millisecond of each other. Waiting that long for the others makes one part of
# all; beginning at once makes the loop read them beside a computing thread, which costs both more than that.
_TOGETHER_S: Final = 0.001


class Merger:
    """``rank`` is safe for any number of requests at a time."""

    def __init__(
        self,
        settings: Settings,
        *,
        pin: Callable[[str | None, str], AbstractContextManager[Serving]],
        users: UserSides,
        retrieval: RetrievalClient,
        recompute: Recompute,
        threads: ComputeThreads,
        behind: Callable[[Serving], bool],
        admission: Admission,
        logs: Callable[[str], bool],
        answered: Callable[[AnsweredRequest], None],
        facts: FactsKeeper,
    ) -> None:
        """``pin(name, user)``: the version that answers, held until the request ends. ``behind(serving)``: its rows
        may be older than what Redis holds (the change log could not be confirmed).
        ``answered`` hears of every answer whose request id ``logs`` (the request log); it neither waits nor raises."""
        self._settings = settings
        self._pin = pin
        self._users = users
        self._retrieval = retrieval
        self._threads = threads
        self._progress = Progress(threads, recompute)
        self._behind = behind
        self._admission = admission
        self._busy_s = 0.0
        self._logs = logs
        self._answered = answered
        self._facts = facts
        self._reserve = Reserve()
        self._last: Candidates | None = None
        self._seen: list[DistinctKeys] = []  # tables that no request uses now

    def check_room(self) -> None:
        """Raises ``Overloaded`` when a request of the usual deadline would be refused: asked before a large body is
        read and decoded."""
        self._admission.check()

    async def rank(self, request: RankRequest) -> RankAnswer:
        """Answer a checked request. Raises ``VersionError`` (not the version that is served), ``Overloaded`` (none
        is, or too many requests are in service), ``UpstreamError`` (no candidates to be had), ``IndexUnavailable`` (no
        rows to be had)."""
        if request.is_probe:
            return await self._rank(request)
        with self._admission.admit((request.deadline_ms or self._settings.deadline_ms) / 1000.0) as stay:
            return await self._rank(request, stay)

    async def _rank(self, request: RankRequest, stay: Stay | None = None) -> RankAnswer:
        with self._pin(request.model_version, request.user) as serving:
            return await self._rank_with(serving, request, stay)

    async def _rank_with(self, serving: Serving, request: RankRequest, stay: Stay | None) -> RankAnswer:
        deadline = Deadline.after(request.deadline_ms or self._settings.deadline_ms)
        named, usual = request.candidates is not None, self._settings.retrieval_k
        channels = () if named else self._retrieval.channels
        wanted = len(request.candidates or ()) if named else usual
        seen = self._seen.pop() if self._seen and wanted <= usual else DistinctKeys(max(wanted, usual))
        # The watch's own item is ranked alone or not at all.
        pool = Pool(wanted, channels, seen, but=None if request.is_probe else PROBE_KEY)
        run = Run(request, serving, deadline, self._reserve.of(deadline), pool, awaited=len(channels))
        run.is_logged = not (request.is_probe or request.replay) and self._logs(run.request_id)
        run.keeps_rows = self._facts.wants(run.request_id, request)
        async with asyncio.TaskGroup() as tasks:
            run.user = tasks.create_task(self._user_side(run, stay))
            await (self._named(run) if named else self._retrieved(run))
        if seen.most == usual:  # not after a failure: another channel's answer might still be taken into it
            seen.clear()
            self._seen.append(seen)
        if run.failure is not None and not run.parts:
            raise run.failure
        answer, ranked = await self._answer(run)
        if request.is_probe:
            return answer
        if not any(reason.startswith("deadline") for reason in run.degraded):
            self._reserve.observe(monotonic_s() - max(run.user_s.end_s, run.retrieval_s.end_s))
        busy_s, self._busy_s = self._threads.busy_s - self._busy_s, self._threads.busy_s
        self._admission.observe(
            busy_s,
            run.join_s.s + run.score_s.s,
            run.retrieval_s.ms / 1000.0,
            began_s=deadline.started_s,
            deadline_s=deadline.due_s - deadline.started_s,
        )
        if run.is_logged:
            self._answered(
                AnsweredRequest(
                    *(request, answer, run.received_ms, run.asked, run.names),
                    *(ranked.keys, ranked.scores, ranked.packed),
                )
            )
        return answer

    async def _user_side(self, run: Run, stay: Stay | None) -> UserPart:
        if not self._settings.overlap:
            await run.retrieved.wait()
        log.debug(kv("user.begun", request=run.request_id))
        with run.user_s.open():
            part = await self._users.of(run.serving, key_of(run.request.user), run.deadline, run.reserve_s)
        log.debug(kv("user.done", request=run.request_id, ms=run.user_s.ms))
        run.short_of(part.short_of)
        if stay is not None:
            stay.user_done()
        return part

    async def _named(self, run: Run) -> None:
        """The request brought its candidates."""
        run.arrived.append(("", await self._keys(run, run.request.candidates or [])))
        run.retrieved.set()
        if run.user is not None and self._progress.joins_in_place(run):
            await asyncio.shield(run.user)
        await self._advance(run)

    async def _keys(self, run: Run, given: list[Id]) -> Keys:
        direct = direct_keys(given)
        if direct is not None:
            return direct
        # Names among them: 10,000 take some milliseconds.
        keys, run.names = await self._threads.run(partial(_keys_and_names, given), run.deadline.due_s)
        return keys

    async def _retrieved(self, run: Run) -> None:
        channels = self._retrieval.channels
        if not channels:
            run.retrieved.set()
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
            run.arrived.append(("", self._last.keys))
        await self._advance(run)

    async def _channel(self, run: Run, channel: str) -> UpstreamError | None:
        """Ask one channel; join and score what is new in its answer as soon as that is possible."""
        budget_s = run.deadline.left_s(run.reserve_s, self._settings.retrieval_budget_ms / 1000.0)
        asked = run.pool.share_of(channel)
        try:
            with run.retrieval_s.open():
                found = await self._retrieval.ask(run.request_id, run.request.user, channel, asked, budget_s)
        except UpstreamError as error:
            run.short_of(f"retrieval:{channel}")
            run.settled()
            return error
        run.names.update(found.names)
        if channel == self._retrieval.channels[-1] and found.keys.size:
            self._last = found  # the filler knows everybody: what is answered when nobody answers us
        run.arrived.append((channel, found.keys))
        run.settled()
        await self._advance(run)
        return None

    async def _advance(self, run: Run) -> None:
        """Carry what has arrived as far as it goes. Several channels that answer together are one piece of work."""
        if run.waited_for:
            return  # whoever waits for the others takes ours along
        if run.awaited:
            run.waited_for = True
            try:
                async with asyncio.timeout(_TOGETHER_S):
                    await run.retrieved.wait()
            except TimeoutError:
                pass
            finally:
                run.waited_for = False
        async with run.turn:
            await self._progress.join(run)
        if run.user is not None and not run.user.done():
            await asyncio.shield(run.user)
        async with run.turn:
            await self._progress.score(run)

    async def _answer(self, run: Run) -> tuple[RankAnswer, Ranked]:
        ranked = run.ranked
        if ranked is None:  # something did not come in time: the best of what there is
            ranked = await self._threads.run(lambda: rank(run.parts, run.request.k, now_ms()), run.deadline.due_s)
        items = _items(ranked, run.names)
        started = self._keep_facts(run, ranked, items)
        if self._behind(run.serving):
            run.short_of("freshness")
        user_age_ms = run.user.result().age_ms if run.user is not None else 0.0
        answer = RankAnswer(
            request_id=run.request_id,
            model_version=run.serving.name,
            items=items,
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
            timings_ms=run.timings(),
            explanations=started or UNSET,
        )
        return answer, ranked

    def _keep_facts(self, run: Run, ranked: Ranked, items: list[RankedItem]) -> list[StartedExplanation]:
        """Offer what the answer was made of, if that is wanted; the explanations that begin by it."""
        if not items or not run.keeps_rows:
            return []
        user, issued_ms = run.known_user, self._facts.ids.now_ms()
        answered = Answered(
            request_id=run.request_id,
            request=run.request,
            version=run.serving.name,
            received_ms=run.received_ms,
            items=items,
            keys=ranked.keys,
            names=run.names,
            parts=list(run.parts),
            user=None if user is None else user.inputs,
            started=self._facts.started(run.request_id, items, run.request.explain, issued_ms),
            issued_ms=issued_ms,
        )
        if self._facts.offer(answered):
            return answered.started
        if run.request.explain:
            run.short_of("explain:unavailable")
        return []


def _keys_and_names(given: list[Id]) -> tuple[Keys, dict[int, str]]:
    return keys_and_names([canonical_id(item, "candidates") for item in given])


def _items(ranked: Ranked, names: dict[int, str]) -> list[RankedItem]:
    return [RankedItem(name, score) for name, score in zip(ids_of(ranked.keys, names), ranked.scores, strict=True)]
