"""Hostile records of ``aif.model-updates`` beside a server: it answers on, starts again, and keeps its versions."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.bus.versions import read_versions
from aif_stream.domain.versions import VersionState
from aif_stream.model.version import ModelVersion
from aif_stream.online.role import serve_role
from tests.conftest import BrokerFactory
from tests.hostile_builders import version_values
from tests.model_builders import make_items, small_version
from tests.online_builders import activate, announce, online_settings, open_index, running
from tests.stack import eventually, topics

ITEMS = make_items(40)
IDS = [str(i) for i in range(40)]
ARTEFACTS = ("/nowhere", "/x" * 2_000, "/dev/null", "/")


async def test_a_server_survives_hostile_version_records(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    v1, v2 = (ModelVersion(name, small_version(seed=n).net) for n, name in enumerate(("v1", "v2")))
    async with open_index(settings, ["v1", "v2"]) as index, Producer(settings, "test") as producer:
        await index.put_of_all([v1, v2], ITEMS)
        await activate(settings, v1, 1)
        good = (await read_versions(settings)).records["v1"]
        async with running(serve_role, settings) as client:
            for value in (*version_values(good.encode()).values(), None):
                await (await producer.send(MODEL_UPDATES, b"v1", value, []))
            for number, path in enumerate(ARTEFACTS):  # records that can be read, of artefacts that cannot
                name = f"other-{number}"
                record = msgspec.structs.replace(good, version=name, artefact=path, state=VersionState.READY)
                await (await producer.send(MODEL_UPDATES, name.encode(), record.encode(), []))
            await announce(settings, v2, VersionState.READY)

            async def holds_both() -> bool:
                _, status = await client.get("/v1/status")
                return {"v1", "v2"} <= set(status["model_versions"])

            await eventually(holds_both, what="the good record behind the bad ones is followed")
            assert (await client.rank("nobody", candidates=IDS))["model_version"] == "v1"
        async with running(serve_role, settings) as client:  # it starts behind all of them
            assert (await client.rank("nobody", candidates=IDS))["model_version"] == "v1"

            async def mended() -> bool:
                return not (await read_versions(settings)).displaced

            await eventually(mended, what="the server has written the good record again")
