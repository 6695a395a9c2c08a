"""Records of ``aif.model-updates`` that cannot be used: the last good state stays, and is written again behind them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aif_stream.bus import version_repair
from aif_stream.bus.events import FIRST_OFFSET
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.bus.version_repair import rewrite_displaced
from aif_stream.bus.versions import VersionFollower, publish_version, read_versions
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.settings import Settings
from tests.hostile_builders import version_values
from tests.integration.bus.conftest import Bus
from tests.integration.bus.test_publishing import read_all
from tests.stack import eventually


def version(name: str, state: VersionState, activation: int = 0) -> VersionRecord:
    return VersionRecord(
        version=name, state=state, artefact="/m", manifest_sha256="0", created_ms=1, activation=activation
    )


V1 = version("v1", VersionState.ACTIVE, 1)


async def unheard(_book: VersionBook, _record: VersionRecord) -> None:
    """The book is all that is asked."""


async def put(producer: Producer, key: str, value: bytes | None, first: int | None = None) -> int:
    headers = [] if first is None else [(FIRST_OFFSET, b"%d" % first)]
    return (await (await producer.send(MODEL_UPDATES, key.encode(), value, headers))).offset


async def last_value(settings: Settings, key: str) -> bytes | None:
    """What compaction would keep."""
    return [record.value for record in await read_all(settings, MODEL_UPDATES) if record.key == key.encode()][-1]


async def test_a_bad_record_leaves_the_last_good_state_in_force(bus: Bus) -> None:
    followed: list[str] = []

    async def on_record(book: VersionBook, record: VersionRecord) -> None:
        assert book.active == "v1"
        followed.append(record.version)

    bad = version_values(V1.encode())
    async with Producer(bus.settings, "test") as producer:
        await publish_version(producer, V1)
        async with VersionFollower(bus.settings, on_record):
            for number, value in enumerate(bad.values()):
                offset = await put(producer, "v1", value)
                await publish_version(producer, version(f"good-{number}", VersionState.READY))

            async def all_followed() -> bool:
                return len(followed) == len(bad)

            await eventually(all_followed, what="every good record is followed")
        offset = await put(producer, "v1", None)
    book = await read_versions(bus.settings)
    assert (book.active, book.records["v1"], len(book.records)) == ("v1", V1, len(bad) + 1)
    assert book.displaced == {"v1": offset}


async def test_a_role_that_holds_the_good_record_writes_it_again(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        first = (await publish_version(producer, V1)).offset
        async with VersionFollower(bus.settings, unheard, repairs=True) as follower:
            for value in (*version_values(V1.encode()).values(), None):
                await put(producer, "v1", value)

            async def mended() -> bool:
                return not follower.book.displaced and await last_value(bus.settings, "v1") == V1.encode()

            await eventually(mended, what="the good record is the last one")
    book = await read_versions(bus.settings)
    assert (book.records, book.displaced, book.order_of("v1")) == ({"v1": V1}, {}, first)


async def test_a_role_that_starts_behind_a_bad_record_repairs_it(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        await publish_version(producer, V1)
        await put(producer, "v1", b"{")
    async with VersionFollower(bus.settings, unheard, repairs=True) as follower:

        async def mended() -> bool:
            return not follower.book.displaced

        await eventually(mended, what="the good record is the last one")
    assert await last_value(bus.settings, "v1") == V1.encode()


async def test_several_holders_repair_once_each_at_most(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_repair, "_AFTER_S", (0.0, 0.0))  # all at once
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(bus.settings, "test"))
        await publish_version(producer, V1)
        made = [VersionFollower(bus.settings, unheard, repairs=True) for _ in range(3)]
        followers = [await stack.enter_async_context(follower) for follower in made]
        bad = await put(producer, "v1", b"{")

        async def mended() -> bool:
            return not any(follower.book.displaced for follower in followers)

        await eventually(mended, what="every holder sees the good record again")
        await publish_version(producer, version("v2", VersionState.READY))

        async def told() -> bool:
            return all("v2" in follower.book.records for follower in followers)

        await eventually(told, what="every holder has read on")
    behind = [record for record in await read_all(bus.settings, MODEL_UPDATES) if record.offset > bad]
    copies = [record for record in behind if record.key == b"v1"]
    assert 1 <= len(copies) <= 3
    assert {record.value for record in copies} == {V1.encode()}
    assert (await read_versions(bus.settings)).active == "v1"


async def test_a_copy_written_too_late_does_not_beat_a_newer_record(bus: Bus) -> None:
    """A holder that stood still writes an old state again behind a newer one; the newer one is written again."""
    old, new = version("v1", VersionState.READY), version("v1", VersionState.ACTIVE, 1)
    async with Producer(bus.settings, "test") as producer:
        first = (await publish_version(producer, old)).offset
        await put(producer, "v1", b"{")
        newer = (await publish_version(producer, new)).offset
        late = await put(producer, "v1", old.encode(), first)
    book = await read_versions(bus.settings)
    assert (book.records["v1"], book.active, book.displaced) == (new, "v1", {"v1": late})
    assert await rewrite_displaced(bus.settings, book) == ["v1"]
    book = await read_versions(bus.settings)
    assert (book.records["v1"], book.order_of("v1"), book.displaced) == (new, newer, {})
    assert await last_value(bus.settings, "v1") == new.encode()
    assert await rewrite_displaced(bus.settings, book) == []


async def test_a_first_offset_that_is_no_offset_is_ignored(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        for value in (b"9" * 5_000, b"-1", b"", b"\xff", b"1" + b"0" * 30):
            headers = [(FIRST_OFFSET, value), (FIRST_OFFSET, None), (FIRST_OFFSET, value)]
            await (await producer.send(MODEL_UPDATES, b"v1", V1.encode(), headers))  # type: ignore[arg-type]
    book = await read_versions(bus.settings)
    assert (book.active, book.order_of("v1"), book.displaced) == ("v1", 4, {})


async def test_a_repair_that_kafka_cannot_take_is_tried_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_repair, "_AGAIN_S", 0.05)
    monkeypatch.setattr(version_repair, "_DEADLINE_S", 1.0)
    async with Producer(bus.settings, "test") as producer:
        await publish_version(producer, V1)
        async with VersionFollower(bus.settings, unheard, repairs=True) as follower:
            tried = asyncio.Event()
            real = version_repair.rewrite_displaced

            async def watched(settings: Settings, book: VersionBook, repaired: version_repair.Repaired) -> list[str]:
                tried.set()
                return await real(settings, book, repaired)

            monkeypatch.setattr(version_repair, "rewrite_displaced", watched)
            await put(producer, "v1", b"{")

            async def displaced() -> bool:
                return "v1" in follower.book.displaced

            await eventually(displaced, what="the bad record is read")
            await bus.broker.set_down()
            async with asyncio.timeout(60):
                await tried.wait()
            await bus.broker.set_up()

            async def mended() -> bool:
                return not follower.book.displaced

            await eventually(mended, what="the good record is the last one")
