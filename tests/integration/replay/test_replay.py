"""``aif replay`` against real servers: no drift without a cause, the cause by its name, waits that nobody can hide."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from aif_stream.clock import now_ms
from aif_stream.domain.versions import VersionState
from aif_stream.errors import UpstreamError, VersionError
from aif_stream.model.version import ModelVersion
from aif_stream.online.role import serve_role
from aif_stream.replay.export import logged_lines
from aif_stream.replay.report import page
from aif_stream.replay.run import Outcome, Plan, replaying
from aif_stream.replay.tape import Tape
from aif_stream.retrieval.server import retrieval_role
from aif_stream.settings import Settings
from tests.conftest import BrokerFactory
from tests.integration.replay.servers import small_server
from tests.model_builders import make_items, small_version
from tests.online_builders import (
    T0_MS,
    Client,
    Index,
    activate,
    announce,
    online_settings,
    open_index,
    publish,
    running,
    tell_mirrors,
)
from tests.stack import eventually, topics

ITEMS = 300
USERS = [f"u{i}" for i in range(6)]


@dataclasses.dataclass(frozen=True)
class Stack:
    settings: Settings
    model: ModelVersion
    index: Index
    client: Client
    since_ms: int


@asynccontextmanager
async def stack(broker_of: BrokerFactory, redis_url: str, home: Path) -> AsyncIterator[Stack]:
    """A server with users and items, retrieval beside it, and the request log on the embedded broker."""
    broker = await broker_of(topics())
    settings = online_settings(broker.bootstrap, redis_url, home)
    model, items = small_version(), make_items(ITEMS)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        for i, user in enumerate(USERS):
            await index.click(user, [str(n) for n in range(10 * i, 10 * i + 9)])
        await publish(settings, items)
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            serving = dataclasses.replace(settings, retrieval_urls=retrieval.url)
            since_ms = now_ms()
            async with running(serve_role, serving) as client:
                yield Stack(serving, model, index, client, since_ms)


async def tape_of(stack: Stack, count: int) -> Tape:
    """What the log says, once it says everything."""

    async def load() -> Tape | None:
        async with logged_lines(stack.settings, stack.since_ms, now_ms() + 1) as lines:
            found = list(lines)
        return Tape(found) if len(found) == count else None

    return await eventually(load, what=f"{count} requests are in the log")


async def played(plan: Plan, tape: Tape) -> tuple[Outcome, dict[str, Any], str]:
    with replaying(plan, tape) as run:
        outcome = await run.run()
        return outcome, outcome.shape(), page(outcome, "the log")


async def test_without_updates_the_drift_is_exactly_zero_whoever_named_the_candidates(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    async with stack(embedded_broker, redis_url, tmp_path) as run:
        for i in range(30):
            mine = None if i % 2 else [str(n) for n in np.random.default_rng(i).permutation(ITEMS)[: 50 + i]]
            await run.client.rank(USERS[i % len(USERS)], k=20 + i, **({} if mine is None else {"candidates": mine}))
        with await tape_of(run, 30) as tape:
            asked = (await run.client.get("/v1/status"))[1]["requests"]["total"]
            _, shape, html = await played(Plan(run.client.url, rate_per_s=100), tape)
            _, twice, _ = await played(Plan(run.client.url, against=run.client.url, rate_per_s=50), tape)
        # What is asked again is not traffic: no live figure has it, and the log is not fed with itself.
        assert (await run.client.get("/v1/status"))[1]["requests"]["total"] == asked == 30
        await run.client.rank(USERS[0], k=1)
        (await tape_of(run, 31)).__exit__(None, None, None)
    assert (shape["sent"], shape["errors"]) == (30, 0)
    for drift in (shape["drift"], twice["drift"]):
        assert drift["compared"] == 30
        assert (drift["overlap_at_k"], drift["rank_correlation"], drift["score_max_abs"]) == (1.0, 1.0, 0.0)
        assert drift["changed_items"] == []
        assert drift["value"] == 0.0
    assert twice["against"]["errors"] == 0
    low, high = (twice["against"]["difference_ms"]["p50"][name] for name in ("low", "high"))
    assert low <= high
    assert "No score changed" in html


async def test_the_item_whose_features_changed_is_named_and_only_it(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    changed = "200"  # in nobody's history: else its users change as a whole
    async with stack(embedded_broker, redis_url, tmp_path) as run:
        for user in USERS:
            await run.client.rank(user, k=ITEMS, candidates=[str(n) for n in range(ITEMS)])
        with await tape_of(run, len(USERS)) as tape:
            item = msgspec.structs.replace(
                make_items(ITEMS)[int(changed)],
                category="books",
                attributes={"brand": "bob", "price": 49.0},
                content_vector=[1.0, -2.0] * 6,
            )
            before = await run.client.rank(USERS[0], k=ITEMS, candidates=[changed])
            await tell_mirrors(run.settings, await run.index.put(run.model, [item], time_ms=T0_MS + 1_000))

            async def moved() -> bool:
                found = await run.client.rank(USERS[0], k=ITEMS, candidates=[changed])
                return bool(found["items"] != before["items"])

            await eventually(moved, what="the change is served")
            outcome, shape, html = await played(Plan(run.client.url, rate_per_s=100), tape)
    drift = shape["drift"]
    assert drift["changed_items"] == [changed]
    assert drift["changes"][0]["requests"] == len(USERS)
    assert drift["score_max_abs"] > 0
    assert drift["overlap_at_k"] == 1.0
    assert outcome.drift is not None
    assert outcome.drift.whole_user == 0
    assert f"<td>{changed}</td>" in html


async def test_another_version_must_be_served_to_be_compared_with(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    async with stack(embedded_broker, redis_url, tmp_path) as run:
        await run.client.rank(USERS[0], k=5, candidates=["1", "2"])
        with await tape_of(run, 1) as tape:
            _, shape, _ = await played(Plan(run.client.url, against=run.model.name), tape)
            assert shape["drift"]["value"] == 0.0
            with pytest.raises(VersionError, match="v9"):
                await played(Plan(run.client.url, against="v9"), tape)


async def test_two_held_versions_of_one_server_are_compared_side_by_side(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    """What the replay says of them is what asking the server for either version says."""
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    items, k = make_items(ITEMS), 20
    models = [ModelVersion(name, small_version(seed=seed).net) for seed, name in enumerate(("v1", "v2"))]
    async with open_index(settings, ["v1", "v2"]) as index:
        await index.put_of_all(models, items)
        for i, user in enumerate(USERS):
            await index.click(user, [str(n) for n in range(10 * i, 10 * i + 9)])
        await activate(settings, models[0], 1)
        await announce(settings, models[1], VersionState.READY)
        since_ms = now_ms()
        async with running(serve_role, settings) as client:

            async def both() -> bool:
                return (await client.get("/v1/status"))[1]["model_versions"] == ["v1", "v2"]

            await eventually(both, what="the server holds both")
            asked = {"k": k, "candidates": [str(n) for n in range(ITEMS)]}
            for user in USERS:
                await client.rank(user, **asked)
            named = [
                [(await client.rank(user, **asked, model_version=v, replay=True))["items"] for v in ("v1", "v2")]
                for user in USERS
            ]
            run = Stack(settings, models[0], index, client, since_ms)
            with await tape_of(run, len(USERS)) as recorded:
                _, shape, html = await played(Plan(client.url, against="v2", rate_per_s=50), recorded)
                _, same, _ = await played(Plan(client.url, against="v1", rate_per_s=50), recorded)
                with pytest.raises(VersionError, match=r"v1 \(active\), v2 \(warm\)"):
                    await played(Plan(client.url, against="v9"), recorded)
    drift, against = shape["drift"], shape["against"]
    assert (shape["errors"], against["errors"], drift["compared"]) == (0, 0, len(USERS))
    assert drift["versions"] == {"before": ["v1"], "after": ["v2"]}
    overlaps, apart = [], 0.0
    for one, other in named:
        scores = [{item["item_id"]: item["score"] for item in answer} for answer in (one, other)]
        common = scores[0].keys() & scores[1].keys()
        overlaps.append(len(common) / k)
        apart = max([apart, *(abs(scores[1][item] - scores[0][item]) for item in common)])
    assert drift["overlap_at_k"] == pytest.approx(np.mean(overlaps))
    assert drift["score_max_abs"] >= apart - 1e-6 > 0
    low, value, high = (drift["intervals"]["overlap_at_k"][name] for name in ("low", "value", "high"))
    assert low <= value <= high
    assert {"p50", "p99"} == against["difference_ms"].keys()
    assert same["drift"]["value"] == 0.0
    assert "v2" in html


def tape(users: Sequence[str], gap_ms: int = 1) -> Tape:
    return Tape(
        orjson.dumps({"user_id": user, "received_ms": i * gap_ms, "items": [{"item_id": 1, "score": 0.5}]})
        for i, user in enumerate(users)
    )


async def test_a_server_that_stands_still_shows_in_every_request_of_that_time() -> None:
    rate, pause_s = 200.0, 1.0
    async with small_server() as (url, pid):
        with tape(["ann"] * 600) as played_tape, replaying(Plan(url, rate_per_s=rate), played_tape) as run:
            playing = asyncio.create_task(run.run())
            await asyncio.sleep(0.8)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(pause_s)
            os.kill(pid, signal.SIGCONT)
            outcome = await playing
    latency_s = outcome.to.latency_s
    assert outcome.to.answered.all()
    assert latency_s.max() >= pause_s - 0.1
    # Requests went on being due: each waited for what was left of the pause, so their waits form a ramp. A player that
    # waits for answers would have one slow request.
    assert (latency_s > 0.5 * pause_s).sum() >= 0.4 * rate * pause_s
    assert (outcome.to.send_error_s >= 0).all()


async def test_no_request_is_sent_before_it_is_due_and_the_schedule_is_kept() -> None:
    async with small_server() as (url, _):
        with tape(["ann"] * 400, gap_ms=5) as played_tape:
            outcome, shape, _ = await played(Plan(url, speed=2.0), played_tape)
    assert shape["scheduled_s"] == pytest.approx(399 * 0.005 / 2, abs=1e-3)
    assert (outcome.to.send_error_s >= 0).all()
    assert shape["latency_ms"]["p50"] > 0
    assert shape["send_error_ms"]["p50"] < 100  # generous: tests share their machine; 1.5 ms at p99 on a quiet one


async def test_failures_are_counted_with_their_reasons_and_do_not_hold_up_the_others() -> None:
    users = ["hang" if i == 3 else "cut" if i == 5 else "ann" for i in range(50)]
    async with small_server() as (url, _):
        with tape(users) as played_tape:
            outcome, shape, _ = await played(Plan(url, rate_per_s=200, timeout_s=1.0), played_tape)
    assert shape["errors"] == 2
    assert not outcome.to.answered[[3, 5]].any()
    assert sorted(shape["error_reasons"]) == ["no answer within 1 s", "the server closed the connection"]
    assert shape["drift"]["not_compared"] == {"degraded": 0, "unanswered": 2}


async def test_fewer_connections_than_waiting_requests_only_lengthen_their_latency() -> None:
    async with small_server() as (url, pid):
        with tape(["ann"] * 100) as played_tape:
            plan = Plan(url, rate_per_s=500, connections=4)
            with replaying(plan, played_tape) as run:
                os.kill(pid, signal.SIGSTOP)
                playing = asyncio.create_task(run.run())
                await asyncio.sleep(3.0)  # the player begins with a garbage collection
                os.kill(pid, signal.SIGCONT)
                outcome = await playing
    assert outcome.to.answered.all()
    assert outcome.to.waited > 0
    assert np.quantile(outcome.to.send_error_s, 0.5) < 0.1  # the player itself was not late


async def test_a_server_that_is_not_there_is_named() -> None:
    with tape(["ann"]) as played_tape, pytest.raises(UpstreamError, match=r"127\.0\.0\.1:1 does not answer"):
        await played(Plan("http://127.0.0.1:1"), played_tape)
