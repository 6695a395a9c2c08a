"""The near cache serves a like user's effects only while they are found to agree, and switches itself off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.explain.case import Case, open_case
from aif_stream.explain.near import TRIAL, WINDOW, Near, Trust, disagreement, near_digest, trust
from aif_stream.explain.shapley import Game, shapley, shapley_stage
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.near_cache import NearStore
from aif_stream.settings import Settings
from tests.explain_builders import make_facts
from tests.model_builders import small_version
from tests.stack import eventually

BOUND = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def redis() -> AsyncIterator[Redis]:
    async with EmbeddedRedis() as embedded, open_redis(Settings(redis_url=embedded.url)) as opened:
        yield opened


def near(redis: Redis, *, check: float = 0.0) -> Near:
    return Near(NearStore(redis, keep_s=60, off_s=3600.0, window=WINDOW), bound=BOUND, check=check)


def case_of(place: int = 2, *, history: int = 24) -> Case:
    model = small_version()
    facts = make_facts(model, history=history)
    return open_case(model, facts, facts.head.items[place].item_id)


def refined(game: Game) -> dict[str, Any]:
    *_, last = shapley(game)
    return shapley_stage(last)


def wrong(stage: dict[str, Any]) -> dict[str, Any]:
    """The same with every effect turned round: a disagreement of 2."""
    return {**stage, "groups": [{**group, "effect": -group["effect"]} for group in stage["groups"]]}


def test_the_same_user_and_item_have_one_key_and_others_another() -> None:
    assert near_digest(Game(case_of())) == near_digest(Game(case_of()))
    digests = {near_digest(Game(case_of(place))) for place in range(10)}
    digests |= {near_digest(Game(case_of(history=count))) for count in (0, 3, 12)}
    assert len(digests) == 13
    fine, coarse = (near_digest(Game(case_of()), step) for step in (0.001, 1000.0))
    assert fine != coarse


def test_trust_comes_after_a_trial_and_goes_with_the_mean() -> None:
    assert trust([], False, BOUND) is Trust.TRIAL
    assert trust([9.0] * (TRIAL - 1), False, BOUND) is Trust.TRIAL
    assert trust([0.0] * TRIAL, False, BOUND) is Trust.ON
    assert trust([0.0] * TRIAL, True, BOUND) is Trust.OFF
    assert trust([BOUND * 1.01] * TRIAL, False, BOUND) is Trust.OFF
    assert trust([0.0] * TRIAL, False, 0.0) is Trust.OFF


async def test_nothing_is_told_before_the_trial_and_what_is_told_says_where_it_came_from(redis: Redis) -> None:
    cache, game = near(redis), Game(case_of())
    stage, digest = refined(game), near_digest(game)
    for number in range(TRIAL + 1):  # the first one is a miss
        hit = await cache.look("agrees", digest, stage["score"])
        assert (hit.tell, hit.stage is None) == (False, number == 0)
        await cache.computed("agrees", hit, stage)
    hit = await cache.look("agrees", digest, stage["score"] + 0.05)
    assert hit.tell
    assert hit.stage is not None
    assert (hit.stage["cache"], hit.stage["near"]["disagreement"]) == ("near", 0.0)
    assert hit.stage["score"] == stage["score"] + 0.05
    assert hit.stage["residual"] == pytest.approx(0.05 / abs(hit.stage["score"] - stage["baseline_score"]), rel=1e-3)
    assert hit.stage["groups"] == stage["groups"]


async def test_planted_disagreement_switches_it_off_for_every_worker(redis: Redis) -> None:
    cache, game = near(redis, check=1.0), Game(case_of(4))
    stage, digest, score = refined(game), near_digest(game), 0.0
    assert disagreement(wrong(stage), stage) == pytest.approx(2.0)
    store = NearStore(redis, keep_s=60, off_s=60, window=WINDOW)
    for _ in range(TRIAL):
        await store.measured("planted", 0.0)  # it was trusted
    compared = 0
    while (hit := await cache.look("planted", digest, score)).stage is not None or not compared:
        await cache.computed("planted", hit, stage)
        await cache.computed("planted", hit._replace(stage=wrong(stage)), stage)
        compared += 1
        assert compared <= 3, "a mean of 2·n / (16 + n) passes .1 with the first one"
    found = await store.look("planted", digest)
    assert found.stage is not None  # it is there, and nobody uses it
    assert (found.off, found.window) == (True, [])
    other = near(redis, check=0.0)  # another worker
    assert (await other.look("planted", digest, score)).stage is None


async def test_after_a_while_it_is_on_trial_again(redis: Redis) -> None:
    store = NearStore(redis, keep_s=60, off_s=0.05, window=WINDOW)
    await store.measured("again", 2.0)
    await store.switch_off("again")

    async def on_again() -> bool:
        return not (await store.look("again", "absent")).off

    await eventually(on_again, what="the switch has expired")
    found = await store.look("again", "absent")
    assert trust(found.window, found.off, BOUND) is Trust.TRIAL


async def test_with_a_bound_of_zero_it_is_not_used(redis: Redis) -> None:
    assert not Near(NearStore(redis, keep_s=60, off_s=60, window=WINDOW), bound=0.0, check=1.0).used
