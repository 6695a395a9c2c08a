"""One task's life at a worker: claim, facts, version, the very score, stage after stage, the end told and published."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import EXPLANATIONS as RESULTS_TOPIC
from aif_stream.clock import now_ms
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.explanations import (
    EXPLANATION_RESULT_EVENT,
    Action,
    ExplanationResult,
    ExplanationTask,
    Reply,
    Stage,
    State,
    Told,
)
from aif_stream.domain.facts import Facts, read_head, unpack_facts
from aif_stream.domain.ids import is_hashed
from aif_stream.errors import IndexUnavailable, Unexplainable
from aif_stream.explain.bench import Bench
from aif_stream.explain.case import Case, open_case
from aif_stream.explain.counterfactual import counterfactual_steps
from aif_stream.explain.digest import facts_digest
from aif_stream.explain.native import Names, native
from aif_stream.explain.near import Near, near_digest
from aif_stream.explain.pace import Pace
from aif_stream.explain.shapley import Game, shapley, shapley_stage
from aif_stream.explain.versions import Versions
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings
from aif_stream.telemetry import EXPLANATION_COARSE, EXPLANATIONS, kv

log = logging.getLogger(__name__)

# A worker that was killed is missed after so long; one that is alive says so ten times meanwhile.
LEASE_MS: Final = 5_000
_BEAT_S: Final = 0.5


class End(Enum):
    """DONE: nothing is left to do here, the record may be committed. LATER: somebody else holds it; look again."""

    DONE = auto()
    LATER = auto()


class _Lost(Exception):
    """The work is not ours any more: cancelled, ended, or another attempt's."""


class Desk:
    """What every task needs; ``do`` may run several times at once."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: ExplanationStore,
        items: N2OStore,
        versions: Versions,
        bench: Bench,
        producer: Producer,
        pace: Pace,
        near: Near,
    ) -> None:
        self._store = store
        self._items = items
        self._versions = versions
        self._bench = bench
        self._producer = producer
        self._pace = pace
        self._near = near

    async def do(self, task: ExplanationTask) -> End:
        """Carry one task to its end, or find that it has one. Cancelled: the work is handed back.

        Raises ``IndexUnavailable``, ``IndexRefused``, ``PublishError`` (try again), and whatever a method raises."""
        await self._store.ask(task)
        claimed = await self._store.tell(task.explanation_id, Told(Action.CLAIM, run=task.run, lease_ms=LEASE_MS), {})
        if claimed.reply is Reply.BUSY:
            return End.LATER
        if claimed.reply is not Reply.OK:
            if claimed.state is State.EXPIRED:
                log.info(kv("explanation.expired", explanation=task.explanation_id))
            return End.DONE
        job = _Job(self._store, task, claimed.attempt)
        try:
            async with job.alive():
                await self._explain(job)
        except _Lost:
            log.info(kv("explanation.lost", explanation=task.explanation_id, attempt=claimed.attempt))
        except Unexplainable as error:
            await self.give_up(task, claimed.attempt, str(error))
        except BaseException:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._store.tell(task.explanation_id, Told(Action.HAND_BACK, attempt=claimed.attempt))
            raise
        return End.DONE

    async def give_up(self, task: ExplanationTask, attempt: int | None, reason: str) -> None:
        """Failed, for this reason. Without ``attempt``: claimed for that first."""
        if attempt is None:
            claim = Told(Action.CLAIM, run=task.run, lease_ms=LEASE_MS)
            claimed = await self._store.tell(task.explanation_id, claim, {})
            if claimed.reply is not Reply.OK:
                return
            attempt = claimed.attempt
        fields = {"reason": reason.encode("utf-8", "replace")}
        await self._publish(task, attempt, State.FAILED, {}, reason)
        told = Told(Action.FINISH, attempt=attempt, to=State.FAILED)
        if (await self._store.tell(task.explanation_id, told, fields)).reply is Reply.OK:
            EXPLANATIONS.labels(state=State.FAILED, cache="none").inc()
            log.warning(kv("explanation.failed", explanation=task.explanation_id, reason=reason))

    async def _explain(self, job: _Job) -> None:
        task = job.task
        facts = await self._facts(task)
        digest = facts_digest(facts, task)
        cached = await self._store.cached(digest)
        if cached is not None:
            stages: dict[str, Any] = {name: bytes(raw) for name, raw in msgspec.json.decode(cached, type=_RAW).items()}
            for name, data in stages.items():
                await job.stage(Stage(name), data)
        else:
            stages = await self._compute(job, facts)
            if not job.near:  # what a like user's stands in for is computed when it is asked for again
                whole = orjson.dumps({name: orjson.Fragment(raw) for name, raw in stages.items()})
                await self._store.cache(digest, whole)
        await self._publish(task, job.attempt, State.COMPLETE, stages, "")
        hit = "exact" if cached is not None else "near" if job.near else "none"
        await job.tell(Told(Action.FINISH, attempt=job.attempt, to=State.COMPLETE), {"cache": hit.encode()})
        EXPLANATIONS.labels(state=State.COMPLETE, cache=hit).inc()
        self._pace.explained(task.priority, _waited_s(task))

    async def _compute(self, job: _Job, facts: Facts) -> dict[str, bytes]:
        task = job.task
        version = await self._versions.get(facts.head.version)
        names = await self._names(facts)
        # One unit: what is urgent waits for one of somebody else's, not for two.
        case, coarse = await self._bench.run(task.priority, lambda: _coarse(version, facts, task.item_id, names))
        stages: dict[str, bytes] = {}
        for stage in task.method.stages:
            if stage is Stage.NATIVE:
                found = coarse
            elif stage is Stage.SHAPLEY:
                found = await self._shapley(job, case)
            else:
                found = await self._counterfactual(job, case, names)
            stages[stage.value] = orjson.dumps(found)
            await job.stage(stage, stages[stage.value])
        return stages

    async def _shapley(self, job: _Job, case: Case) -> dict[str, Any]:
        """The refined stage: a like user's where that is trusted, else computed."""
        priority, version, game = job.task.priority, case.version.name, Game(case)
        hit = None
        if self._near.used:
            digest = await self._bench.run(priority, lambda: near_digest(game))
            hit = await self._near.look(version, digest, case.recomputed)
            if hit.tell and hit.stage is not None:
                job.near = True
                return hit.stage
        rounds, last = shapley(game), None
        while (estimate := await self._bench.run(priority, lambda: next(rounds, None))) is not None:
            job.check()
            last = estimate
            job.progress = f"{Stage.SHAPLEY} {estimate.done:.2f}"
        assert last is not None  # noqa: S101  # there is a first round
        found = shapley_stage(last)
        if hit is not None:
            await self._near.computed(version, hit, found)
        return found

    async def _counterfactual(self, job: _Job, case: Case, names: Names) -> dict[str, Any]:
        """Step by step: what is urgent waits for one of them."""
        steps = counterfactual_steps(case, names)
        while (found := await self._bench.run(job.task.priority, lambda: next(steps))) is None:
            job.check()
        return found

    async def _facts(self, task: ExplanationTask) -> Facts:
        value, known = await self._store.facts(task.request_id)
        name = "" if value is None else read_head(value).user_part
        user = await self._store.facts_user(name) if name else b""
        if value is None or user is None:
            kept = "have expired" if known else "are not there (Redis may have forgotten them)"
            raise Unexplainable(f"the facts of request {task.request_id} {kept}")
        return unpack_facts(value, user)

    async def _names(self, facts: Facts) -> dict[int, str]:
        """Ids of the history's hashed keys, as the index knows them."""
        hashed = [key for key in np.unique(facts.entries["key"]).tolist() if is_hashed(key)]
        if not hashed:
            return {}
        try:
            stored = await self._items.read_items(hashed)
        except IndexUnavailable:
            return {}
        return {key: item.id_text for key, item in zip(hashed, stored, strict=True) if item is not None}

    async def _publish(
        self, task: ExplanationTask, attempt: int, state: State, stages: dict[str, bytes], reason: str
    ) -> None:
        result = ExplanationResult(
            explanation_id=task.explanation_id,
            run=task.run,
            attempt=attempt,
            request_id=task.request_id,
            item_id=task.item_id,
            method=task.method,
            state=state,
            reason=reason,
            stages={name: msgspec.Raw(raw) for name, raw in stages.items()},
        )
        name = f"{task.explanation_id}/{task.run}/{attempt}"
        headers = to_headers(Envelope(EXPLANATION_RESULT_EVENT, name, "aif/explain", now_ms(), {}), JSON)
        key = task.explanation_id.encode()
        await (await self._producer.send(RESULTS_TOPIC, key, msgspec.json.encode(result), headers))


