"""A Faust agent over the item updates: python faust_lane.py TASK worker -l error. TASK: work.Task as JSON.

Plain: one event at a time, as agents are written. The other ways take events by batches, the stream's own means; Faust
acknowledges a batch's events when the agent comes back for the next.
"""

from __future__ import annotations

import faust
import redis.asyncio
from work import BATCH, COMMIT_EVERY, COMMIT_S, Rows, Task

task = Task.told()
app = faust.App(
    task.group,
    broker=f"kafka://{task.broker}",
    datadir=task.directory,
    store="memory://",
    topic_disable_leader=True,
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    broker_commit_every=COMMIT_EVERY,
    broker_commit_interval=COMMIT_S,
)
topic = app.topic(task.topic, value_type=bytes, value_serializer="raw", key_serializer="raw")
pipeline = task.pipeline()


@app.agent(topic)
async def write_rows(stream: faust.Stream) -> None:  # type: ignore[type-arg]
    if pipeline is None:
        await _plain(stream)
    else:
        await _batches(stream)


async def _plain(stream: faust.Stream) -> None:  # type: ignore[type-arg]
    rows, batch = Rows(), []
    async with redis.asyncio.from_url(task.redis) as client:
        async for value in stream:
            batch.append(rows.row(value))
            if len(batch) == BATCH:
                await rows.fill(client.pipeline(transaction=False), batch).execute()
                batch.clear()


async def _batches(stream: faust.Stream) -> None:  # type: ignore[type-arg]
    from pipeline import Record

    from aif_stream.index.connection import open_redis
    from aif_stream.index.refusals import checked
    from aif_stream.settings import Settings

    async with open_redis(Settings(redis_url=task.redis)) as client:
        async for events in stream.take_events(task.batch, within=COMMIT_S):
            records = [
                Record(
                    m.topic,
                    m.partition,
                    m.offset,
                    round(m.timestamp * 1000),
                    m.timestamp_type,
                    m.key,
                    m.value,
                    m.headers,
                )
                for m in [event.message for event in events]
            ]
            checked(await client.execute(*pipeline.commands(records)))


if __name__ == "__main__":
    app.main()
