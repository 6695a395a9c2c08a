"""What a drill runs on: one real broker, one real Redis, worker processes that may be killed, a model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aif_stream.bus import admin
from aif_stream.bus.topics import load_topics
from aif_stream.embedded.jars import KafkaJars
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.model.artefact import load, save
from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.runtime.roles import spawn_role
from aif_stream.settings import Settings, variables

_SHARED = (
    *("home", "kafka_bootstrap", "kafka_session_timeout_ms", "topic_prefix", "redis_url", "models_dir"),
    *("index_buckets", "metrics_port", "rebuild_rate"),
)


def start_worker(settings: Settings, log: Path, **more: str) -> ServerProcess:
    """One ``aif nearline`` of its own; ``more``: other variables."""
    return spawn_role("nearline", log, {**variables(settings, _SHARED), **more})


@dataclass(slots=True)
class DrillStack:
    """Everything that a scenario may hit."""

    directory: Path
    settings: Settings
    kafka: KafkaCluster
    redis: EmbeddedRedis
    model: ModelVersion
    workers: list[ServerProcess] = field(default_factory=list)
    started: int = 0

    def start_worker(self) -> ServerProcess:
        """One more ``aif nearline``."""
        self.started += 1
        worker = start_worker(self.settings, self.directory / f"worker-{self.started}.log")
        self.workers.append(worker)
        return worker

    async def replace_workers(self, **choices: Any) -> None:
        """Stop all workers in order and start as many under changed settings."""
        count = len(self.workers)
        await asyncio.gather(*(self.stop(worker) for worker in list(self.workers)))
        self.settings = dataclasses.replace(self.settings, **choices)
        for _ in range(count):
            self.start_worker()

    async def kill9(self, worker: ServerProcess) -> None:
        await worker.kill9()
        self.workers.remove(worker)

    async def stop(self, worker: ServerProcess) -> None:
        await worker.stop(60)
        self.workers.remove(worker)


def untrained(directory: Path) -> Path:
    """An artefact with the shapes of a trained model: what runs on it costs and moves the same, and nobody waits."""
    config = ModelConfig(
        content_width=16,
        categories=tuple(f"c{number}" for number in range(20)),
        item_fields=(
            Field("brand", "label", tuple(f"b{number}" for number in range(9))),
            Field("price", "number", mean=50.0, scale=30.0),
        ),
    )
    save(directory, ModelVersion.init(config, seed=1, name="untrained"))
    return directory


@asynccontextmanager
async def drill_servers(
    directory: Path, *, nodes: Literal[1, 3] = 1, **choices: Any
) -> AsyncIterator[tuple[Settings, KafkaCluster, EmbeddedRedis]]:
    """Broker, Redis and topics, and the settings that lead there. ``choices``: other settings."""
    jars = await KafkaJars.fetch()
    async with (
        KafkaCluster(nodes, jars, directory / "kafka") as kafka,
        EmbeddedRedis(directory / "redis") as redis,
    ):
        settings = dataclasses.replace(
            Settings(),
            home=directory / "home",
            models_dir=directory / "home" / "models",
            kafka_bootstrap=kafka.bootstrap,
            redis_url=redis.url,
            kafka_session_timeout_ms=6000,  # the least that a broker allows by default: dead members leave soon
            **{"metrics_port": 0, **choices},
        )
        await admin.apply(settings, load_topics())
        yield settings, kafka, redis


@asynccontextmanager
async def drill_stack(
    directory: Path, *, model: Path, workers: int = 2, nodes: Literal[1, 3] = 1, **choices: Any
) -> AsyncIterator[DrillStack]:
    """Servers, a published version (``model``: its artefact), and ``workers`` workers."""
    async with drill_servers(directory, nodes=nodes, **choices) as (settings, kafka, redis):
        stack = DrillStack(directory, settings, kafka, redis, await asyncio.to_thread(load, model))
        try:
            for _ in range(workers):
                stack.start_worker()
            await rollout.publish_version(settings, model, activate=True)
            yield stack
        finally:
            await asyncio.gather(*(worker.kill9() for worker in stack.workers))
