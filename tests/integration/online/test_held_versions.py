"""A server holds what may be needed next: switch, rollback and canary change the pin; nothing is loaded for them."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest_asyncio
from prometheus_client import REGISTRY

from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.order import Order
from aif_stream.domain.versions import VersionState, in_canary
from aif_stream.index.item_codec import ItemWrite
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.retirement import retire_version
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.role import serve_role
from aif_stream.online.serving import unknown_user
from aif_stream.online.versions import ServedVersions
from aif_stream.settings import Settings
from aif_stream.telemetry import RANK_VERSION_SECONDS
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import (
    Client,
    Index,
    Written,
    activate,
    announce,
    close_scores,
    online_settings,
    open_index,
    running,
    tell_mirrors,
)
from tests.stack import eventually, topics

ITEMS = make_items(40)
IDS = [str(i) for i in range(40)]
USERS = [f"user {n}" for n in range(60)]


@dataclass(frozen=True, slots=True)
class World:
    settings: Settings
    index: Index
    models: Mapping[str, ModelVersion]

    async def write(self, items: Sequence[ItemUpserted], time_ms: int) -> dict[str, Written]:
        """Rows of every version, in Redis."""
        keys, orders = np.array([item.key for item in items], np.uint64), np.full(len(items), time_ms, np.uint64)
        rows = {name: model.item_rows(items, orders, orders, 1).rows for name, model in self.models.items()}
        writes = [ItemWrite(i.key, str(i.item_id), Order(time_ms, time_ms), b"{}") for i in items]
        await self.index.store.write_live(writes, rows)
        return {name: Written(model, keys, rows[name]) for name, model in self.models.items()}

    def scores(self, name: str, items: Sequence[ItemUpserted]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Of an unknown user."""
        model, ones = self.models[name], np.ones(len(items), np.uint64)
        return model.score(unknown_user(model), model.item_rows(items, ones, ones, 1).rows)