def _coarse(version: ModelVersion, facts: Facts, item_id: str, names: Names) -> tuple[Case, dict[str, Any]]:
    case = open_case(version, facts, item_id)
    return case, native(case, names)


_RAW: Final = dict[str, msgspec.Raw]


class _Job:
    """One attempt that holds its work: every write names it, and one that is refused ends it."""

    def __init__(self, store: ExplanationStore, task: ExplanationTask, attempt: int) -> None:
        self._store = store
        self.task = task
        self.attempt = attempt
        self.progress = ""
        self.near = False  # a part of it is a like user's
        self._lost = False

    def check(self) -> None:
        """Raises ``_Lost`` when the work was taken away meanwhile."""
        if self._lost:
            raise _Lost

    async def tell(self, told: Told, fields: dict[str, bytes]) -> None:
        """Raises ``_Lost`` when the machine refuses."""
        self.check()
        said = await self._store.tell(self.task.explanation_id, told, fields)
        if said.reply is not Reply.OK:
            self._lost = True
            raise _Lost

    async def stage(self, stage: Stage, data: bytes) -> None:
        """A part of the result is there."""
        await self.tell(Told(Action.STAGE, attempt=self.attempt, lease_ms=LEASE_MS), {f"stage:{stage.value}": data})
        if stage is Stage.NATIVE:
            EXPLANATION_COARSE.labels(priority=self.task.priority).observe(_waited_s(self.task))

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Signs of life and progress while the body works; the body is cancelled when the work is lost."""
        body = asyncio.current_task()
        beating = asyncio.create_task(self._beat(body.cancel if body is not None else lambda: True))
        try:
            yield
        except asyncio.CancelledError:
            if self._lost and body is not None and body.uncancel() == 0:
                raise _Lost from None
            raise
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, lost: Callable[[], bool]) -> None:
        said = ""
        while True:
            await asyncio.sleep(_BEAT_S)
            fields = {} if self.progress == said else {"progress": self.progress.encode()}
            said = self.progress
            with contextlib.suppress(IndexUnavailable):  # the lease may run out: then another attempt takes over
                told = Told(Action.KEEP, attempt=self.attempt, lease_ms=LEASE_MS)
                answer = await self._store.tell(self.task.explanation_id, told, fields)
                if answer.reply is not Reply.OK:
                    self._lost = True
                    lost()
                    return


def _waited_s(task: ExplanationTask) -> float:
    return max(0.0, (now_ms() - max(task.asked_ms, task.answered_ms)) / 1000.0)
