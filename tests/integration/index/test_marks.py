from __future__ import annotations

import dataclasses

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.marks import MarkBook
from aif_stream.settings import Settings


async def test_a_mark_advances_only_from_the_value_last_written(redis: Redis) -> None:
    marks = MarkBook(redis, ("cluster", "topic"))
    assert await marks.read(0) is None
    assert await marks.advance(0, None, 10)
    assert not await marks.advance(0, None, 20)
    assert not await marks.advance(0, 9, 20)
    assert await marks.advance(0, 10, 20)
    assert await marks.read(0) == 20


async def test_an_emptied_redis_is_seen(redis: Redis) -> None:
    marks = MarkBook(redis, ("cluster", "topic"))
    await marks.advance(0, None, 10)
    await redis.everywhere("FLUSHALL")
    assert not await marks.advance(0, 10, 20)
    assert await marks.read(0) is None


async def test_a_mark_read_before_a_restart_of_redis_does_not_advance_after_it() -> None:
    async with (
        EmbeddedRedis(appendfsync="always") as server,
        open_redis(dataclasses.replace(Settings(), redis_url=server.url)) as redis,
    ):
        marks = MarkBook(redis, ("cluster", "topic"))
        await marks.read(0)
        assert await marks.advance(0, None, 10)
        await server.kill9()
        await server.start()
        assert not await marks.advance(0, 10, 20)
        assert await marks.read(0) == 10
        assert await marks.advance(0, 10, 20)


async def test_partitions_topics_and_clusters_have_marks_of_their_own(redis: Redis) -> None:
    await MarkBook(redis, ("cluster", "topic")).advance(0, None, 10)
    for identity, partition in ((("cluster", "topic"), 1), (("cluster", "again"), 0), (("other", "topic"), 0)):
        assert await MarkBook(redis, identity).read(partition) is None
