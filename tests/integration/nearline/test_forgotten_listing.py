"""Redis forgets its last second when it is killed: the listing of a version, too, and no mark need tell of it."""

from __future__ import annotations

from pathlib import Path

from aif_stream.embedded.redis import EmbeddedRedis
from tests.conftest import BrokerFactory
from tests.nearline_builders import BUCKETS, T0_MS, nearline_settings, open_stack, worker
from tests.stack import eventually, topics


async def test_a_listing_that_redis_forgot_while_every_mark_stayed_is_restored_by_idle_workers(
    embedded_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    async with EmbeddedRedis(tmp_path / "redis") as server:
        settings = nearline_settings(broker.bootstrap, server.url, tmp_path)
        async with open_stack(settings) as stack, worker(settings):
            await stack.publish_model(tmp_path)
            await stack.put.item("1", T0_MS)
            await stack.has("1", T0_MS)
            await stack.store.unlist_version(stack.model.name)  # as if the listing had been in the lost second
            await server.stop()
            await server.start()

            async def listed() -> bool:
                return await stack.store.listings() == {stack.model.name: BUCKETS}

            await eventually(listed, what="the version is listed again")
