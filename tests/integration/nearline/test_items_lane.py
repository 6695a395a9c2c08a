"""The items lane on an embedded broker and Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from aif_stream.bus.events import event_headers
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES, N2O_ROWS
from aif_stream.domain.events import EventType
from aif_stream.domain.row import TOMBSTONE
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.changelog import LIVE, decode_head, decode_rows, decode_superseded
from aif_stream.index.keys import Buckets
from tests.conftest import BrokerFactory
from tests.nearline_builders import BUCKETS, T0_MS, Stack, item_line, nearline_settings, open_stack, worker
from tests.stack import eventually, topics


async def test_an_item_update_becomes_the_rows_of_the_live_version(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        line = item_line("7", content_vector=[0.5] * 12)
        await stack.put.item("7", T0_MS, line)
        stored = await stack.has("7", T0_MS)
        assert stored.payload == line
        await stack.check_row("7", line, T0_MS)


async def test_features_are_stored_while_no_version_is_live_and_the_first_version_is_rebuilt_from_them(
    stack: Stack, tmp_path: Path
) -> None:
    async with worker(stack.settings):
        for number in range(20):
            await stack.put.item(str(number), T0_MS + number)
            await stack.has(str(number), T0_MS + number)
        await stack.publish_model(tmp_path)
        for number in range(20):
            await stack.check_row(str(number), item_line(str(number)), T0_MS + number)


async def test_a_late_event_is_rejected_and_the_winner_is_published_again(stack: Stack) -> None:
    async with worker(stack.settings):
        winner = item_line("7", attributes={"price": 9.0})
        first = await stack.put.item("7", T0_MS + 100, winner)
        await stack.has("7", T0_MS + 100)
        await stack.put.item("7", T0_MS)
        records = await stack.topic(ITEM_UPDATES, 3)
        assert records[-1].value == winner
        await stack.put.item("8", T0_MS)
        await stack.has("8", T0_MS)
        assert (await stack.has("7", T0_MS + 100, first)).payload == winner
    assert len(await stack.topic(ITEM_UPDATES, 4)) == 4, "the winner is published again once"


async def test_a_winner_published_again_does_not_beat_a_later_event_of_the_same_millisecond(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.item("7", T0_MS + 100, item_line("7", attributes={"price": 1.0}))
        await stack.has("7", T0_MS + 100)
        await stack.put.item("7", T0_MS)
        newest = await stack.put.item("7", T0_MS + 100, item_line("7", attributes={"price": 2.0}))
        await stack.topic(ITEM_UPDATES, 4)
        await stack.put.item("8", T0_MS)
        await stack.has("8", T0_MS)
        assert b"2.0" in (await stack.has("7", T0_MS + 100, newest)).payload


async def test_a_late_event_of_the_same_batch_is_followed_by_its_winner(stack: Stack) -> None:
    first = await stack.put.item("7", T0_MS + 100)
    await stack.put.item("7", T0_MS)
    async with worker(stack.settings):
        await stack.has("7", T0_MS + 100, first)
        assert (await stack.topic(ITEM_UPDATES, 3))[-1].value == item_line("7")


async def test_a_removed_item_does_not_come_back_by_a_late_event(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        await stack.put.item("7", T0_MS)
        await stack.put.removal("7", T0_MS + 100)
        assert (await stack.has("7", T0_MS + 100)).removed
        await stack.put.item("7", T0_MS + 50)
        assert (await stack.topic(ITEM_UPDATES, 4))[-1].value is None
        await stack.put.item("8", T0_MS)
        await stack.has("8", T0_MS)
        assert (await stack.has("7", T0_MS + 100)).removed
        _, found = await stack.store.read_rows(stack.model.name, stack.model.layout, np.array([7], dtype=np.uint64))
        assert not found[0]
        async for keys, rows in stack.store.scan_rows(Buckets(BUCKETS).of(7), stack.model.name, stack.model.layout):
            assert all(rows["flags"][keys == 7] & TOMBSTONE)


async def test_poison_becomes_dead_letters_and_the_stream_goes_on(stack: Stack) -> None:
    headers = event_headers(EventType.ITEM_UPSERTED, "1", "test", T0_MS)
    future = event_headers(EventType.ITEM_UPSERTED, "2", "test", 32_503_680_000_000)
    async with worker(stack.settings):
        await stack.put.raw(ITEM_UPDATES, b"1", b"{not json", headers)
        await stack.put.raw(ITEM_UPDATES, b"2", b'{"item_id": "2"}', headers)
        await stack.put.raw(ITEM_UPDATES, b"3", item_line("3"), ())
        await stack.put.raw(ITEM_UPDATES, b"4", item_line("4"), future)
        await stack.put.item("5", T0_MS)
        await stack.has("5", T0_MS)
        letters = await stack.topic(DEAD_LETTERS, 4)
    reasons = {record.key: dict(record.headers)["aif_reason"] for record in letters}
    assert reasons == {b"1": b"unreadable", b"2": b"invalid", b"3": b"envelope", b"4": b"future"}


async def test_an_item_that_a_version_cannot_use_is_stored_with_an_invalid_row(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        line = item_line("7", content_vector=[1.0, 2.0])
        await stack.put.item("7", T0_MS, line)
        assert (await stack.has("7", T0_MS)).payload == line
        rows, found = await stack.store.read_rows(stack.model.name, stack.model.layout, np.array([7], dtype=np.uint64))
        assert found[0]
        assert rows["flags"][0] == 0


async def test_redelivered_events_change_nothing_and_reach_the_change_log_again(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        await stack.put.item("7", T0_MS)
        before = await stack.has("7", T0_MS)
        log = await stack.topic(N2O_ROWS, 1)
    for key in await stack.redis.call("KEYS", "aif:mark:*"):
        await stack.redis.call("DEL", key)
    async with worker(stack.settings):
        again = await stack.topic(N2O_ROWS, len(log) + 1)
        assert await stack.items("7") == [before]
    record = again[-1]
    head = decode_head(record.headers)
    keys, rows = decode_rows(head, stack.model.layout, record.value)
    assert head.version == stack.model.name
    assert keys.tolist() == [7]
    assert rows["event_time_ms"].tolist() == [T0_MS]


async def test_every_update_of_a_batch_is_in_the_change_log_as_a_row_or_beside_the_one_that_superseded_it(
    stack: Stack, tmp_path: Path
) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
    for number in range(30):  # of five items; how many batches they make is the lane's affair
        await stack.put.item(str(number % 5), T0_MS + number)
    expected = {(number % 5, T0_MS + number) for number in range(30)}

    seen: set[tuple[int, int]] = set()

    async with worker(stack.settings), LogReader(stack.settings, N2O_ROWS) as reader:

        async def told() -> bool:
            for record in await reader.poll():
                head = decode_head(record.headers)
                if head.lane == LIVE:
                    keys, rows = decode_rows(head, stack.model.layout, record.value)
                    seen.update(zip(keys.tolist(), rows["event_time_ms"].tolist(), strict=True))
                    seen.update((int(keys[row]), ms) for row, ms in decode_superseded(head, len(rows)).tolist())
            return seen >= expected

        await eventually(told, what="all thirty updates are in the change log")
    assert seen == expected


async def test_an_emptied_redis_is_filled_again_from_the_topic_with_the_rows_of_live_versions(
    stack: Stack, tmp_path: Path
) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        for number in range(30):
            await stack.put.item(str(number), T0_MS + number)
            await stack.has(str(number), T0_MS + number)
        await stack.redis.call("FLUSHALL")
        for number in range(30):
            await stack.has(str(number), T0_MS + number)
            await stack.check_row(str(number), item_line(str(number)), T0_MS + number)


async def test_the_lane_waits_for_a_redis_that_is_away_and_goes_on(
    embedded_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    async with EmbeddedRedis() as server:
        settings = nearline_settings(broker.bootstrap, server.url, tmp_path)
        async with open_stack(settings) as stack, worker(settings):
            await stack.put.item("1", T0_MS)
            await stack.has("1", T0_MS)
            await server.stop()
            await stack.put.item("2", T0_MS)
            await server.start()
            await stack.has("2", T0_MS)


async def test_a_worker_that_is_stopped_while_redis_is_away_ends_and_its_successor_repeats_the_events(
    embedded_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    async with EmbeddedRedis() as server:
        settings = nearline_settings(broker.bootstrap, server.url, tmp_path)
        async with open_stack(settings) as stack:
            async with worker(settings) as running:
                await stack.put.item("0", T0_MS)
                await stack.has("0", T0_MS)  # it has its partitions: else it would wait for Redis before it reads
                await server.stop()
                await stack.put.item("1", T0_MS)
                lane = running.lanes[0]

                async def waits() -> bool:
                    return lane.lag_ms > 200

                await eventually(waits, what="the lane holds the event back")
            await server.start()
            async with worker(settings):
                await stack.has("1", T0_MS)


async def test_the_lane_goes_on_after_an_outage_of_kafka(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = nearline_settings(broker.bootstrap, redis_url, tmp_path)
    async with worker(settings), open_stack(settings) as stack:
        await stack.put.item("1", T0_MS)
        await stack.has("1", T0_MS)
        await broker.set_down()
        sending = asyncio.create_task(stack.put.item("2", T0_MS))
        await broker.set_up()
        await sending
        await stack.has("2", T0_MS)