@pytest_asyncio.fixture(loop_scope="session")
async def world(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    models = {name: ModelVersion(name, small_version(seed=n).net) for n, name in enumerate(("v1", "v2", "v3"))}
    async with open_index(settings, list(models)) as index:
        yield World(settings, index, models)


async def until_held(client: Client, **states: str) -> None:
    async def held() -> bool:
        _, status = await client.get("/v1/status")
        return {each["version"]: each["state"] for each in status["versions"]} == states

    await eventually(held, what=f"the server holds {states}")


async def check_scores(client: Client, world: World, name: str, items: Sequence[ItemUpserted], **more: Any) -> None:
    answer = await client.rank("nobody", k=40, candidates=IDS, **more)
    scores = {item["item_id"]: item["score"] for item in answer["items"]}
    assert answer["model_version"] == name
    assert close_scores([scores[i] for i in IDS], world.scores(name, items))


async def test_a_ready_version_is_mirrored_and_answers_at_once_and_so_does_the_one_before(world: World) -> None:
    await world.write(ITEMS, 1)
    await activate(world.settings, world.models["v1"], 1)
    await announce(world.settings, world.models["v2"], VersionState.READY)
    async with running(serve_role, world.settings) as client:
        await until_held(client, v1="active", v2="warm")
        moved = [changed(item) for item in ITEMS]
        for written in (await world.write(moved, 2)).values():
            await tell_mirrors(world.settings, written)

        async def applied() -> bool:
            answers = [await client.rank("nobody", k=1, candidates=IDS, model_version=name) for name in ("v1", "v2")]
            return all(answer["freshness"]["newest_event_ms"] == 2 for answer in answers)

        await eventually(applied, what="both mirrors have the change")
        await world.index.store._redis.call("FLUSHALL")  # nothing could be loaded any more
        for number, name in enumerate(("v2", "v1", "v2"), 2):
            await activate(world.settings, world.models[name], number)

            async def answers(name: str = name) -> bool:
                return bool((await client.rank("nobody", candidates=IDS))["model_version"] == name)

            await eventually(answers, what=f"{name} answers")
            await check_scores(client, world, name, moved)
        _, status = await client.get("/v1/status")
        assert status["model_versions"] == ["v1", "v2"]
        async with client.session.get(client.url + "/metrics") as reply:
            metrics = await reply.text()
        for line in (
            'aif_model_version_info{state="warm",version="v1"} 1.0',
            'aif_model_version_info{state="active",version="v2"} 1.0',
            'aif_rank_version_seconds_count{version="v1"}',
        ):
            assert line in metrics


def changed(item: ItemUpserted) -> ItemUpserted:
    """The same item, changed."""
    return msgspec.structs.replace(item, category="lamps", content_vector=[0.25] * 12)


async def test_a_canary_answers_its_share_of_the_users_and_each_user_stays_with_one_version(world: World) -> None:
    await world.write(ITEMS, 1)
    await activate(world.settings, world.models["v1"], 1)
    await announce(world.settings, world.models["v2"], VersionState.READY, 2, percent=30.0)
    async with running(serve_role, world.settings) as client:
        await until_held(client, v1="active", v2="canary")

        async def versions() -> dict[str, str]:
            found = await asyncio.gather(*(client.rank(user, k=1, candidates=IDS[:2]) for user in USERS))
            return {user: answer["model_version"] for user, answer in zip(USERS, found, strict=True)}

        expected = {user: "v2" if in_canary("v2", user, 30.0) else "v1" for user in USERS}
        assert set(expected.values()) == {"v1", "v2"}
        assert await versions() == expected
        assert await versions() == expected
        await check_scores(client, world, "v1", ITEMS, model_version="v1")
        await check_scores(client, world, "v2", ITEMS, model_version="v2")
        await announce(world.settings, world.models["v2"], VersionState.READY, 2, percent=0.0)
        await until_held(client, v1="active", v2="warm")
        assert set((await versions()).values()) == {"v1"}


async def test_a_version_that_is_let_go_is_named_until_its_last_request_ends_and_leaves_no_memory(world: World) -> None:
    await world.write(ITEMS, 1)
    record = await announce(world.settings, world.models["v1"], VersionState.READY)
    await activate(world.settings, world.models["v2"], 1)
    async with served(world) as versions:

        async def held() -> bool:
            return versions.names == ["v1", "v2"]

        await eventually(held, what="both are held")
        with versions.pin("v1", "ann") as pinned:
            gone = weakref.ref(pinned)
            arena = weakref.ref(pinned.mirror)
            await announce(world.settings, world.models["v1"], VersionState.RETIRED)

            async def let_go() -> bool:
                return [each["state"] for each in versions.view() if each["version"] == "v1"] == ["leaving"]

            await eventually(let_go, what="v1 is let go")
            assert versions.names == ["v1", "v2"]
            assert pinned.mirror is not None
            assert len(pinned.mirror) == 40
        del pinned
        RANK_VERSION_SECONDS.labels("v1").observe(0.01)  # as its last answer is counted, in the same step of the loop
        assert versions.names == ["v2"]

        async def no_series() -> bool:
            return REGISTRY.get_sample_value("aif_rank_version_seconds_count", {"version": "v1"}) is None

        await eventually(no_series, what="its series has ended")

        async def freed() -> bool:
            return gone() is None and arena() is None

        await eventually(freed, what="its memory is free")
    assert record.version == "v1"


@asynccontextmanager
async def served(world: World) -> AsyncIterator[ServedVersions]:
    with ComputeThreads(1) as threads:
        versions = ServedVersions(world.settings, world.index.store, threads)
        running = asyncio.create_task(versions.run())
        try:
            yield versions
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_retiring_waits_until_the_servers_have_let_go(world: World) -> None:
    await world.write(ITEMS, 1)
    await announce(world.settings, world.models["v1"], VersionState.READY)
    await activate(world.settings, world.models["v2"], 1)
    async with running(serve_role, world.settings) as client:
        await until_held(client, v1="warm", v2="active")
        known = dataclasses.replace(world.settings, serve_url=client.url)
        assert (await retire_version(known, "v1")).rows == 40
        status, problem = await client.post("/v1/rank", {"user_id": "ann", "candidates": IDS, "model_version": "v1"})
        assert (status, "holds v2 (active)" in problem["detail"]) == (409, True)
        await check_scores(client, world, "v2", ITEMS)


async def test_versions_are_kept_warm_up_to_the_setting_and_the_memory_and_the_active_one_always(world: World) -> None:
    await world.write(ITEMS, 1)
    many = [ItemUpserted(item_id=1000 + n, category="tea", content_vector=[0.5] * 12) for n in range(3_000)]
    await world.write(many, 1)
    await activate(world.settings, world.models["v1"], 1)
    await announce(world.settings, world.models["v2"], VersionState.READY)
    await announce(world.settings, world.models["v3"], VersionState.READY)
    one = dataclasses.replace(world.settings, warm_versions=2)
    async with running(serve_role, one) as client:
        await until_held(client, v1="active", v3="warm")
        assert (await client.post("/v1/rank", {"user_id": "a", "model_version": "v2"}))[0] == 409
    small = dataclasses.replace(world.settings, mirror_memory_mb=1)  # one mirror of 3,040 rows fits, two do not
    async with running(serve_role, small) as client:
        await until_held(client, v1="active", v2="failed", v3="failed")
        _, status = await client.get("/v1/status")
        assert "AIF_MIRROR_MEMORY_MB allows 1" in next(v["problem"] for v in status["versions"] if "problem" in v)
        assert (await client.get("/readyz"))[0] == 200
        await activate(world.settings, world.models["v3"], 2, replaces="v1")
        await until_held(client, v3="active", v1="failed", v2="failed")
        await check_scores(client, world, "v3", ITEMS)
