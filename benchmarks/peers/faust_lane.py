"""A plain Faust agent over the item updates: python faust_lane.py BROKER REDIS_URL TOPIC worker -l error"""

from __future__ import annotations

import sys
import tempfile

import faust
import redis.asyncio
from work import BATCH, DONE, Rows

broker, redis_url, topic_name = sys.argv[1:4]
del sys.argv[1:4]
app = faust.App(
    "peer-faust",
    broker=f"kafka://{broker}",
    datadir=tempfile.mkdtemp(prefix="aif-faust-"),
    store="memory://",
    topic_disable_leader=True,
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    broker_commit_every=10_000,
)
topic = app.topic(topic_name, value_type=bytes, value_serializer="raw", key_serializer="raw")


@app.agent(topic)
async def write_rows(stream: faust.Stream) -> None:  # type: ignore[type-arg]
    """One event at a time, as agents are written; a pipeline per BATCH."""
    rows, batch = Rows(), []
    async with redis.asyncio.from_url(redis_url) as client:
        async for value in stream:
            batch.append(rows.row(value))
            if len(batch) == BATCH:
                pipeline = client.pipeline(transaction=False)
                for key, row in batch:
                    pipeline.set(key, row)
                pipeline.incrby(DONE, len(batch))
                await pipeline.execute()
                batch.clear()


if __name__ == "__main__":
    app.main()
