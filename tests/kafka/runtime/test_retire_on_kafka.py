"""Retiring on Apache Kafka under live updates: two workers, no event lost, no row of the old version left."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aif_stream.domain.ids import key_of
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.index.footprint import stored_versions
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.nearline.retirement import retire_version
from tests.model_builders import small_config
from tests.nearline_builders import T0_MS, Stack, artefact, kafka_settings, open_stack, worker

ITEMS = 60


@pytest.fixture
async def stack(kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    settings = await kafka_settings(kafka_cluster, redis_url, tmp_path, topic_prefix, serve_url="http://127.0.0.1:9")
    async with open_stack(settings) as made:
        yield made


async def test_a_version_is_retired_under_live_updates_of_two_workers(stack: Stack, tmp_path: Path) -> None:
    second = ModelVersion.init(small_config(), 5, name="second")
    times = itertools.count(T0_MS)
    last: dict[str, int] = {}
    stop = asyncio.Event()

    async def updates() -> None:
        for number in itertools.cycle(range(ITEMS)):
            name, time_ms = str(number), next(times)
            await stack.put.item(name, time_ms)
            last[name] = time_ms
            if stop.is_set() and len(last) == ITEMS:
                return

    async with worker(stack.settings), worker(dataclasses.replace(stack.settings, worker_id="second-worker")):
        await stack.publish_model(tmp_path)
        updating = asyncio.create_task(updates())
        await rollout.publish_version(stack.settings, artefact(tmp_path / "second", second), activate=True)
        done = await retire_version(stack.settings, stack.model.name)
        last.clear()  # every item is updated once more before the updates end
        stop.set()
        await updating
        for name, time_ms in last.items():
            await stack.has(name, time_ms)
    assert done.rows > 0
    assert await stack.store.listings() == {"second": stack.store.buckets.count}
    assert (await stored_versions(stack.redis)).keys() == {"second"}
    assert await stack.store.count_rows("second") == len({key_of(name) for name in last}) == ITEMS
