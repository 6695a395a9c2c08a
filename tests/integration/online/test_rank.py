from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from aif_stream.domain.history import unpack_history
from aif_stream.domain.ids import key_of
from aif_stream.online.role import serve_role
from aif_stream.retrieval.server import retrieval_role
from tests.conftest import BrokerFactory
from tests.model_builders import VARIANTS, make_items, small_version
from tests.online_builders import (
    Client,
    activate,
    online_settings,
    open_index,
    publish,
    running,
    same_items,
)
from tests.precision import EPS16, assert_close, rounding_bound
from tests.stack import eventually, topics

PROFILE: dict[str, Any] = {"city": "oslo", "age": 31}


@pytest.mark.parametrize("variant", ["", "all"])
async def test_scores_are_those_of_the_plain_joint_forward(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path, variant: str
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model, items = small_version(**VARIANTS[variant]), make_items(60)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await index.click("u1", [str(i) for i in range(25)])
        await index.profile("u1", PROFILE)
        await activate(settings, model, 1)
        stored = await index.histories.read(key_of("u1"))
        async with running(serve_role, settings) as client:
            answer = await client.rank("u1", k=60, candidates=[item.item_id for item in items])
    joint = model.joint(PROFILE, unpack_history(stored.history.tobytes()), items[:25], items)
    scores = np.array([next(a["score"] for a in answer["items"] if a["item_id"] == i.item_id) for i in items])
    assert_close(scores, joint, rounding_bound(joint, EPS16))
    assert [a["score"] for a in answer["items"]] == sorted(scores.tolist(), reverse=True)
    assert answer["coverage"] == {"candidates": 60, "scored": 60, "recomputed": 0, "missing": 0}
    assert answer["degraded"] == []
    assert answer["model_version"] == model.name


async def test_candidates_come_from_retrieval_and_a_small_catalogue_is_answered_whole(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model, items = small_version(), make_items(200)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await index.click("ann", ["3", "4", "5"])
        await publish(settings, items, {"ann": ["3", "4", "5"]})
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            serving = dataclasses.replace(settings, retrieval_urls=retrieval.url)
            async with running(serve_role, serving) as client:
                answer = await client.rank("ann", k=200)
                stranger = await client.rank("nobody", k=200)
                # Facts are kept of it, so its rows are copied before they are scored; the others' are read in place.
                explained = await client.rank("ann", k=200, explain=True)
    assert explained["items"] == answer["items"]
    assert explained["freshness"]["newest_event_ms"] == answer["freshness"]["newest_event_ms"] > 0
    for found in (answer, stranger, explained):
        assert found["coverage"] == {"candidates": 200, "scored": 200, "recomputed": 0, "missing": 0}
        assert {item["item_id"] for item in found["items"]} == {item.item_id for item in items}
        assert found["degraded"] == []


async def test_the_user_side_runs_while_retrieval_is_awaited(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, retrieval_latency_ms=70.0)
    model, items = small_version(), make_items(100)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await index.click("ann", [str(i % 100) for i in range(2000)])
        await publish(settings, items)
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            serving = dataclasses.replace(settings, retrieval_urls=retrieval.url)
            async with running(serve_role, serving) as client:
                answers = [await client.rank("ann") for _ in range(10)]
    times = [answer["timings_ms"] for answer in answers]
    assert all(t["retrieval"] >= 70 for t in times)
    # All of the user side is hidden: it begins with retrieval and ends before it. On a busy machine the two begin some
    # milliseconds apart; one after the other would hide nothing in any answer.
    assert any(t["overlap_saved"] > t["user"] / 2 for t in times), times
    best = min(times, key=lambda t: t["total"])
    assert best["total"] < best["retrieval"] + best["join"] + best["score"] + 10


async def test_without_overlap_the_user_side_follows_retrieval_and_the_answer_is_the_same(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model, items = small_version(), make_items(60)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await index.click("ann", ["3", "4", "5"])
        await publish(settings, items)
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            found = []
            for overlap in (True, False):
                serving = dataclasses.replace(settings, retrieval_urls=retrieval.url, overlap=overlap)
                async with running(serve_role, serving) as client:
                    found.append(await client.rank("ann", k=60))
                    named = await client.rank("ann", k=60, candidates=[str(i) for i in range(60)])
                    assert same_items(named, found[0])
    assert same_items(*found)
    # Nothing is hidden; below 0: a busy machine paused between the two.
    assert found[1]["timings_ms"]["overlap_saved"] <= 1
    assert found[1]["degraded"] == []


async def test_a_user_side_is_reused_with_its_age_until_the_user_does_something_new(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, user_cache_s=60.0)
    model, items = small_version(), make_items(20)
    ids = [item.item_id for item in items]
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items, computed_ms=2**52)  # rows of age 0: what is left is the age of the user side
        await index.click("ann", ["1", "2"])
        await activate(settings, model, 1)
        async with running(serve_role, settings) as client:
            first = await client.rank("ann", candidates=ids)
            second = await client.rank("ann", candidates=ids)
            await index.click("ann", ["1", "2", "3"])
            third = await client.rank("ann", candidates=ids)
            await index.profile("ann", PROFILE)
            fourth = await client.rank("ann", candidates=ids)
        uncached = dataclasses.replace(settings, user_cache_s=0.0)
        async with running(serve_role, uncached) as client:
            truth = await client.rank("ann", candidates=ids)
    assert same_items(first, second)
    assert not same_items(first, third)
    assert not same_items(third, fourth)
    assert same_items(fourth, truth)
    assert [answer["freshness"]["age_ms"]["max"] > 0 for answer in (first, second, third)] == [False, True, False]


async def test_a_stop_lets_open_requests_end_and_takes_no_more(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, retrieval_latency_ms=600.0)
    model, items = small_version(), make_items(20)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await publish(settings, items)
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval, aiohttp.ClientSession() as session:
            serving = dataclasses.replace(settings, retrieval_urls=retrieval.url)
            stop = asyncio.Event()
            async with serve_role(serving, stop) as url:
                client = Client(session, url)
                await client.ready()
                before = searches(await metrics(session, url))
                asked = asyncio.create_task(client.rank("ann", k=20))

                async def under_way() -> bool:
                    return searches(await metrics(session, url)) > before

                await eventually(under_way, what="the request is being answered")
                stop.set()
                answer = await asked
            assert answer["coverage"]["scored"] == 20
            with pytest.raises(aiohttp.ClientError):
                await client.rank("ann")


async def metrics(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/metrics") as reply:
        return await reply.text()


def searches(text: str) -> float:
    """Searches that retrieval (in this process too) has done; their answers still wait for its set latency."""
    lines = [line for line in text.splitlines() if line.startswith("aif_retrieval_seconds_count")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_no_stage_is_longer_than_the_whole_however_many_requests_share_the_threads(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path, executor_threads=1)
    model, items = small_version(), make_items(300)
    async with open_index(settings, [model.name]) as index:
        await index.put(model, items)
        await index.click("ann", [str(i) for i in range(100)])
        await publish(settings, items, {"ann": ["3", "4", "5"]})
        await activate(settings, model, 1)
        async with running(retrieval_role, settings) as retrieval:
            serving = dataclasses.replace(settings, retrieval_urls=retrieval.url)
            async with running(serve_role, serving) as client:
                answers = await asyncio.gather(*(client.rank("ann", k=300) for _ in range(24)))
    for times in (answer["timings_ms"] for answer in answers):
        assert all(0 <= times[stage] <= times["total"] for stage in ("user", "retrieval", "join", "score"))
        assert times["join"] + times["score"] <= times["total"]
        assert times["join"] > 0
        assert times["score"] > 0
        assert times["overlap_saved"] <= min(times["user"], times["retrieval"]) + 0.002  # each rounded to a µs
