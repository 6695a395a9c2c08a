"""What all examples of the protocol share: a loop, a Redis, three models on disk, seams put to the machine's world."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from aif_stream import clock
from aif_stream.bus import versions as bus_versions
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.model.artefact import load, save
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import retirement, rollout
from aif_stream.nearline import versions as loaded_versions
from aif_stream.settings import Settings
from tests.model_builders import small_version
from tests.property.nearline.logs import LogProducer
from tests.property.nearline.machine import VERSIONS
from tests.property.nearline.protocol import (
    BUCKETS,
    Bench,
    World,
    open_redis_of,
    read_versions_of,
)
from tests.property.nearline.stepping import Stage


@pytest.fixture(scope="module")
def bench(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("protocol")
    models = {}
    for seed, name in enumerate(VERSIONS):
        models[name] = ModelVersion(name, small_version(seed=seed).net)
        save(home / name, models[name])
    stage = Stage()
    options = Settings(redis_url=redis_server.url, models_dir=home / "models", home=home, index_buckets=BUCKETS.count)
    opened = open_redis(options)
    redis = stage.run(opened.__aenter__())
    artefacts = {name: home / name for name in VERSIONS}
    make = functools.partial(World, stage, options, redis, models, artefacts)
    once = functools.cache(load)
    with pytest.MonkeyPatch.context() as patch:
        found = Bench(stage, options, redis, make)

        def current() -> World:
            assert found.now is not None
            return found.now

        ticks = iter(range(1 << 60))
        patch.setattr(clock, "monotonic_s", lambda: float(next(ticks)))  # each look is a second later
        patch.setattr(bus_versions, "read_versions", read_versions_of(current))
        patch.setattr(rollout, "load", once)
        patch.setattr(loaded_versions, "load", once)
        patch.setattr(retirement, "open_redis", open_redis_of(current))
        patch.setattr(retirement, "Producer", lambda *_, **__: LogProducer(current().topics, current().operator_gate))
        patch.setattr(retirement, "_held_by_nobody", _nobody)
        patch.setattr(retirement, "_answered_by_nobody", _nobody)
        yield found
    stage.run(opened.__aexit__(None, None, None))
    stage.close()


async def _nobody(*_: object) -> None:
    """The machine's server lets go of a version when its record says so."""
