from __future__ import annotations

from aif_stream.index.connection import Redis
from aif_stream.index.rebuilds import RebuildTally
from tests.stack import eventually


async def test_the_tally_counts_each_bucket_once_and_can_begin_anew(redis: Redis) -> None:
    tally = RebuildTally(redis, 4)
    await tally.finish("v1", 2, 10)
    await tally.finish("v1", 2, 11)
    await tally.finish("v1", 0, 5)
    found = await tally.read("v1")
    assert found.done == {2: 11, 0: 5}
    assert found.items == 16
    assert found.missing == [1, 3]
    assert (await tally.read("v2")).missing == [0, 1, 2, 3]
    await tally.clear("v1")
    assert not (await tally.read("v1")).done


async def test_a_worker_is_at_a_rebuild_until_it_ceases_to_say_so(redis: Redis) -> None:
    tally = RebuildTally(redis, 4)
    assert not await tally.is_busy("v1")
    await tally.busy("v1", 60_000)
    assert await tally.is_busy("v1")
    assert not await tally.is_busy("v2")
    await tally.busy("v1", 1)

    async def silent() -> bool:
        return not await tally.is_busy("v1")

    await eventually(silent, what="the word of a worker ends")
