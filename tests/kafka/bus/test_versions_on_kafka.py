"""``aif.model-updates`` compacted to a record that cannot be used: a role that holds the good one writes it again."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest_asyncio

from aif_stream.bus import admin
from aif_stream.bus.consumer import Record
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import MODEL_UPDATES, load_topics
from aif_stream.bus.version_repair import VersionRepair
from aif_stream.bus.versions import VersionFollower, publish_version, read_versions
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.settings import Settings
from tests.stack import eventually

# What the cleaner needs to work within seconds; a segment is closed by the first record that comes after its time.
QUICK_COMPACTION: Final = {
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "1000",
}
GOOD: Final = VersionRecord(
    version="v1", state=VersionState.ACTIVE, artefact="/m", manifest_sha256="0", created_ms=1, activation=1
)
BAD: Final = b'{"a":' * 3_000 + b"1" + b"}" * 3_000


@pytest_asyncio.fixture(loop_scope="session")
async def settings(kafka_cluster: KafkaCluster, topic_prefix: str) -> Settings:
    settings = Settings(kafka_bootstrap=kafka_cluster.bootstrap, topic_prefix=topic_prefix)
    spec = load_topics()[MODEL_UPDATES]
    await admin.apply(settings, {MODEL_UPDATES: dataclasses.replace(spec, config={**spec.config, **QUICK_COMPACTION})})
    return settings


async def unheard(_book: VersionBook, _record: VersionRecord) -> None:
    """The book is all that is asked."""


async def records_of(settings: Settings, key: bytes) -> list[Record]:
    async with LogReader(settings, MODEL_UPDATES) as reader:
        ends = await reader.end_offsets()
        records: list[Record] = []
        while not await reader.caught_up(ends):
            records.extend(await reader.poll())
        return [record for record in records if record.key == key]


async def compacted(settings: Settings, producer: Producer, value: bytes) -> None:
    """Wait until the cleaner has left one record of v1, with this value."""

    async def one_left() -> bool:
        # Under no version's name: it only closes the segment, which the cleaner leaves alone while it is open.
        await (await producer.send(MODEL_UPDATES, b"close the segment", b"{}", []))
        return [record.value for record in await records_of(settings, b"v1")] == [value]

    await eventually(one_left, what="one record of v1 is left", within_s=120)


async def test_compaction_to_a_bad_record_loses_no_version(settings: Settings) -> None:
    async with Producer(settings, "test") as producer, VersionFollower(settings, unheard) as holder:
        first = (await publish_version(producer, GOOD)).offset
        bad = (await (await producer.send(MODEL_UPDATES, b"v1", BAD, []))).offset

        async def followed() -> bool:
            return holder.book.displaced == {"v1": bad}

        await eventually(followed, what="the holder has read the bad record")
        assert holder.book.active == "v1"
        await compacted(settings, producer, BAD)
        assert (await read_versions(settings)).records == {}

        async with VersionFollower(settings, unheard) as late:  # a process that starts now
            assert late.book.active is None
            repair = VersionRepair(settings, holder.book)  # as in a role; held back until now
            repair.begin()

            async def told() -> bool:
                return late.book.active == "v1"

            await eventually(told, what="the late process knows the version")
            await repair.end()
        await compacted(settings, producer, GOOD.encode())
        book = await read_versions(settings)
        assert (book.active, book.records["v1"], book.order_of("v1"), book.displaced) == ("v1", GOOD, first, {})
