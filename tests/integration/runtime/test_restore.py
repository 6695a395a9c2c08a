"""A new broker on an old folder: orders, positions, items and versions are what they were before the restart."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from aif_stream.bus.consuming import Partition
from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import (
    DEAD_LETTERS,
    ITEM_UPDATES,
    MODEL_UPDATES,
    USER_UPDATES,
)
from aif_stream.bus.versions import publish_version, read_versions
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.embedded.segments import Segments
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite, StoredItem
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import manifest_sha256
from aif_stream.retrieval.feeds import Feeds
from aif_stream.runtime.restore import Restore
from aif_stream.settings import Settings
from tests.journal_builders import Life, everything, life
from tests.nearline_builders import T0_MS, Events, artefact, item_line, worker
from tests.stack import eventually


async def stored(settings: Settings, *names: str) -> list[StoredItem | None]:
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        return await store.read_items([key_of(name) for name in names])


@pytest.mark.parametrize("killed", [False, True])
async def test_new_event_never_loses_to_an_old_offset(redis_url: str, tmp_path: Path, killed: bool) -> None:
    """Order is (event time, offset), kept in Redis. ``killed``: the journal lacks records whose effects Redis has, more
    of them than SIGKILL would take."""
    folder = tmp_path / "journal"
    async with life(folder, redis_url, tmp_path) as first:
        await eventually(first.is_kept, what="the journal has caught up")
        await asyncio.to_thread(shutil.copytree, folder, tmp_path / "copy")
        async with worker(first.settings), Producer(first.settings, "test") as producer:
            events = Events(producer)
            for price in range(5):
                await events.item("one", T0_MS, attributes={"price": price})
            await events.item("two", T0_MS)
            for age in range(5):
                await events.user("anna", T0_MS, {"age": age})
            await eventually(lambda: are_stored(first.settings, "one", "two"), what="both items are stored")
        (old,) = await stored(first.settings, "one")
    assert old is not None
    for start in range(2):
        async with life(tmp_path / "copy" if killed else folder, redis_url, tmp_path) as again, worker(again.settings):
            async with Producer(again.settings, "test") as producer:
                events = Events(producer)
                await events.item("one", T0_MS - 1, attributes={"price": -1})
                order = Order(T0_MS, await events.item("one", T0_MS, attributes={"price": 99}))
                await events.user("anna", T0_MS, {"start": start})
            assert order > old.order
            old = await eventually(partial(stored_with, again.settings, "one", order), what="the new event is stored")
            assert json.loads(old.payload)["attributes"] == {"price": 99}
            await eventually(partial(profile_is, again.settings, {"start": start}), what="the new profile is stored")


async def stored_with(settings: Settings, name: str, order: Order) -> StoredItem | None:
    (found,) = await stored(settings, name)
    return found if found is not None and found.order == order else None


async def profile_is(settings: Settings, attributes: dict[str, int]) -> bool:
    async with open_redis(settings) as redis:
        found = await HistoryStore(redis, settings.history_long).read(key_of("anna"))
    return found.attributes == attributes


async def are_stored(settings: Settings, *names: str) -> bool:
    return all(item is not None for item in await stored(settings, *names))


async def test_updates_that_nobody_read_are_processed_after_a_restart(redis_url: str, tmp_path: Path) -> None:
    """And those that were read are not processed again: no second dead letter, no second row."""
    folder = tmp_path / "journal"
    async with life(folder, redis_url, tmp_path) as first:
        async with worker(first.settings), Producer(first.settings, "test") as producer:
            await Events(producer).item("read", T0_MS, value=b"{")
            await Events(producer).item("read", T0_MS)
            await Events(producer).user("anna", T0_MS, {"city": "oslo"})
            await eventually(lambda: are_stored(first.settings, "read"), what="the first item is stored")
            await eventually(lambda: everything(first.settings, DEAD_LETTERS), what="the bad one is put aside")
        async with Producer(first.settings, "test") as producer:
            await Events(producer).item("unread", T0_MS)
            await Events(producer).item("unread", T0_MS, value=b"{")
            await Events(producer).user("bert", T0_MS, {"city": "rome"})
    async with life(folder, redis_url, tmp_path) as again:
        assert [record[3] for record in await everything(again.settings, USER_UPDATES)] == [b"bert"]
        assert {record[3] for record in await everything(again.settings, ITEM_UPDATES)} == {b"read", b"unread"}
        async with worker(again.settings):
            await eventually(lambda: are_stored(again.settings, "unread"), what="the second item is stored")

            async def letters() -> bool:
                return len(await everything(again.settings, DEAD_LETTERS)) == 2

            await eventually(letters, what="each bad record is a dead letter, once")


@pytest.mark.parametrize(
    ("where", "step"),
    [(Segments, "begin"), (Restore, "_name"), (MarkBook, "put"), (MarkBook, "remove"), (Segments, "drop_before")],
)
async def test_interrupted_restore_is_repeated(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: type, step: str
) -> None:
    """SIGKILL in the middle of a start: the next one finds old marks and files, or the new ones."""
    folder = tmp_path / "journal"
    async with life(folder, redis_url, tmp_path) as first, Producer(first.settings, "test") as producer:
        for n in range(20):
            await Events(producer).item(f"item-{n}", T0_MS)
            await Events(producer).user(f"user-{n}", T0_MS, {"n": n})
    calls = 0

    def killed(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, step, killed)
        with pytest.raises(KeyboardInterrupt):
            async with life(folder, redis_url, tmp_path):
                pass
    assert calls
    names = [f"item-{n}" for n in range(20)]
    async with life(folder, redis_url, tmp_path) as again, worker(again.settings):
        await eventually(lambda: are_stored(again.settings, *names), what="every item is stored")
        kept = {record[3] for record in await everything(again.settings, USER_UPDATES)}
        assert kept == {f"user-{n}".encode() for n in range(20)}


async def test_quiet_groups_have_no_lag_after_a_restart(redis_url: str, tmp_path: Path) -> None:
    for _ in range(2):
        async with life(tmp_path / "journal", redis_url, tmp_path) as first, worker(first.settings):
            async with Producer(first.settings, "test") as producer:
                await Events(producer).item("one", T0_MS)
            partitions = [partition for partition in first.journal.files if partition.topic == ITEM_UPDATES]

            async def committed(life: Life = first, wanted: list[Partition] = partitions) -> bool:
                return await life.log.commits(ITEMS_GROUP, wanted) == await life.log.ends(wanted)

            await eventually(committed, what="every partition is committed to its end")


async def test_versions_keep_state_and_artefact_of_a_moved_folder(redis_url: str, tmp_path: Path) -> None:
    home, moved = tmp_path / "home", tmp_path / "moved"
    sha = manifest_sha256(artefact(home / "models" / "m1"))
    records = [
        VersionRecord(version=name, state=state, artefact=str(where), manifest_sha256=sha, created_ms=1, activation=n)
        for name, state, where, n in (
            ("m1", VersionState.READY, home / "models" / "m1", 0),
            ("m2", VersionState.ACTIVE, "/elsewhere/m2", 1),
            ("m1", VersionState.ACTIVE, home / "models" / "m1", 2),
            ("m3", VersionState.RETIRED, "/elsewhere/m3", 0),
        )
    ]
    async with life(home / "journal", redis_url, home) as first:
        async with Producer(first.settings, "test") as producer:
            for record in records:
                await publish_version(producer, record)
            await (await producer.send(MODEL_UPDATES, b"m1", b"[" * 3000, []))
        before = await read_versions(first.settings)
    home.rename(moved)
    for _ in range(2):
        async with life(moved / "journal", redis_url, moved) as again:
            book = await read_versions(again.settings)
            assert (book.active, book.activation, book.state_of("m2")) == ("m1", 2, VersionState.READY)
            assert book.records.pop("m1") == with_artefact(before.records["m1"], str(moved / "models" / "m1"))
            assert book.records == {name: before.records[name] for name in ("m2", "m3")}
            assert len(await everything(again.settings, MODEL_UPDATES)) == 3, "one record per version"


def with_artefact(record: VersionRecord, artefact: str) -> VersionRecord:
    return msgspec.structs.replace(record, artefact=artefact)


async def test_more_items_than_the_broker_holds_reach_retrieval(redis_url: str, tmp_path: Path) -> None:
    """Restoring waits for retrieval: 8 MB in one partition, of which the broker keeps 5 MiB."""
    names = [str(n) for n in range(400)]
    folder = tmp_path / "journal"
    one = {ITEM_UPDATES: 1}
    async with life(folder, redis_url, tmp_path, partitions=one) as first, worker(first.settings):
        pass
    async with open_redis(first.settings) as redis:
        store = N2OStore(redis, Buckets(first.settings.index_buckets))
        for n, name in enumerate(names):
            payload = item_line(name, note=os.urandom(20_000).hex())
            await store.write_live([ItemWrite(key_of(name), name, Order(T0_MS, n), payload)], {})
    feeds: list[Feeds] = []
    async with asyncio.TaskGroup() as tasks:

        def reader(settings: Settings) -> Callable[[int], Awaitable[None]]:
            feeds.append(Feeds(settings))
            reading = tasks.create_task(feeds[0].run())
            tasks.create_task(until_read(feeds[0], len(names), reading))

            async def read_back(count: int) -> None:
                await eventually(lambda: has_read(feeds[0], count), what=f"retrieval has read {count} items")

            return read_back

        async with life(folder, redis_url, tmp_path, reader=reader, partitions=one) as again:
            assert again.items == len(names)
            await eventually(lambda: has_read(feeds[0], len(names)), what="retrieval knows every item")
            in_broker = await everything(again.settings, ITEM_UPDATES)
            assert len(in_broker) < len(names), "the broker has dropped the oldest"


async def has_read(feeds: Feeds, count: int) -> bool:
    return feeds.catalogue.alive >= count


async def until_read(feeds: Feeds, count: int, reading: asyncio.Task[None]) -> None:
    await eventually(lambda: has_read(feeds, count), what="retrieval knows every item", within_s=100)
    reading.cancel()


async def test_emptied_redis_is_reported(redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with life(tmp_path / "journal", redis_url, tmp_path) as first, worker(first.settings):
        async with Producer(first.settings, "test") as producer:
            await Events(producer).item("one", T0_MS)
        await eventually(lambda: are_stored(first.settings, "one"), what="the item is stored")
    async with open_redis(first.settings) as redis:
        await redis.everywhere("FLUSHALL")
    async with life(tmp_path / "journal", redis_url, tmp_path) as again, worker(again.settings):
        assert "redis.empty" in caplog.text
        await eventually(lambda: are_stored(again.settings, "one"), what="the journal still has the item")
