"""The way of a request's candidates: keys → rows → scores → top k, as far as it goes at each call.

Whatever has arrived meanwhile is taken up together, and where rows are in memory all of it is one piece of work in one
thread. A hop to a thread costs more than it seems (two switches of the interpreter's lock beside a busy loop), and a
model call has a fixed cost, so three channels that answer together are joined and scored as one part.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import numpy as np

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.ids import Keys
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.kernels.request_body import request_body
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.join import MirrorJoin
from aif_stream.online.recompute import Recompute
from aif_stream.online.run import Run
from aif_stream.online.scoring import Part, best_places, part_in_place, part_of, rank, score_part

# A wait for a thread that stops by itself at the deadline, plus this, is the latest that an answer goes out.
_GRACE_S: Final = 0.02


class Progress:
    """Safe for any number of requests; one call at a time per request (``Run.turn``)."""

    def __init__(self, threads: ComputeThreads, recompute: Recompute) -> None:
        self._threads = threads
        self._recompute = recompute

    @staticmethod
    def joins_in_place(run: Run) -> bool:
        """Whether candidates that are all there had better wait for the user side: join and score are one call in one
        thread then, no row is copied. A join before it would save .1 ms of waiting and cost twice that."""
        return isinstance(run.serving.join, MirrorJoin)

    async def join(self, run: Run) -> None:
        """Take up what has arrived and join it; score it in the same breath when the user side is there."""
        final = not run.awaited
        if not run.arrived and not (final and run.pool.has_more):
            return  # whoever had the turn before took ours along
        with run.join_s.open():
            keys = _taken(run, final)
        left_s = run.deadline.left_s(run.reserve_s / 2)
        if keys.size and not left_s:
            run.short_of("deadline:join")
            return
        part: Part | None = None
        try:
            async with asyncio.timeout(left_s):
                if isinstance(run.serving.join, MirrorJoin):
                    work = partial(self._in_memory, run, run.serving.join, keys, final)
                    part = await self._threads.run(work, run.deadline.due_s)
                elif keys.size:
                    with run.join_s.open():
                        part = part_of(keys, *await run.serving.join.rows(keys, run.deadline.due_s))
        except TimeoutError:
            run.short_of("deadline:join")
        except (IndexUnavailable, IndexRefused) as error:
            run.short_of("join")
            run.failure = error
        if part is not None:
            with run.join_s.open():
                for reason in await self._recompute.complete(run.serving.model, part, run.deadline, run.reserve_s):
                    run.short_of(reason)
            run.parts.append(part)

    async def score(self, run: Run) -> None:
        """Score what is joined and not scored yet; rank when nothing is awaited any more."""
        final = not run.awaited and not run.arrived
        if run.ranked is None and (final or _unscored(run)):
            try:
                async with asyncio.timeout(run.deadline.left_s() + _GRACE_S):
                    await self._threads.run(lambda: _score(run, final), run.deadline.due_s)
            except TimeoutError:
                pass
        if _unscored(run) and not run.deadline.left_s():
            run.short_of("deadline:score")

    def _in_memory(self, run: Run, mirror: MirrorJoin, keys: Keys, final: bool) -> Part | None:
        """In a thread: everything that can be done without waiting. Returns a part that lacks rows."""
        part = self._scored_in_place(run, mirror, keys) if keys.size else None
        if keys.size and part is None:
            with run.join_s.open():
                part = part_of(keys, *mirror.gather(keys))
                incomplete = self._recompute.wants(part)
            if incomplete:
                return part
        if part is not None:
            run.parts.append(part)
        _score(run, final)
        return None

    def _scored_in_place(self, run: Run, mirror: MirrorJoin, keys: Keys) -> Part | None:
        """Join and score in one call, the rows copied nowhere but for the best, of which facts are made. None where
        somebody else needs to see them: an age policy, the search for rows that are missing; or where the user side is
        not there yet."""
        user = run.known_user
        if user is None or self._recompute.reads_ages:
            return None
        begin_s = monotonic_s()
        model, stops = run.serving.model, self._recompute.fills
        scored = mirror.score(model, user.side, keys, run.deadline.due_s, stop_if_unknown=stops)
        if scored is None:
            return None
        run.join_s.s += scored.join_s
        run.score_s.s += monotonic_s() - begin_s - scored.join_s
        part = part_in_place(keys, scored, model.layout)
        if run.keeps_rows and not with_best_rows(part, run.request.k, model, user.side, mirror):
            return None
        return part


def with_best_rows(part: Part, k: int, model: ModelVersion, user: UserSide, mirror: MirrorJoin) -> bool:
    """Copy the rows of the best k of a part that was scored in place, and of the best that is left out. False when one
    of them was replaced since it was scored: its score shows that, as it depends on user and row alone, to the last
    bit."""
    best = best_places(part.scores, k + 1)
    rows, _ = mirror.gather(part.keys[best])
    part.best, part.best_rows = best, rows
    return bool(np.array_equal(model.score(user, rows), part.scores[best]))


def _unscored(run: Run) -> bool:
    return any(part.done < part.keys.size for part in run.parts)


def _taken(run: Run, final: bool) -> Keys:
    """The keys of the answers that arrived that are new; after the last one, also what the filler has left.

    On the loop: .06 ms for 3,333 keys, and the pool counts every candidate even when there is no time to join it.
    """
    arrived, run.arrived = run.arrived, []
    taken = [run.pool.take(channel, keys) for channel, keys in arrived]
    if final:
        taken.append(run.pool.fill())
    keys = taken[0] if len(taken) == 1 else np.concatenate(taken)
    if keys.size:
        run.asked.append(keys)
    return keys


def _score(run: Run, final: bool) -> None:
    """In a thread: all that is joined, if the user side is there; the top k if that was the last of it."""
    user = run.known_user
    if user is None:
        return
    ranked = None
    with run.score_s.open():
        for part in run.parts:
            score_part(run.serving.model, user.side, part, run.deadline.due_s)
        if final:
            ranked = rank(run.parts, run.request.k, now_ms())
    if ranked is None:
        return
    if run.is_logged:  # the log's work, not the score's; here the keys are still in the processor's caches
        ranked = ranked._replace(packed=request_body(run.asked, ranked.keys, ranked.scores))
    run.ranked = ranked
