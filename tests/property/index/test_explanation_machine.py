"""The states of explanations: the script in Redis is the pure machine, and no order of actions breaks its promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.explanations import (
    FINAL,
    Action,
    ExplanationTask,
    Method,
    Priority,
    Reply,
    State,
    Told,
    Work,
    explanation_id,
    issued_ms,
    step,
)
from aif_stream.index.connection import Redis
from aif_stream.index.explanations import START, ExplanationStore

T0_MS = 1_700_000_000_000
KEY = b"k" * 32
NAME = explanation_id("r", "7", Method.FULL, 1_700_000_000_000, KEY)

# Few runs, attempts and moments, so that old and new ones of workers that crashed, came back or were doubled meet.
told = st.builds(
    Told,
    action=st.sampled_from(Action),
    run=st.integers(0, 3),
    attempt=st.integers(0, 4),
    lease_ms=st.integers(1, 30),
    deadline_ms=st.integers(T0_MS, T0_MS + 80),
    to=st.sampled_from([State.COMPLETE, State.FAILED]),
)
histories = st.lists(st.tuples(told, st.integers(0, 15)), min_size=1, max_size=40)


def task(one: Told) -> ExplanationTask:
    return ExplanationTask(
        explanation_id=NAME,
        run=one.run,
        request_id="r",
        item_id="7",
        method=Method.FULL,
        priority=Priority.LOW,
        asked_ms=T0_MS,
        answered_ms=T0_MS,
        deadline_ms=one.deadline_ms,
    )


@given(histories)
@settings(max_examples=150, deadline=None)
async def test_the_script_is_the_machine_whatever_comes_in_whatever_order(
    redis: Redis, history: list[tuple[Told, int]]
) -> None:
    await redis.call("FLUSHDB")
    store = ExplanationStore(redis, keep_s=60, facts_s=60)
    work: Work | None = None
    now_ms, changes = T0_MS, 0
    for one, later_ms in history:
        now_ms += later_ms
        before, (work, reply) = work, step(work, one, now_ms)
        said = await (store.ask(task(one), now_ms) if one.action is Action.ASK else store.tell(NAME, one, {}, now_ms))
        assert said.reply is reply
        if work is None:
            assert said.state is None
            continue
        assert (said.state, said.run, said.attempt) == (work.state, work.run, work.attempt)
        if before is not None and work.run > before.run:
            changes = 0  # the events of the run before are gone
        stored = await store.read(NAME)
        assert stored is not None
        assert (stored.lease_ms, stored.task.deadline_ms) == (work.lease_ms, work.deadline_ms)
        changes += work != before and one.action is not Action.KEEP
        changes += work == before and reply is Reply.OK and one.action is Action.STAGE
    events = await store.events(NAME, START)
    assert len(events) == changes, "each change of this run is told once, and nothing else is"
    if work is not None:
        assert events[-1].state is work.state


@given(histories)
@settings(max_examples=300, deadline=None)
def test_a_run_ends_once_and_attempts_never_fall(history: list[tuple[Told, int]]) -> None:
    work: Work | None = None
    now_ms = T0_MS
    ends: dict[int, State] = {}
    for one, later_ms in history:
        now_ms += later_ms
        before, (work, reply) = work, step(work, one, now_ms)
        if work is None:
            continue
        if before is not None:
            assert work.attempt >= before.attempt
            assert work.run >= before.run
            if before.state in FINAL and work.run == before.run:
                assert work == before, "what has ended stays as it is"
            writes = one.action in {Action.KEEP, Action.STAGE, Action.FINISH, Action.HAND_BACK}
            if writes and one.attempt < before.attempt:
                assert reply in {Reply.STALE, Reply.FINAL}, "a lower attempt is refused"
                assert work == before
            if one.action is Action.CLAIM and reply is Reply.OK:
                alone = before.state is State.PENDING or before.lease_ms <= now_ms
                assert alone, "nobody is claimed from under a worker that is alive"
        if work.state in FINAL:
            assert ends.setdefault(work.run, work.state) is work.state


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(Method), st.integers(0, 2**47))
def test_same_question_has_one_id_and_another_one_another(request: str, item: str, method: Method, ms: int) -> None:
    name = explanation_id(request, item, method, ms, KEY)
    assert name == explanation_id(request, item, method, ms, KEY)
    assert name != explanation_id(request + "x", item, method, ms, KEY)
    assert name != explanation_id(item, request + "y", method, ms, KEY)
    assert name != explanation_id(request, item, method, ms + 1, KEY)


@given(st.integers(0, 2**47), st.integers(1, 52), st.sampled_from("0123456789abcdefgX-"))
def test_id_says_when_it_was_issued_to_who_has_the_key(ms: int, at: int, digit: str) -> None:
    name = explanation_id("r", "7", Method.FULL, ms, KEY)
    assert issued_ms(name, KEY) == ms
    assert issued_ms(name, b"another") is None
    changed = name[:at] + digit + name[at + 1 :]
    assert changed == name or issued_ms(changed, KEY) is None
