"""Records that the client library cannot parse, under a whole worker on Apache Kafka."""

from __future__ import annotations

from pathlib import Path

from aif_stream.bus import admin
from aif_stream.bus.events import event_headers
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES, load_topics
from aif_stream.domain.events import EventType
from aif_stream.embedded.kafka import KafkaCluster
from tests import bombs
from tests.kafka.bus import foreign
from tests.nearline_builders import T0_MS, item_line, nearline_settings, open_stack, worker


def upsert(item_id: str, *more: tuple[str, bytes | None]) -> tuple[bytes, foreign.Headers]:
    return item_line(item_id), [*event_headers(EventType.ITEM_UPSERTED, item_id, "test", T0_MS), *more]


async def test_a_worker_passes_over_what_the_client_cannot_parse_and_puts_it_aside(
    kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = nearline_settings(kafka_cluster.bootstrap, redis_url, tmp_path, prefix=topic_prefix)
    await admin.apply(settings, load_topics())
    odd = foreign.batch([upsert("k", (foreign.PLACEHOLDER, b"1")), (b"{}", [(foreign.PLACEHOLDER, b"1")])])
    await foreign.append(settings, ITEM_UPDATES, 0, odd)
    spoilt = await foreign.append(settings, ITEM_UPDATES, 0, foreign.batch([(b"spoilt", [])] * 3))
    name = topic_prefix + ITEM_UPDATES
    foreign.on_disk(kafka_cluster.log(1).parent, name, 0, spoilt, foreign.broken_crc)
    async with open_stack(settings) as stack, worker(settings):
        await stack.publish_model(tmp_path)
        # Behind the two, and in the same partition: only reached by going on.
        await foreign.append(settings, ITEM_UPDATES, 0, foreign.batch([upsert("k")]))
        await stack.has("k", T0_MS, spoilt + 3)
        letters = [dict(letter.headers) for letter in await stack.topic(DEAD_LETTERS, 2)]
    found = [(letter["aif_offset"], letter["aif_reason"]) for letter in letters]
    assert found == [(b"1", b"envelope"), (b"4", b"unparseable")]
    assert letters[0]["caf\\xe9-\\xff\\xfe\\x80"] == b"1"
    assert letters[1]["aif_problem"].startswith(b"offsets 2 to 4 cannot be read")


async def test_worker_passes_over_a_batch_that_expands_to_600_mb(
    kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Kafka takes it: the broker's limit is of what a batch has compressed."""
    settings = nearline_settings(kafka_cluster.bootstrap, redis_url, tmp_path, prefix=topic_prefix)
    await admin.apply(settings, load_topics())
    async with open_stack(settings) as stack, worker(settings):
        await stack.publish_model(tmp_path)
        before = await foreign.append(settings, ITEM_UPDATES, 0, foreign.batch([upsert("k")]))
        await stack.has("k", T0_MS, before)
        bomb = await foreign.append(settings, ITEM_UPDATES, 0, bombs.bomb("zstd", 600))
        await foreign.append(settings, ITEM_UPDATES, 0, foreign.batch([upsert("k")]))
        await stack.has("k", T0_MS, bomb + 1)
        (letter,) = await stack.topic(DEAD_LETTERS, 1)
    found = dict(letter.headers)
    assert (found["aif_offset"], found["aif_reason"]) == (b"%d" % bomb, b"unparseable")
