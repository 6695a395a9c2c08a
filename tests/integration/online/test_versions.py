"""A request pins one version (design, invariant 1): scores are of one version each, also while versions change."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np

from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.index.item_codec import ItemWrite
from aif_stream.model.artefact import save
from aif_stream.model.version import ModelVersion
from aif_stream.online.role import serve_role
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import activate, close_scores, online_settings, open_index, running
from tests.stack import eventually, topics

ITEMS = make_items(40)
IDS = [str(i) for i in range(40)]


def named(name: str, seed: int) -> ModelVersion:
    return ModelVersion(name, small_version(seed=seed).net)


async def test_versions_change_under_load_and_no_answer_mixes_them(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    models = [named("v1", 1), named("v2", 2)]
    async with open_index(settings, [model.name for model in models]) as index:
        orders = np.ones(40, np.uint64)
        rows = {model.name: model.item_rows(ITEMS, orders, orders, 1).rows for model in models}
        await index.store.write_live([ItemWrite(i.key, str(i.item_id), Order(1, 1), b"{}") for i in ITEMS], rows)
        await index.click("ann", IDS[:20])
        history = (await index.histories.read(key_of("ann"))).history
        found = np.ones(20, np.bool_)
        expected = {
            model.name: model.score(model.user_side(None, history, rows[model.name][:20], found), rows[model.name])
            for model in models
        }
        await activate(settings, models[0], 1)
        seen: set[str] = set()
        async with running(serve_role, settings) as client:

            async def load(stop: asyncio.Event) -> int:
                count = 0
                while not stop.is_set():
                    answer = await client.rank("ann", k=40, candidates=IDS)
                    scores = {item["item_id"]: item["score"] for item in answer["items"]}
                    version = answer["model_version"]
                    assert close_scores([scores[i] for i in IDS], expected[version])
                    seen.add(version)
                    count += 1
                return count

            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                loads = [tasks.create_task(load(stop)) for _ in range(3)]
                for number, model in enumerate([models[1], models[0], models[1]], 2):
                    await activate(settings, model, number)

                    async def served(name: str = model.name) -> bool:
                        return (await client.get("/v1/status"))[1]["model_version"] == name

                    await eventually(served, what=f"{model.name} is served")
                stop.set()
            assert seen == {"v1", "v2"}
            assert sum(task.result() for task in loads) > 10
            for name in ("v1", "v2"):  # the one that does not answer is held, too
                answer = await client.rank("ann", k=40, candidates=IDS, model_version=name)
                scores = {item["item_id"]: item["score"] for item in answer["items"]}
                assert answer["model_version"] == name
                assert close_scores([scores[i] for i in IDS], expected[name])
            asked = {"user_id": "ann", "candidates": IDS, "model_version": "v3"}
            status, problem = await client.post("/v1/rank", asked)
            assert (status, problem["status"]) == (409, 409)
            assert "holds v1 (warm), v2 (active)" in problem["detail"]


async def test_an_artefact_that_is_not_the_published_one_is_not_served_and_the_old_version_goes_on(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    good, bad = named("good", 1), named("bad", 2)
    async with open_index(settings, [good.name]) as index:
        await index.put(good, ITEMS)
        await activate(settings, good, 1)
        async with running(serve_role, settings) as client:
            await asyncio.to_thread(save, settings.models_dir / "bad", bad)
            weights = settings.models_dir / "bad" / "weights.safetensors"
            shutil.copy(settings.models_dir / "good" / "weights.safetensors", weights)
            await activate(settings, bad, 2)

            async def told() -> bool:
                _, status = await client.get("/v1/status")
                return "bad" in status["problem"]

            await eventually(told, what="the broken artefact is named")
            answer = await client.rank("ann", candidates=IDS)
            assert answer["model_version"] == "good"
            assert (await client.get("/readyz"))[0] == 200
