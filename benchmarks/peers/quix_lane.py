"""Quix Streams over the item updates, into a batching sink: python quix_lane.py BROKER REDIS_URL TOPIC"""

from __future__ import annotations

import sys
import tempfile

import redis
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch
from work import BATCH, Rows, write


class RedisSink(BatchingSink):
    """Called at each checkpoint with what came since the last one."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = redis.from_url(url)

    def write(self, batch: SinkBatch) -> None:
        for chunk in batch.iter_chunks(BATCH):
            write(self._client, [item.value for item in chunk])


def main() -> None:
    broker, url, topic_name = sys.argv[1:4]
    app = Application(
        broker_address=broker,
        consumer_group="peer-quix",
        auto_offset_reset="earliest",
        state_dir=tempfile.mkdtemp(prefix="aif-quix-"),
        commit_every=10_000,
        loglevel="ERROR",
    )
    rows = Rows()
    topic = app.topic(topic_name, value_deserializer="bytes", key_deserializer="bytes")
    app.dataframe(topic).apply(rows.row).sink(RedisSink(url))
    app.run()


if __name__ == "__main__":
    main()
