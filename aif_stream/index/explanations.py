"""Explanations in Redis: states by one script, events in a stream per explanation, facts of answers, the exact cache.

A subscriber reads an explanation's stream from the last id that it has: nothing is missing and nothing comes twice,
whatever happens to the connection. Who changes something says so in one small stream more, the wake stream; a server
reads that one stream for all its subscribers. It is a hint: who misses it looks again by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aif_stream.domain.explanations import Action, ExplanationTask, Method, Priority, Reply, State, Told
from aif_stream.index.connection import Redis
from aif_stream.index.keys import (
    EXPLANATION_ID_KEY,
    EXPLANATION_WAKE_KEY,
    explanation_cache_key,
    explanation_events_key,
    explanation_key,
    facts_key,
    facts_known_key,
    facts_user_key,
)
from aif_stream.index.refusals import checked
from aif_stream.index.scripts import script
from aif_stream.index.wire import pack

START: Final = "0"
# A server that lags behind by more looks at every explanation that it has subscribers of.
_WAKES: Final = 4_096
# How much longer than facts themselves it is known that there were some.
_KNOWN_TIMES: Final = 6
# How much longer a user's part than the newest answer that needs it: it may live on another node, by another clock.
_LONGER_MS: Final = 1_000


class Answer(NamedTuple):
    """What the machine said, and the state after it."""

    reply: Reply
    state: State | None
    run: int
    attempt: int
    deadline_ms: int


class StoredEvent(NamedTuple):
    """One entry of the stream. ``fields``: kind (state, stage, progress), state, run, attempt, at_ms, what was told."""

    id: str
    fields: dict[str, bytes]

    @property
    def kind(self) -> str:
        return self.fields["kind"].decode()

    @property
    def state(self) -> State:
        return State(self.fields["state"].decode())


@dataclass(frozen=True, slots=True)
class StoredExplanation:
    """One record. ``stages``: name → JSON; ``times_ms``: state → when it was first reached in this run.

    ``is_recorded`` False: there is no record; this is what its id says (``online.issued_ids``)."""

    id: str
    task: ExplanationTask
    state: State
    attempt: int
    lease_ms: int
    reason: str
    cache: str
    score: float | None
    stages: Mapping[str, bytes]
    times_ms: Mapping[str, int]
    is_recorded: bool = True


class ExplanationStore:
    """Every method raises ``IndexUnavailable`` or ``IndexRefused`` and may be repeated. Times are Redis' own, unless a
    test gives them."""

    def __init__(self, redis: Redis, *, keep_s: float, facts_s: float) -> None:
        self._redis = redis
        self._keep_ms = int(keep_s * 1000)
        self._facts_ms = int(facts_s * 1000)

    async def ask(self, task: ExplanationTask, now_ms: int | None = None, *, score: float | None = None) -> Answer:
        """Make it pending (``ok``), or join what is there. ``task.run`` 0: the next run, if the last one came to
        nothing. ``score``: the one that was given, for who asks meanwhile."""
        told = Told(Action.ASK, run=task.run, deadline_ms=task.deadline_ms)
        fields = {
            "request_id": task.request_id,
            "item_id": task.item_id,
            "method": task.method,
            "priority": task.priority,
            "asked_ms": task.asked_ms,
            "answered_ms": task.answered_ms,
            **({} if score is None else {"score": score}),
        }
        return await self.tell(task.explanation_id, told, {k: str(v).encode() for k, v in fields.items()}, now_ms)

    async def tell(
        self, name: str, told: Told, fields: Mapping[str, bytes] | None = None, now_ms: int | None = None
    ) -> Answer:
        """One step of the machine; ``fields`` are kept in the record and told to subscribers when it is taken."""
        keys = [explanation_key(name), explanation_events_key(name)]
        numbers = (self._keep_ms, told.run, told.attempt, told.lease_ms, told.deadline_ms)
        now = b"" if now_ms is None else b"%d" % now_ms
        pairs = [part for field, value in (fields or {}).items() for part in (field.encode(), value)]
        command = script("explanation_step").call(
            keys, told.action.encode(), now, *(b"%d" % number for number in numbers), told.to.encode(), *pairs
        )
        reply = checked(await self._redis.execute([command], [keys[0]]))[0]
        word, state, run, attempt, deadline = (bytes(part).decode() for part in reply)
        answer = Answer(Reply(word), State(state) if state else None, int(run), int(attempt), int(deadline))
        if answer.reply is Reply.OK:
            await self._wake(name)
        return answer

    async def read(self, name: str) -> StoredExplanation | None:
        """The record, or None."""
        flat = await self._redis.call("HGETALL", explanation_key(name))
        found = {bytes(field).decode(): bytes(value) for field, value in zip(flat[0::2], flat[1::2], strict=True)}
        return _record(name, found) if "request_id" in found else None

    async def events(self, name: str, after: str) -> list[StoredEvent]:
        """What happened after the event ``after`` (``START``: from the beginning), in order."""
        found = await self._redis.call("XRANGE", explanation_events_key(name), f"({after}", "+")
        return [
            StoredEvent(
                bytes(entry).decode(),
                {bytes(k).decode(): bytes(v) for k, v in zip(flat[0::2], flat[1::2], strict=True)},
            )
            for entry, flat in found
        ]

    async def wakes(self, after: str, wait_ms: int) -> tuple[str, set[str]]:
        """Ids of explanations that changed since ``after`` ("$": from now on), and the next ``after``. Waits; so it
        needs a connection of its own."""
        found = await self._redis.execute(
            [pack("XREAD", "COUNT", _WAKES, "BLOCK", wait_ms, "STREAMS", EXPLANATION_WAKE_KEY, after)],
            [EXPLANATION_WAKE_KEY],
        )
        (reply,) = checked(found)
        if not reply:
            return after, set()
        entries = reply[0][1]
        return bytes(entries[-1][0]).decode(), {bytes(fields[1]).decode() for _, fields in entries}

    async def last_wake(self) -> str:
        """Where ``wakes`` begins for one who wants what comes from now on."""
        found = await self._redis.call("XREVRANGE", EXPLANATION_WAKE_KEY, "+", "-", "COUNT", "1")
        return bytes(found[0][0]).decode() if found else START

    async def _wake(self, name: str) -> None:
        await self._redis.call("XADD", EXPLANATION_WAKE_KEY, "MAXLEN", "~", _WAKES, "*", "id", name)

    async def id_key(self, own: bytes) -> tuple[bytes, int]:
        """The key that seals the ids of all servers, which is ``own`` where there was none, and Redis' time in ms."""
        commands = [pack("SET", EXPLANATION_ID_KEY, own, "NX"), pack("GET", EXPLANATION_ID_KEY), pack("TIME")]
        found = await self._redis.execute(commands, [EXPLANATION_ID_KEY] * len(commands))
        _, key, (seconds, micros) = checked(found)
        return bytes(key), int(seconds) * 1000 + int(micros) // 1000

    async def put_facts(self, request_id: str, value: bytes, user: str = "", user_value: bytes = b"") -> bool:
        """Keep the facts of an answer, and the user's part ``user`` at least as long: with ``user_value`` it is
        written, without it must be there already. False when it is not (write it, then)."""
        facts, known = facts_key(request_id), facts_known_key(request_id)
        commands = [
            pack("SET", facts, value, "PX", self._facts_ms),
            pack("SET", known, b"1", "PX", self._facts_ms * _KNOWN_TIMES),
        ]
        keys = [facts, known]
        if user:
            key, keep_ms = facts_user_key(user), self._facts_ms + _LONGER_MS
            commands.append(
                pack("SET", key, user_value, "PX", keep_ms) if user_value else pack("PEXPIRE", key, keep_ms)
            )
            keys.append(key)
        *_, last = checked(await self._redis.execute(commands, keys))
        return bool(last != 0)

    async def drop_facts(self, request_ids: Sequence[str], users: Sequence[str] = ()) -> None:
        """Forget facts before their time (that there were some stays known), and users' parts that nothing needs."""
        keys = [*map(facts_key, request_ids), *map(facts_user_key, users)]
        checked(await self._redis.execute([pack("UNLINK", key) for key in keys], keys))

    async def facts(self, request_id: str) -> tuple[bytes | None, bool]:
        """(the answer's own part or None, whether there ever were any)."""
        facts, known = facts_key(request_id), facts_known_key(request_id)
        value, there = checked(await self._redis.execute([pack("GET", facts), pack("EXISTS", known)], [facts, known]))
        return (None if value is None else bytes(value)), bool(there)

    async def facts_user(self, name: str) -> bytes | None:
        """The user's part."""
        found = await self._redis.call("GET", facts_user_key(name))
        return None if found is None else bytes(found)

    async def cached(self, digest: str) -> bytes | None:
        """Stages of an explanation that followed from exactly this."""
        found = await self._redis.call("GET", explanation_cache_key(digest))
        return None if found is None else bytes(found)

    async def cache(self, digest: str, stages: bytes) -> None:
        """Remember them as long as facts are kept."""
        await self._redis.call("SET", explanation_cache_key(digest), stages, "PX", self._facts_ms)


def _record(name: str, found: Mapping[str, bytes]) -> StoredExplanation:
    def text(field: str) -> str:
        return found.get(field, b"").decode()

    def number(field: str) -> int:
        return int(found.get(field, b"0"))

    task = ExplanationTask(
        explanation_id=name,
        run=number("run"),
        request_id=text("request_id"),
        item_id=text("item_id"),
        method=Method(text("method")),
        priority=Priority(text("priority")),
        asked_ms=number("asked_ms"),
        answered_ms=number("answered_ms"),
        deadline_ms=number("deadline_ms"),
    )
    return StoredExplanation(
        id=name,
        task=task,
        state=State(text("state")),
        attempt=number("attempt"),
        lease_ms=number("lease_ms"),
        reason=text("reason"),
        cache=text("cache"),
        score=float(text("score")) if "score" in found else None,
        stages={field.removeprefix("stage:"): value for field, value in found.items() if field.startswith("stage:")},
        times_ms={field.removeprefix("at:"): int(value) for field, value in found.items() if field.startswith("at:")},
    )
