"""Rows: the mirror follows the change log, Redis can be read instead, what is missing or old is handled as set."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from aif_stream.clock import now_ms
from aif_stream.domain.events import ItemUpserted
from aif_stream.errors import IndexRefused
from aif_stream.model.version import ModelVersion
from aif_stream.online.role import serve_role
from aif_stream.online.serving import unknown_user
from aif_stream.settings import Settings
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import (
    Index,
    activate,
    close_scores,
    online_settings,
    open_index,
    running,
    same_items,
    tell_mirrors,
)
from tests.stack import eventually, topics

LATER_MS = 1_800_000_000_000
ITEMS = make_items(40)
IDS = [str(i) for i in range(40)]


@dataclass(frozen=True, slots=True)
class World:
    settings: Settings
    model: ModelVersion
    index: Index


@pytest_asyncio.fixture(loop_scope="session")
async def world(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model = small_version()
    async with open_index(settings, []) as index:
        await index.put_features(ITEMS)  # no version is listed yet: features without rows
        await index.store.add_version(model.name)
        await index.click("ann", ["1", "2", "3"])
        await activate(settings, model, 1)
        yield World(settings, model, index)


def score_of(answer: dict[str, Any], item_id: str) -> float:
    return next(float(item["score"]) for item in answer["items"] if item["item_id"] == item_id)


async def test_a_change_in_the_log_changes_the_score_and_a_removal_takes_the_item_out(world: World) -> None:
    await world.index.put(world.model, ITEMS)
    async with running(serve_role, world.settings) as client:
        before = await client.rank("ann", k=40, candidates=IDS)
        moved = msgspec.structs.replace(ITEMS[9], content_vector=[3.0] * 12, category="lamps")
        await tell_mirrors(world.settings, await world.index.put(world.model, [moved], time_ms=LATER_MS))

        async def changed() -> bool:
            answer = await client.rank("ann", k=40, candidates=IDS)
            return score_of(answer, "9") != score_of(before, "9")

        await eventually(changed, what="the change is served")
        await tell_mirrors(world.settings, await world.index.remove(world.model, "9", time_ms=LATER_MS + 1))

        async def gone() -> bool:
            answer = await client.rank("ann", k=40, candidates=IDS)
            return bool(answer["coverage"]["scored"] == 39)

        await eventually(gone, what="the removal is served")
        # An older event of the removed item in the log does not bring it back.
        await tell_mirrors(world.settings, await world.index.put(world.model, [ITEMS[9]]))
        await tell_mirrors(world.settings, await world.index.put(world.model, [ITEMS[8]], time_ms=LATER_MS))
        answer = await client.rank("ann", k=40, candidates=IDS)
        assert answer["coverage"] == {"candidates": 40, "scored": 39, "recomputed": 0, "missing": 1}
        _, status = await client.get("/v1/status")
        assert status["mirror"]["rows"] == 40


async def test_joining_in_redis_gives_the_answer_of_the_mirror(world: World) -> None:
    await world.index.put(world.model, ITEMS)
    await world.index.remove(world.model, "5", time_ms=LATER_MS)
    answers = []
    for join in ("mirror", "redis"):
        settings = dataclasses.replace(world.settings, join=join)
        async with running(serve_role, settings) as client:
            answers.append(await client.rank("ann", k=40, candidates=[*IDS, "unknown"]))
    mirror, redis = answers
    assert same_items(mirror, redis)
    assert mirror["coverage"] == redis["coverage"] == {"candidates": 41, "scored": 39, "recomputed": 0, "missing": 2}


async def test_missing_rows_are_recomputed_from_features_within_the_bound_and_the_rest_is_missing(
    world: World,
) -> None:
    await world.index.put(world.model, ITEMS[:10])
    bounded = dataclasses.replace(world.settings, recompute_max=12)
    async with running(serve_role, bounded) as client:
        answer = await client.rank("nobody", k=40, candidates=IDS)
        assert answer["coverage"] == {"candidates": 40, "scored": 22, "recomputed": 12, "missing": 18}
    async with running(serve_role, world.settings) as client:
        whole = await client.rank("nobody", k=40, candidates=IDS)
    assert whole["coverage"] == {"candidates": 40, "scored": 40, "recomputed": 30, "missing": 0}
    rows = world.model.item_rows(ITEMS, np.ones(40, np.uint64), np.ones(40, np.uint64), 1).rows
    expected = world.model.score(unknown_user(world.model), rows)
    found = [score_of(whole, item_id) for item_id in IDS]
    assert close_scores(found, expected)


async def test_the_age_policy_is_enforced_at_read(world: World) -> None:
    await world.index.put(world.model, ITEMS[:30])
    await world.index.put(world.model, ITEMS[30:], computed_ms=now_ms() - 3_600_000)
    outcomes = {}
    for policy in ("serve", "mark", "recompute", "drop"):
        settings = dataclasses.replace(world.settings, age_limit_s=600.0, age_policy=policy)
        async with running(serve_role, settings) as client:
            answer = await client.rank("ann", k=40, candidates=IDS)
        coverage, stale = answer["coverage"], answer["freshness"]["stale"]
        outcomes[policy] = (coverage["scored"], coverage["recomputed"], stale, answer["degraded"])
        oldest_ms = answer["freshness"]["age_ms"]["max"]
        assert (oldest_ms > 3_500_000) == (policy in ("serve", "mark"))
    assert outcomes == {
        "serve": (40, 0, 10, []),
        "mark": (40, 0, 10, ["stale"]),
        "recompute": (40, 10, 0, []),
        "drop": (30, 0, 10, ["stale"]),
    }


async def test_a_mirror_that_does_not_fit_stops_the_start_and_names_the_other_road(world: World) -> None:
    await world.index.put(world.model, ITEMS)
    random = np.random.default_rng(0)
    many = [
        ItemUpserted(item_id=1000 + i, category="tea", content_vector=random.random(12).tolist()) for i in range(8000)
    ]
    await world.index.put(world.model, many)
    tiny = dataclasses.replace(world.settings, mirror_memory_mb=1)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(serve_role, tiny):
            pytest.fail("it must not become ready")
    group: BaseException = caught.value
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, IndexRefused)
    assert "AIF_JOIN=redis" in str(group)
