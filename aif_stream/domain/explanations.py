"""Explanations: what is asked, in which state it is, and the one machine by which states change.

    pending ─claim→ calculating ─stage→ partial ─finish→ complete | failed
       │                │  ↖──── hand back, retaken ────┘
       └────────────────┴─ cancel → cancelled · past its deadline → expired

``step`` is that machine as a pure function; ``index/explanation_step.lua`` does the same inside Redis, and a property
test holds them together. A final state never changes but by being asked for anew, which begins another *run*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from aif_stream.domain.decoding import MAX_EXACT, MAX_TIME_MS, decode_json
from aif_stream.domain.events import Id, Name, TimeMs
from aif_stream.domain.ids import canonical_id

EXPLANATION_TASK_EVENT: Final = "aif.explanation.requested"
EXPLANATION_RESULT_EVENT: Final = "aif.explanation.ended"


class State(StrEnum):
    PENDING = "pending"
    CALCULATING = "calculating"
    PARTIAL = "partial"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL: Final = frozenset({State.COMPLETE, State.FAILED, State.CANCELLED, State.EXPIRED})


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Stage(StrEnum):
    """The parts of a result, in the order in which they come."""

    NATIVE = "native"
    SHAPLEY = "shapley"
    COUNTERFACTUAL = "counterfactual"


class Method(StrEnum):
    """What may be asked for: all stages, or the coarse one and one more."""

    FULL = "full"
    NATIVE = "native"
    SHAPLEY = "shapley"
    COUNTERFACTUAL = "counterfactual"

    @property
    def stages(self) -> tuple[Stage, ...]:
        if self is Method.FULL:
            return tuple(Stage)
        more = Stage(self.value)
        return (Stage.NATIVE,) if more is Stage.NATIVE else (Stage.NATIVE, more)


class ExplanationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/explanations``."""

    request_id: Annotated[str, Meta(min_length=1, max_length=64)]
    item_id: Id
    method: Method = Method.FULL
    priority: Priority = Priority.NORMAL
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None

    @property
    def item(self) -> str:
        return canonical_id(self.item_id, "item_id")


class StartedExplanation(msgspec.Struct, frozen=True):
    """One that a rank request started."""

    item_id: str
    explanation_id: str


class ExplanationTask(msgspec.Struct, frozen=True, kw_only=True):
    """A record of ``aif.explanation-requests.*``: all that a worker needs to begin, even if Redis forgot the request.

    ``deadline_ms``: wall time (ms) after which nobody wants it any more. ``answered_ms``: when the rank request came.
    """

    explanation_id: Name
    run: Annotated[int, Meta(ge=0, le=MAX_EXACT)]
    request_id: Name
    item_id: Name
    method: Method
    priority: Priority
    asked_ms: TimeMs
    answered_ms: TimeMs
    deadline_ms: TimeMs


class ExplanationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A record of ``aif.explanations``: how one run ended."""

    explanation_id: str
    run: int
    attempt: int
    request_id: str
    item_id: str
    method: Method
    state: State
    reason: str = ""
    stages: dict[str, Any] = {}


_TASK: Final = msgspec.json.Decoder(ExplanationTask)


def decode_task(value: bytes | None) -> ExplanationTask:
    """Raises ``BadEvent``."""
    return decode_json(_TASK, value, "an explanation task")


def deadline_after(now_ms: int, wait_ms: float) -> int:
    """The deadline of a task that is asked for now: no later than a record can say."""
    return min(MAX_TIME_MS, now_ms + int(min(wait_ms, MAX_TIME_MS)))


_ID: Final = re.compile(r"x([0-9a-f]{12}[0-9a-f]{24})([0-9a-f]{16})")
_TIME_DIGITS: Final = 12


def explanation_id(request_id: str, item_id: str, method: Method, issued_ms: int, key: bytes) -> str:
    """``x``, time (6 bytes), question (12), seal (8): the same for the same question about the same answer, so that
    asking twice joins the running work.

    ``issued_ms``: when the answer was given. ``key``: who has it can tell that somebody with the key issued the id.
    """
    digest = blake2b(msgspec.json.encode([request_id, item_id, method.value]), digest_size=12)
    sealed = f"{max(0, issued_ms):0{_TIME_DIGITS}x}{digest.hexdigest()}"
    return f"x{sealed}{_seal(sealed, key)}"


def issued_ms(name: str, key: bytes) -> int | None:
    """When an id was issued; None when nobody with this key did."""
    parts = _ID.fullmatch(name)
    if parts is None or not compare_digest(parts[2], _seal(parts[1], key)):
        return None
    return int(parts[1][:_TIME_DIGITS], 16)


def _seal(sealed: str, key: bytes) -> str:
    return blake2b(sealed.encode(), digest_size=8, key=key).hexdigest()


class Reply(StrEnum):
    """What the machine answers. Only with ``ok`` has anything changed, but for one case: a claim past the deadline
    makes the state expired and answers ``final``."""

    OK = "ok"
    JOINED = "joined"  # asked: there already, running or complete
    BUSY = "busy"  # claimed: another worker's lease is alive
    STALE = "stale"  # of an attempt or a run that is over: whoever says so must stop
    FINAL = "final"  # it has ended
    ABSENT = "absent"  # nothing is known
    EARLY = "early"  # expire: its deadline has not passed, or somebody works on it


class Action(StrEnum):
    ASK = "ask"
    CLAIM = "claim"
    KEEP = "keep"
    STAGE = "stage"
    FINISH = "finish"
    HAND_BACK = "hand_back"
    CANCEL = "cancel"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True)
class Work:
    """What the machine knows of one explanation. Times in ms; ``attempt`` never falls, also from run to run."""

    state: State
    run: int
    attempt: int
    lease_ms: int
    deadline_ms: int


class Told(NamedTuple):
    """One action with its arguments; those that an action does not read are left alone."""

    action: Action
    run: int = 0
    attempt: int = 0
    lease_ms: int = 0  # how long a claim or a sign of life holds
    deadline_ms: int = 0
    to: State = State.COMPLETE


def step(work: Work | None, told: Told, now_ms: int) -> tuple[Work | None, Reply]:
    """The machine. Repeating any action, in any order, from any number of senders, is allowed."""
    if told.action is Action.ASK:
        return _ask(work, told)
    if work is None:
        return None, Reply.ABSENT
    if work.state in FINAL:
        return work, Reply.FINAL
    if told.action is Action.CANCEL:
        return replace(work, state=State.CANCELLED, lease_ms=0), Reply.OK
    if told.action is Action.EXPIRE:
        early = now_ms <= work.deadline_ms or _held(work, now_ms)
        return (work, Reply.EARLY) if early else (replace(work, state=State.EXPIRED, lease_ms=0), Reply.OK)
    return _claim(work, told, now_ms) if told.action is Action.CLAIM else _worked(work, told, now_ms)


def _worked(work: Work, told: Told, now_ms: int) -> tuple[Work, Reply]:
    """What only the attempt that holds the work may say."""
    if work.state is State.PENDING or told.attempt != work.attempt:
        return work, Reply.STALE
    if told.action is Action.HAND_BACK:
        return replace(work, state=State.PENDING, lease_ms=0), Reply.OK
    if told.action is Action.FINISH:
        return replace(work, state=told.to, lease_ms=0), Reply.OK
    state = State.PARTIAL if told.action is Action.STAGE else work.state
    return replace(work, state=state, lease_ms=now_ms + told.lease_ms), Reply.OK


def _held(work: Work, now_ms: int) -> bool:
    return work.state in {State.CALCULATING, State.PARTIAL} and work.lease_ms > now_ms


def _ask(work: Work | None, told: Told) -> tuple[Work, Reply]:
    if work is None:
        return Work(State.PENDING, max(1, told.run), 0, 0, told.deadline_ms), Reply.OK
    if work.state in FINAL and work.state is not State.COMPLETE and told.run in (0, work.run + 1):
        return replace(work, state=State.PENDING, run=work.run + 1, deadline_ms=told.deadline_ms), Reply.OK
    return work, Reply.JOINED


def _claim(work: Work, told: Told, now_ms: int) -> tuple[Work, Reply]:
    if told.run != work.run:
        return work, Reply.STALE
    if _held(work, now_ms):
        return work, Reply.BUSY
    if now_ms > work.deadline_ms:
        return replace(work, state=State.EXPIRED, lease_ms=0), Reply.FINAL
    lease_ms = now_ms + told.lease_ms
    return replace(work, state=State.CALCULATING, attempt=work.attempt + 1, lease_ms=lease_ms), Reply.OK
