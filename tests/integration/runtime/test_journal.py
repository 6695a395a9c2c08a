"""The journal of the embedded broker: records, offsets and commits after a stop, SIGKILL or a full disk."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from aif_stream.bus.consuming import Partition
from aif_stream.bus.groups import EXPLAIN_GROUPS
from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import (
    BEHAVIORS,
    DEAD_LETTERS,
    EXPLANATION_REQUESTS,
    N2O_ROWS,
    REQUESTS,
)
from aif_stream.errors import DataFolderError
from aif_stream.settings import Settings
from tests.journal_builders import everything, life
from tests.nearline_builders import T0_MS
from tests.stack import eventually

ALL = (BEHAVIORS, DEAD_LETTERS, REQUESTS, *EXPLANATION_REQUESTS.values())


async def produce(settings: Settings, topics: tuple[str, ...], count: int) -> None:
    async with Producer(settings, "test", linger_ms=0) as producer:
        for topic in topics:
            acks = []
            for n in range(count):
                value = None if n % 7 == 0 else b"%s %d" % (topic.encode(), n) * 10
                ack = await producer.send(topic, b"k%d" % (n % 11), value, [("ce_id", b"%d" % n), ("empty", b"")])
                acks.append(ack)
                if n % 2:
                    await ack  # a batch of its own
            await asyncio.gather(*acks)


async def test_records_keep_offset_time_and_bytes(redis_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    async with life(folder, redis_url, tmp_path) as first:
        await produce(first.settings, (*ALL, N2O_ROWS), 40)
        before = {topic: await everything(first.settings, topic) for topic in ALL}
    for _ in range(2):
        async with life(folder, redis_url, tmp_path) as again:
            for topic in ALL:
                assert len(before[topic]) == 40
                assert await everything(again.settings, topic) == before[topic]
            assert await everything(again.settings, N2O_ROWS) == [], "mirrors load from Redis"
    async with life(folder, redis_url, tmp_path) as again:
        await produce(again.settings, (BEHAVIORS,), 1)
        (new,) = set(await everything(again.settings, BEHAVIORS)) - set(before[BEHAVIORS])
        assert new[1] == 1 + max(at for number, at, *_ in before[BEHAVIORS] if number == new[0])


async def test_stop_keeps_every_acknowledged_record(redis_url: str, tmp_path: Path) -> None:
    """A producer that goes on until it is refused: what it was told is there afterwards."""
    acknowledged: list[int] = []

    async def go_on(settings: Settings, under_way: asyncio.Event) -> None:
        async with Producer(settings, "test", linger_ms=0) as producer:
            producer.close_deadline_s = 0.0
            for n in range(10**6):
                ack = await producer.send(BEHAVIORS, b"k", b"%d" % n, [])
                await ack
                acknowledged.append(n)
                under_way.set()

    async with life(tmp_path / "journal", redis_url, tmp_path) as first:
        under_way = asyncio.Event()
        going_on = asyncio.create_task(go_on(first.settings, under_way))
        await under_way.wait()
    going_on.cancel()
    await asyncio.gather(going_on, return_exceptions=True)
    async with life(tmp_path / "journal", redis_url, tmp_path) as again:
        kept = [int(value) for *_, value, _ in await everything(again.settings, BEHAVIORS)]
    assert kept[: len(acknowledged)] == acknowledged


async def test_kill_at_any_moment_loses_only_the_last_records(redis_url: str, tmp_path: Path) -> None:
    """A copy of the folder, made while records arrive, is what SIGKILL would have left."""
    folder, copies = tmp_path / "journal", [tmp_path / f"copy-{n}" for n in range(4)]
    async with life(folder, redis_url, tmp_path) as first:
        for copy in copies:
            await eventually(first.is_kept, what="the journal has caught up")
            copying = asyncio.to_thread(shutil.copytree, folder, copy)
            await asyncio.gather(produce(first.settings, (DEAD_LETTERS,), 100), copying)
        before = await everything(first.settings, DEAD_LETTERS)
    for number, copy in enumerate(copies):
        (newest,) = sorted((copy / DEAD_LETTERS / "0").glob("*.log"))
        os.truncate(newest, max(0, newest.stat().st_size - number))  # a write that was under way
        async with life(copy, redis_url, tmp_path) as again:
            kept = await everything(again.settings, DEAD_LETTERS)
            assert kept == before[: len(kept)]
            assert len(kept) >= 100 * number - 2, "at most the torn batch is missing"


async def test_letters_keep_their_numbers_when_old_ones_are_gone(redis_url: str, tmp_path: Path) -> None:
    async with life(tmp_path / "journal", redis_url, tmp_path) as first:
        async with Producer(first.settings, "test", linger_ms=0) as producer:
            for _ in range(30):
                await (await producer.send(DEAD_LETTERS, b"k", os.urandom(400_000), [("aif_reason", b"test")]))
        before = await everything(first.settings, DEAD_LETTERS)
        await eventually(first.is_kept, what="the journal has caught up")
    async with life(tmp_path / "journal", redis_url, tmp_path) as again:
        assert await everything(again.settings, DEAD_LETTERS) == before, "what the broker held, it holds again"
        assert before[0][1] > 0
        async with LetterLog(again.settings) as letters:
            assert list(letters.book.entries) == [at for _, at, *_ in before]
    size = sum(path.stat().st_size for path in (tmp_path / "journal" / DEAD_LETTERS / "0").glob("*.log"))
    assert size < 7 * 1024 * 1024, "the folder is bounded"


async def test_batch_with_a_wrong_crc_does_not_stop_the_journal(redis_url: str, tmp_path: Path) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, T0_MS, b"k", b"value", [])
    good = bytes(builder.build())
    async with life(tmp_path / "journal", redis_url, tmp_path) as first:
        for data in (good, good[:-1] + b"?", good):
            await first.log.append({Partition(BEHAVIORS, 3): data})
        await eventually(first.is_kept, what="the journal has caught up")
    async with life(tmp_path / "journal", redis_url, tmp_path) as again:
        assert (await again.log.ends([Partition(BEHAVIORS, 3)]))[Partition(BEHAVIORS, 3)] == 3
        assert [(at, value) for _, at, _, _, value, _ in await everything(again.settings, BEHAVIORS)] == [
            (0, b"value"),
            (2, b"value"),
        ]


async def test_commits_of_a_group_survive(redis_url: str, tmp_path: Path) -> None:
    (group, topic), *_ = EXPLAIN_GROUPS.items()
    places = {Partition(topic, 0): 3, Partition(topic, 1): 1}
    async with life(tmp_path / "journal", redis_url, tmp_path) as first:
        await produce(first.settings, (topic,), 40)
        await first.log.commit(group, places)
    async with life(tmp_path / "journal", redis_url, tmp_path) as again:
        assert await again.log.commits(group, [Partition(topic, n) for n in range(4)]) == places


async def test_full_disk_ends_the_journal_with_the_file_and_a_hint(redis_url: str, tmp_path: Path) -> None:
    problem = rf"{BEHAVIORS}/\d/0+.log: No space left on device → free space"
    with pytest.raises(DataFolderError, match=problem):  # noqa: PT012 - raised where the journal is closed
        async with life(tmp_path / "journal", redis_url, tmp_path) as first:
            for files in first.journal.files.values():
                os.close(files._last)
                files._last = os.open("/dev/full", os.O_WRONLY)  # stands in for a disk that is full from now on
            await produce(first.settings, (BEHAVIORS,), 1)
            await asyncio.wait_for(first.failed, 30)
