"""A version that a running server answers with is not retired, whatever the records say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from aif_stream.bus.producer import Producer
from aif_stream.bus.versions import publish_version, read_versions
from aif_stream.domain.versions import VersionState
from aif_stream.errors import VersionError
from aif_stream.nearline.retirement import retire_version
from aif_stream.online.role import serve_role
from aif_stream.runtime.version_health import check_servers
from tests.conftest import BrokerFactory
from tests.model_builders import make_items, small_version
from tests.online_builders import activate, online_settings, open_index, running
from tests.stack import eventually, topics


async def test_a_server_that_could_not_switch_keeps_its_version_from_being_retired(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    first = small_version()
    async with open_index(settings, [first.name]) as index:
        await index.put(first, make_items(10))
        await activate(settings, first, 1)
        async with running(serve_role, settings) as client:
            known = dataclasses.replace(settings, serve_url=client.url)
            record = msgspec.structs.replace(
                (await read_versions(settings)).records[first.name],
                version="broken",
                state=VersionState.ACTIVE,
                artefact=str(tmp_path / "nowhere"),
                activation=2,
                replaces=first.name,
            )
            async with Producer(settings, "test") as producer:
                await publish_version(producer, record)

            async def tried() -> bool:
                return "broken" in str((await client.get("/v1/status"))[1])

            await eventually(tried, what="the server has tried to switch")
            with pytest.raises(VersionError, match=f"{first.name} is still held by"):
                await retire_version(known, first.name)
            (server,) = await check_servers(known, index.store._redis)
            assert f"answers with {first.name}, broken is active" in server.what
        assert await index.store.versions() == {first.name}
        # Its server has ended: now it may go.
        assert (await retire_version(known, first.name)).rows == 10
