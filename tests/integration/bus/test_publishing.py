"""Publisher, dead letters and versions against the embedded broker: lines in, records out, truthful summaries."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aif_stream.bus.consumer import Record
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.events import behavior_from_record, item_from_record, user_from_record
from aif_stream.bus.lines import Reject
from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher, PublishSummary
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS, ITEM_UPDATES, MODEL_UPDATES, USER_UPDATES
from aif_stream.bus.versions import VersionFollower, publish_version, read_versions
from aif_stream.clock import now_ms
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.errors import BadInput, PublishError
from aif_stream.settings import Settings
from aif_stream.telemetry import DEAD_LETTERS as DEAD_LETTER_COUNT
from tests.bus_builders import FakeRecord
from tests.integration.bus.conftest import Bus


async def read_all(settings: Settings, topic: str) -> list[Record]:
    records: list[Record] = []
    async with LogReader(settings, topic) as reader, asyncio.timeout(30):
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            records += await reader.poll()
    return records


def line(number: int, **more: Any) -> bytes:
    return json.dumps({"item_id": number, "category": "c", **more}).encode()


async def test_published_events_are_read_back_as_they_were_given(bus: Bus) -> None:
    async with EventPublisher(bus.settings, source="shop") as publisher:
        acks = [
            await publisher.item(
                7, category="books", attributes={"price": 9.5}, content_vector=[1, 2], event_time_ms=5, extra={"x": 1}
            ),
            await publisher.user("u", attributes={"age": 3}, event_time_ms=6),
            await publisher.behavior("u", 7, "click", event_time_ms=7),
            await publisher.remove(8, event_time_ms=8),
        ]
        for ack in acks:
            await ack
    item, removal = sorted(
        (item_from_record(r) for r in await read_all(bus.settings, ITEM_UPDATES)), key=lambda e: e.key
    )
    assert item.item is not None
    assert item.payload is not None
    assert (item.order.event_time_ms, item.item.attributes, json.loads(item.payload)["x"]) == (5, {"price": 9.5}, 1)
    assert (removal.key, removal.order.event_time_ms, removal.item) == (8, 8, None)
    (user,) = [user_from_record(r) for r in await read_all(bus.settings, USER_UPDATES)]
    assert (user.id_text, user.order.event_time_ms) == ("u", 6)
    (behavior,) = [behavior_from_record(r) for r in await read_all(bus.settings, BEHAVIORS)]
    assert (behavior.item_key, behavior.event_time_ms) == (7, 7)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"item_id": -1, "category": "c"}, "item_id"),
        ({"item_id": 1, "category": ""}, "category"),
        ({"item_id": 1, "category": "c", "content_vector": [math.nan]}, "content_vector"),
        ({"item_id": 1, "category": "c", "attributes": {"a": math.inf}}, "attributes"),
        ({"item_id": 1, "category": "c", "event_time_ms": -1}, "event_time_ms"),
        ({"item_id": 1, "category": "c", "event_time_ms": now_ms() + 10**9}, "event_time_ms"),
    ],
)
async def test_a_wrong_event_is_refused_with_its_field(bus: Bus, fields: dict[str, Any], field: str) -> None:
    async with EventPublisher(bus.settings) as publisher:
        with pytest.raises(BadInput) as caught:
            await publisher.item(**fields)
    assert caught.value.field == field


async def test_wrong_lines_are_rejected_with_their_numbers_and_the_others_are_sent(bus: Bus) -> None:
    lines = [line(1), b"", b"nope", line(2), b"   ", line(-3), line(4, event_time_ms=77), line(5, event_time_ms=10**14)]
    kept: list[tuple[Reject, bytes]] = []
    async with EventPublisher(bus.settings) as publisher:
        summary = await publisher.publish_lines(
            "items", lines, on_reject=lambda reject, raw: kept.append((reject, raw))
        )
    assert (summary.sent, summary.acknowledged, summary.rejected, summary.complete) == (3, 3, 3, True)
    assert [reject.line for reject in summary.rejects] == [3, 6, 8]
    assert summary.rejects[1].problem.startswith("item_id:")
    assert kept == list(zip(summary.rejects, [lines[2], lines[5], lines[7]], strict=True))
    events = {e.key: e for e in map(item_from_record, await read_all(bus.settings, ITEM_UPDATES))}
    assert set(events) == {1, 2, 4}
    assert events[4].order.event_time_ms == 77
    assert abs(events[1].order.event_time_ms - now_ms()) < 60_000


async def test_many_lines_keep_the_order_of_each_key_and_every_id_is_used_once(bus: Bus) -> None:
    lines = [line(n % 50, n=n) for n in range(20_000)]
    async with EventPublisher(bus.settings) as publisher:
        summary = await publisher.publish_lines("items", lines)
    assert (summary.sent, summary.acknowledged, summary.rejected) == (20_000, 20_000, 0)
    seen: dict[bytes | None, list[int]] = {}
    ids = set()
    for record in sorted(await read_all(bus.settings, ITEM_UPDATES), key=lambda r: r.offset):
        assert record.value is not None
        seen.setdefault(record.key, []).append(json.loads(record.value)["n"])
        ids.add(dict(record.headers)["ce_id"])
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert sum(map(len, seen.values())) == len(ids) == 20_000


async def test_bulk_and_single_records_of_a_key_lie_in_one_partition(bus: Bus) -> None:
    async with EventPublisher(bus.settings) as publisher:
        await publisher.items([ItemUpserted(item_id=n, category="c") for n in range(200)])
        for n in range(200):
            await publisher.remove(n)
    places: dict[bytes | None, set[int]] = {}
    for record in await read_all(bus.settings, ITEM_UPDATES):
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 200
    assert all(len(place) == 1 for place in places.values())


async def test_lines_of_a_quiet_source_are_sent_without_waiting_for_a_full_batch(bus: Bus) -> None:
    arrived = asyncio.Event()

    async def source() -> AsyncIterator[Sequence[bytes]]:
        yield [line(1)]
        await arrived.wait()  # quiet until the first line has been acknowledged
        yield [line(2)]

    def on_progress(summary: PublishSummary) -> None:
        if summary.acknowledged:
            arrived.set()

    async with EventPublisher(bus.settings) as publisher, LogReader(bus.settings, ITEM_UPDATES) as reader:
        work = asyncio.create_task(publisher.publish_lines("items", source(), on_progress=on_progress))
        async with asyncio.timeout(30):
            while not await reader.poll(timeout_ms=20):
                pass
            arrived.set()
            summary = await work
    assert summary.acknowledged == 2


async def test_stopped_in_the_middle_the_summary_says_what_has_arrived(bus: Bus) -> None:
    stop = asyncio.Event()

    async def source() -> AsyncIterator[Sequence[bytes]]:
        for n in range(10**9):
            yield [line(n)] * 500
            if n == 5:
                stop.set()

    async with EventPublisher(bus.settings) as publisher:
        summary = await publisher.publish_lines("items", source(), stop=stop)
    assert summary.interrupted
    assert not summary.complete
    assert 0 < summary.sent == summary.acknowledged == len(await read_all(bus.settings, ITEM_UPDATES))


async def test_stopped_while_kafka_is_away_the_summary_does_not_claim_an_acknowledgement(bus: Bus) -> None:
    stop = asyncio.Event()
    async with EventPublisher(bus.settings) as publisher:
        assert (await publisher.publish_lines("items", [line(1)])).complete
        await bus.broker.set_down()
        work = asyncio.create_task(publisher.publish_lines("items", [line(n) for n in range(100)], stop=stop))
        await asyncio.wait({work}, timeout=0.5)
        stop.set()
        async with asyncio.timeout(30):
            summary = await work
    assert (summary.sent, summary.acknowledged, summary.interrupted, summary.complete) == (100, 0, True, False)


async def test_an_error_of_the_caller_s_lines_comes_back_to_the_caller(bus: Bus) -> None:
    async def source() -> AsyncIterator[Sequence[bytes]]:
        yield [line(1)]
        raise RuntimeError("the caller's own")

    async with EventPublisher(bus.settings) as publisher:
        with pytest.raises(RuntimeError, match="the caller's own"):
            await publisher.publish_lines("items", source())


async def test_a_dead_letter_is_the_record_with_where_and_why(bus: Bus) -> None:
    before = DEAD_LETTER_COUNT.labels(reason="test-reason")._value.get()
    async with Producer(bus.settings, "test") as producer:
        letters = DeadLetters(bus.settings, producer)
        for record in (FakeRecord(value=b"\xff nope"), FakeRecord(value=None, key=None)):
            await letters.put(record, reason="test-reason", problem="not JSON", attempts=3)
    whole, null = await read_all(bus.settings, DEAD_LETTERS)
    assert (whole.key, whole.value) == (b"7", b"\xff nope")
    assert list(whole.headers)[: len(FakeRecord().headers)] == list(FakeRecord().headers)
    assert dict(whole.headers)["aif_problem"] == b"not JSON"
    assert (null.key, null.value, dict(null.headers)["aif_null_value"]) == (None, b"", b"1")
    assert DEAD_LETTER_COUNT.labels(reason="test-reason")._value.get() == before + 2


async def test_a_record_too_large_even_for_a_dead_letter_is_cut_and_says_so(bus: Bus) -> None:
    async with Producer(bus.settings, "test") as producer:
        await DeadLetters(bus.settings, producer).put(
            FakeRecord(value=b"x" * 10_000_000), reason="too-large", problem="too large"
        )
    (letter,) = await read_all(bus.settings, DEAD_LETTERS)
    assert letter.value is not None
    assert dict(letter.headers)["aif_truncated"] == b"10000000"
    assert 1_000_000 < len(letter.value) < 1_114_112


async def test_a_record_with_a_huge_key_and_headers_without_values_is_a_dead_letter_too(bus: Bus) -> None:
    foreign: list[tuple[str, Any]] = [("trace", None), ("blob", b"h" * 2_000_000)]
    async with Producer(bus.settings, "test") as producer:
        letters = DeadLetters(bus.settings, producer)
        await letters.put(FakeRecord(key=b"k" * 5_000_000, headers=foreign), reason="key", problem="huge")
        await letters.put(FakeRecord(headers=foreign[:1]), reason="envelope", problem="no value")
    cut, whole = await read_all(bus.settings, DEAD_LETTERS)
    assert cut.key == b"k" * 1_024
    assert (dict(cut.headers)["aif_offset"], cut.value) == (b"41", FakeRecord().value)
    assert dict(whole.headers)["trace"] is None


async def test_a_largest_source_record_fits_a_dead_letter_whole(bus: Bus) -> None:
    async with EventPublisher(bus.settings) as publisher:
        limit = publisher.line_limit_bytes("items")
        big = line(1, pad="x" * (limit - len(line(1, pad=""))))
        assert (await publisher.publish_lines("items", [big])).acknowledged == 1
        assert (await publisher.publish_lines("items", [big + b" "])).rejected == 1
    (record,) = await read_all(bus.settings, ITEM_UPDATES)
    async with Producer(bus.settings, "test") as producer:
        await DeadLetters(bus.settings, producer).put(record, reason="r", problem="p" * 5_000)
    (letter,) = await read_all(bus.settings, DEAD_LETTERS)
    assert letter.value == big


def version(name: str, state: VersionState, activation: int = 0) -> VersionRecord:
    return VersionRecord(
        version=name, state=state, artefact="/m", manifest_sha256="0", created_ms=1, activation=activation
    )


async def test_versions_are_read_to_the_end_and_then_followed(bus: Bus) -> None:
    seen: asyncio.Queue[tuple[str | None, str]] = asyncio.Queue()

    async def on_record(book: VersionBook, record: VersionRecord) -> None:
        await seen.put((book.active, record.version))

    async with Producer(bus.settings, "test") as producer:
        assert (await read_versions(bus.settings)).records == {}
        await publish_version(producer, version("v1", VersionState.ACTIVE, 1))
        await (await producer.send(MODEL_UPDATES, b"junk", b"no record", []))
        async with VersionFollower(bus.settings, on_record) as follower:
            assert follower.book.active == "v1"
            await publish_version(producer, version("v2", VersionState.READY))
            await publish_version(producer, version("v2", VersionState.ACTIVE, 2))
            async with asyncio.timeout(30):
                assert [await seen.get(), await seen.get()] == [("v1", "v2"), ("v2", "v2")]
        assert (await read_versions(bus.settings)).active == "v2"


async def test_a_follower_survives_a_broker_that_goes_and_comes(bus: Bus) -> None:
    arrived = asyncio.Event()

    async def on_record(_book: VersionBook, _record: VersionRecord) -> None:
        arrived.set()

    async with Producer(bus.settings, "test") as producer:
        await publish_version(producer, version("v0", VersionState.READY))
        async with VersionFollower(bus.settings, on_record) as follower:
            await bus.broker.set_down()
            ack = await producer.send(MODEL_UPDATES, b"v1", version("v1", VersionState.READY).encode(), [])
            await bus.broker.set_up()
            async with asyncio.timeout(60):
                await ack
                await arrived.wait()
            assert list(follower.book.records) == ["v0", "v1"]


async def test_a_failing_callback_ends_the_follower_for_its_owner_to_see(bus: Bus) -> None:
    async def on_record(_book: VersionBook, _record: VersionRecord) -> None:
        raise PublishError("from the callback")

    async with VersionFollower(bus.settings, on_record) as follower, Producer(bus.settings, "test") as producer:
        await publish_version(producer, version("v1", VersionState.READY))
        async with asyncio.timeout(30):
            with pytest.raises(PublishError, match="from the callback"):
                await follower.wait()
