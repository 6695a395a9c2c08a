"""Under more load than there is capacity: what is accepted is answered in time, the rest is refused at once."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import entry_bytes
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.online import admission
from aif_stream.online.breaker import Breaker
from aif_stream.online.deadline import Deadline
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.join import RedisJoin
from aif_stream.online.role import serve_role
from aif_stream.online.serving import Serving, unknown_user
from aif_stream.online.user_side import UserSides
from aif_stream.retrieval.server import retrieval_role
from aif_stream.settings import Settings
from aif_stream.telemetry import USER_SIDES
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import Index, activate, online_settings, open_index, publish, running
from tests.stack import topics

IDS = [str(i) for i in range(200)]


@pytest_asyncio.fixture(loop_scope="session")
async def settings(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[Settings]:
    """200 items, 50 users with histories, retrieval running."""
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model, items = small_version(), make_items(200)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        for user in range(50):
            await index.click(f"user {user}", IDS[user : user + 40])
        await publish(settings, items)
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            yield dataclasses.replace(settings, retrieval_urls=retrieval.url)


async def test_open_load_beyond_capacity_is_shed_with_a_time_to_come_back_and_the_accepted_get_whole_answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A request believed to cost 360 ms of the one thread, a deadline of 10 s, an upstream that may take 5 s: room for
    # (10 / 4 + 5) / 0.36 = 20. The upstream holds each for a second, in which a hundred more ask.
    monkeypatch.setattr(admission, "_FIRST_BUSY_S", 0.36)
    slow = dataclasses.replace(
        settings, retrieval_latency_ms=1000.0, retrieval_budget_ms=5000.0, deadline_ms=10_000.0, executor_threads=1
    )
    async with (
        running(retrieval_role, slow) as retrieval,
        running(serve_role, dataclasses.replace(slow, retrieval_urls=retrieval.url)) as client,
    ):

        async def ask(user: int) -> tuple[int, Any]:
            async with client.session.post(client.url + "/v1/rank", json={"user_id": f"user {user % 50}"}) as reply:
                answer: Any = await reply.json(content_type=None)
                if reply.status == 503:
                    assert reply.headers["retry-after"].isdigit()
                    assert reply.content_type == "application/problem+json"
                    assert "in service" in answer["detail"]
                return reply.status, answer

        first = await asyncio.gather(*(ask(user) for user in range(100)))
        _, between = await client.get("/v1/status")
        second = await asyncio.gather(*(ask(user) for user in range(10)))
        _, status = await client.get("/v1/status")
        async with client.session.get(client.url + "/metrics") as reply:
            metrics = await reply.text()
    accepted = [answer for code, answer in first if code == 200]
    assert len(accepted) == 20
    assert between["shed"] == 80
    assert {tuple(answer["degraded"]) for answer in accepted} == {()}
    assert max(answer["timings_ms"]["total"] for answer in accepted) < 10_000
    assert {code for code, _ in second} == {200}
    assert status["requests"]["by_status"] == {"200": 30, "503": 80}
    assert status["in_service"] == 0
    assert "aif_rank_shed_total" in metrics
    assert "aif_loop_lag_seconds_count" in metrics


async def test_our_own_code_never_holds_the_event_loop_for_long_under_load(settings: Settings) -> None:
    async with running(serve_role, settings) as client:
        await asyncio.gather(*(client.rank(f"user {i}", k=200) for i in range(10)))
        with longest_turns() as turns:
            for _ in range(5):
                await asyncio.gather(*(client.rank(f"user {i}", k=200) for i in range(10)))
                await asyncio.gather(*(client.rank(f"user {i}", k=200, candidates=IDS) for i in range(10)))
    cpu_ms, what = max(turns)
    # 2 ms is the rule; here the client and the upstream share the loop, under a test runner on a shared machine.
    assert cpu_ms < 20, f"{what} held the loop for {cpu_ms:.1f} ms of CPU"
    # And nearly always it is kept: 2 of 5,576 turns were longer when this was written.
    longer = [turn for turn in turns if turn[0] > 2]
    assert len(longer) <= 0.01 * len(turns), longer


@contextmanager
def longest_turns() -> Iterator[list[tuple[float, str]]]:
    """CPU ms of each turn of the running loop, and what ran; CPU time, so that a busy machine does not count."""
    run, found, loop_thread = asyncio.Handle._run, [(0.0, "")], threading.get_ident()

    def timed(self: asyncio.Handle) -> None:
        begin = time.thread_time()
        run(self)
        if threading.get_ident() == loop_thread:
            ran = getattr(self._callback, "__self__", self._callback)
            name = ran.get_coro().__qualname__ if isinstance(ran, asyncio.Task) else type(ran).__name__
            found.append(((time.thread_time() - begin) * 1000, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield found


async def test_a_thousand_cold_users_at_once_are_each_computed_once_and_memory_stays_bounded(tmp_path: Path) -> None:
    model, users = small_version(), 1000
    async with EmbeddedRedis() as redis:
        settings = online_settings("127.0.0.1:9", redis.url, tmp_path, user_cache_s=60.0)
        async with open_index(settings, [model.name]) as index:
            await index.put(model, make_items(50))
            await clicks(index, users)
            serving = Serving(model, RedisJoin(index.store, model), None, unknown_user(model))
            before = counts()
            with ComputeThreads(2) as threads:
                async with (
                    open_redis(settings) as connection,
                    UserSides(settings, HistoryStore(connection, 100), threads, Breaker()) as sides,
                ):
                    far = Deadline.after(60_000)
                    # A cold cache and everybody twice, all before the first is done.
                    asked = [sides.of(serving, 2**63 + user, far, 0.0) for _ in range(2) for user in range(users)]
                    parts = await asyncio.gather(*asked)
                    again = await sides.of(serving, 2**63 + 7, far, 0.0)
                    assert sides.pending == 0
                    assert sides.memory_bytes <= 256 * 2**20
    assert {part.short_of for part in parts} == {""}
    assert all(parts[user].side is parts[users + user].side for user in range(users))
    assert again.side is parts[7].side
    found = {source: after - before[source] for source, after in counts().items()}
    assert found["computed"] == users
    assert found["shared"] + found["hit"] == users + 1


def counts() -> dict[str, int]:
    return {source: int(USER_SIDES.labels(source)._value.get()) for source in ("hit", "shared", "computed")}


async def clicks(index: Index, users: int) -> None:
    """User n, key 2**63 + n, has clicked five items."""
    for first in range(0, users, 200):
        await index.histories.append(
            {
                2**63 + user: b"".join(
                    entry_bytes((user + i) % 50, BehaviorKind.CLICK, 1_700_000_000_000 + i) for i in range(5)
                )
                for user in range(first, min(first + 200, users))
            }
        )
