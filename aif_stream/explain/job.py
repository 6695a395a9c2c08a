"""One task's life at a worker: claim, facts, version, the very score, stage after stage, the end told and published."""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
from aif_stream.explain.attempt import LEASE_MS, Attempt, LostAttempt
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
from aif_stream.telemetry import EXPLANATIONS, kv

log = logging.getLogger(__name__)

_RAW: Final = dict[str, msgspec.Raw]


class End(Enum):
    """DONE: nothing is left to do here, the record may be committed. LATER: somebody else holds it; look again."""

    DONE = auto()
    LATER = auto()


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
        attempt = Attempt(self._store, task, claimed.attempt)
        try:
            async with attempt.alive():
                await self._explain(attempt)
        except LostAttempt:
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

    async def _explain(self, attempt: Attempt) -> None:
        task = attempt.task
        facts = await self._facts(task)
        digest = facts_digest(facts, task)
        cached = await self._store.cached(digest)
        if cached is not None:
            stages: dict[str, Any] = {name: bytes(raw) for name, raw in msgspec.json.decode(cached, type=_RAW).items()}
            for name, data in stages.items():
                await attempt.stage(Stage(name), data)
        else:
            stages = await self._compute(attempt, facts)
            if not attempt.near:  # what a like user's stands in for is computed when it is asked for again
                whole = orjson.dumps({name: orjson.Fragment(raw) for name, raw in stages.items()})
                await self._store.cache(digest, whole)
        await self._publish(task, attempt.number, State.COMPLETE, stages, "")
        hit = "exact" if cached is not None else "near" if attempt.near else "none"
        await attempt.tell(Told(Action.FINISH, attempt=attempt.number, to=State.COMPLETE), {"cache": hit.encode()})
        EXPLANATIONS.labels(state=State.COMPLETE, cache=hit).inc()
        self._pace.explained(task.priority, attempt.waited_s)

    async def _compute(self, attempt: Attempt, facts: Facts) -> dict[str, bytes]:
        task = attempt.task
        version = await self._versions.get(facts.head.version)
        names = await self._names(facts)
        # One unit: what is urgent waits for one of somebody else's, not for two.
        case, coarse = await self._bench.run(task.priority, lambda: _coarse(version, facts, task.item_id, names))
        stages: dict[str, bytes] = {}
        for stage in task.method.stages:
            if stage is Stage.NATIVE:
                found = coarse
            elif stage is Stage.SHAPLEY:
                found = await self._shapley(attempt, case)
            else:
                found = await self._counterfactual(attempt, case, names)
            stages[stage.value] = orjson.dumps(found)
            await attempt.stage(stage, stages[stage.value])
        return stages

    async def _shapley(self, attempt: Attempt, case: Case) -> dict[str, Any]:
        """The refined stage: a like user's where that is trusted, else computed."""
        priority, version, game = attempt.task.priority, case.version.name, Game(case)
        hit = None
        if self._near.used:
            digest = await self._bench.run(priority, lambda: near_digest(game))
            hit = await self._near.look(version, digest, case.recomputed)
            if hit.tell and hit.stage is not None:
                attempt.near = True
                return hit.stage
        rounds, last = shapley(game), None
        while (estimate := await self._bench.run(priority, lambda: next(rounds, None))) is not None:
            attempt.check()
            last = estimate
            attempt.progress = f"{Stage.SHAPLEY} {estimate.done:.2f}"
        assert last is not None  # noqa: S101  # there is a first round
        found = shapley_stage(last)
        if hit is not None:
            await self._near.computed(version, hit, found)
        return found

    async def _counterfactual(self, attempt: Attempt, case: Case, names: Names) -> dict[str, Any]:
        """Step by step: what is urgent waits for one of them."""
        steps = counterfactual_steps(case, names)
        while (found := await self._bench.run(attempt.task.priority, lambda: next(steps))) is None:
            attempt.check()
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
