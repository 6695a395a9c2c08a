"""Quix Streams over the item updates: python quix_lane.py TASK. TASK: work.Task as JSON.

Plain: the framework's batching sink. The other ways: a sink of one's own that sends batches as they fill and confirms
them in `flush`, which Quix calls before it commits; so Redis works while the next batch is read.
"""

from __future__ import annotations

import redis
from quixstreams import Application
from quixstreams.sinks import BaseSink, BatchingSink, SinkBatch
from work import BATCH, COMMIT_EVERY, COMMIT_S, Rows, Task


class PlainSink(BatchingSink):
    """Called at each checkpoint with what came since the last one."""

    def __init__(self, url: str, rows: Rows) -> None:
        super().__init__()
        self._client = redis.from_url(url)
        self._rows = rows

    def write(self, batch: SinkBatch) -> None:
        for chunk in batch.iter_chunks(BATCH):
            self._rows.fill(self._client.pipeline(transaction=False), [item.value for item in chunk]).execute()


def sending_sink(task: Task) -> BaseSink | None:
    pipeline = task.pipeline()
    if pipeline is None:
        return None
    from pipeline import Record, Sender

    class Sink(BaseSink):
        def __init__(self) -> None:
            super().__init__()
            self._sender = Sender(task, pipeline)

        def add(self, value, key, timestamp, headers, topic, partition, offset) -> None:  # type: ignore[no-untyped-def]
            pipeline.progress.begin()
            self._sender.add((Record(topic, partition, offset, timestamp, 0, key, value, headers),))

        def flush(self) -> None:
            self._sender.confirm()

    return Sink()


def main() -> None:
    task = Task.told()
    app = Application(
        broker_address=task.broker,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        state_dir=task.directory,
        # A checkpoint of 8 partitions stops everything meanwhile: four times as many events in each gave 48,000/s in
        # place of 42,000 (one run each, other work beside). The plain sink keeps a checkpoint's rows until its end.
        commit_every=COMMIT_EVERY if task.way == "plain" else 4 * COMMIT_EVERY,
        commit_interval=COMMIT_S,
        loglevel="ERROR",
    )
    frame = app.dataframe(app.topic(task.topic, value_deserializer="bytes", key_deserializer="bytes"))
    sink = sending_sink(task)
    if sink is None:
        rows = Rows()
        frame.apply(rows.row).sink(PlainSink(task.redis, rows))
    else:
        frame.sink(sink)
    app.run()


if __name__ == "__main__":
    main()
