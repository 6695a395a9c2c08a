"""What an id without a record is, judged by servers that share nothing but Redis."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aif_stream.domain.explanations import Method, State
from aif_stream.index.connection import open_redis
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.keys import EXPLANATION_ID_KEY
from aif_stream.online import issued_ids
from aif_stream.online.issued_ids import IssuedIds
from aif_stream.settings import Settings


@asynccontextmanager
async def opened(redis_url: str) -> AsyncIterator[IssuedIds]:
    """The ids of one server that keeps explanations for ten minutes."""
    settings = dataclasses.replace(Settings(), redis_url=redis_url, explain_keep_s=600.0)
    async with (
        open_redis(settings) as redis,
        IssuedIds(settings, ExplanationStore(redis, keep_s=600, facts_s=600)) as ids,
    ):
        yield ids


def issued(ids: IssuedIds, ago_s: float) -> str:
    return ids.of("r", "7", Method.FULL, ids.now_ms() - int(ago_s * 1000))


async def test_id_without_record_is_pending_then_failed_then_unknown(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as other:
        assert (one.window_s, one.window_s) == (60.0, other.window_s)
        for ago_s, state in ((-5, State.PENDING), (0, State.PENDING), (59, State.PENDING), (61, State.FAILED)):
            for ids in (one, other):
                found = ids.without_record(issued(one, ago_s))
                assert found is not None
                assert (found.state, found.is_recorded) == (state, False)
        assert other.without_record(issued(one, 601)) is None
        assert other.without_record("x" + "0" * 52) is None


async def test_age_of_an_id_is_by_the_clock_of_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour behind gives ids that are pending at every other one."""
    async with opened(redis_url) as right:
        now_ms, own = right.now_ms(), issued(right, 0)
        with monkeypatch.context() as wrong:
            wrong.setattr(issued_ids, "now_ms", lambda: now_ms - 3_600_000)
            async with opened(redis_url) as behind:
                name = issued(behind, 0)
                found = behind.without_record(own)
                assert found is not None
                assert found.state is State.PENDING
        found = right.without_record(name)
        assert found is not None
        assert found.state is State.PENDING


async def test_servers_agree_on_a_key_again_when_redis_is_emptied(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issued_ids, "_REFRESH_S", 3600.0)
    async with opened(redis_url) as one, opened(redis_url) as other, open_redis(Settings(redis_url=redis_url)) as redis:
        name = issued(one, 0)
        await redis.call("DEL", EXPLANATION_ID_KEY)
        async with opened(redis_url) as fresh:  # started before any of the others looked again
            for ids in (one, other):
                await ids.refresh()
            for ids in (one, other, fresh):
                assert ids.without_record(issued(other, 0)) is not None
        assert len(name) == len(issued(one, 0))


async def test_key_that_is_none_changes_nothing(redis_url: str) -> None:
    async with opened(redis_url) as ids, open_redis(Settings(redis_url=redis_url)) as redis:
        name = issued(ids, 0)
        await redis.call("SET", EXPLANATION_ID_KEY, b"short")
        await ids.refresh()
        assert ids.without_record(name) is not None
        await redis.call("DEL", EXPLANATION_ID_KEY)
        await redis.call("HSET", EXPLANATION_ID_KEY, "a", "b")
        await ids.refresh()
        assert ids.without_record(name) is not None


async def test_given_ids_are_known_until_they_are_settled_or_lost(redis_url: str) -> None:
    async with opened(redis_url) as ids:
        for number in range(1_100):
            ids.give(f"x{number}", "r", "7", 0.5, 1)
        found = ids.on_its_way("x0")
        assert found is not None
        assert (found.task.request_id, found.task.item_id, found.score) == ("r", "7", 0.5)
        ids.settle(["x0", "never given"])
        assert (ids.on_its_way("x0"), ids.without_record("x0")) == (None, None)
        ids.lose([f"x{number}" for number in range(1_100)])
        lost = [name for number in range(1_100) if ids.without_record(name := f"x{number}")]
        assert lost == [f"x{number}" for number in range(100, 1_100)]  # bounded: the oldest are forgotten
