"""Bytewax over the item updates, into a sink by batches: python bytewax_lane.py TASK. TASK: work.Task as JSON.

Bytewax keeps offsets in a store of its own, once per epoch. Plain: a stateless sink that returns when Redis has
answered. The other ways: a stateful one, which sends batches as they fill and confirms them in `snapshot`, which
Bytewax calls before it keeps an epoch's offsets; so Redis works while the next batch is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bytewax.operators as op
import redis
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, FixedPartitionedSink, StatefulSinkPartition, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main
from work import BATCH, COMMIT_S, Rows, Task

if TYPE_CHECKING:
    from pipeline import Pipeline

PART = "redis"


class _Plain(StatelessSinkPartition[Any]):
    def __init__(self, url: str, rows: Rows) -> None:
        self._client = redis.from_url(url)
        self._rows = rows

    def write_batch(self, items: list[Any]) -> None:
        for first in range(0, len(items), BATCH):
            self._rows.fill(self._client.pipeline(transaction=False), items[first : first + BATCH]).execute()


class PlainSink(DynamicSink[Any]):
    """One connection per worker."""

    def __init__(self, url: str, rows: Rows) -> None:
        self._url, self._rows = url, rows

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Plain:
        return _Plain(self._url, self._rows)


class _Sending(StatefulSinkPartition[Any, None]):
    def __init__(self, task: Task, pipeline: Pipeline) -> None:
        from pipeline import Sender

        self._sender = Sender(task, pipeline)

    def write_batch(self, values: list[Any]) -> None:
        for records in values:
            self._sender.add(records)

    def snapshot(self) -> None:
        self._sender.confirm()


class SendingSink(FixedPartitionedSink[Any, None]):
    """One partition, so one connection. Values are lists of records."""

    def __init__(self, task: Task, pipeline: Pipeline) -> None:
        self._task, self._pipeline = task, pipeline

    def list_parts(self) -> list[str]:
        return [PART]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Sending:
        return _Sending(self._task, self._pipeline)


def sending(flow: Dataflow, events: Any, task: Task, pipeline: Pipeline) -> None:
    from pipeline import Record

    def records(batch: list[Any]) -> Iterable[tuple[str, list[Record]]]:
        pipeline.progress.begin()
        yield (
            PART,
            [
                Record(m.topic, m.partition, m.offset, m.timestamp[1], m.timestamp[0], m.key, m.value, m.headers)
                for m in batch
            ],
        )

    op.output("redis", op.flat_map_batch("records", events, records), SendingSink(task, pipeline))


def main() -> None:
    task = Task.told()
    pipeline = task.pipeline()
    flow = Dataflow("peer")
    events = op.input("events", flow, KafkaSource([task.broker], [task.topic], batch_size=task.batch))
    if pipeline is None:
        rows = Rows()
        made = op.map("row", events, lambda message: rows.row(message.value))
        op.output("redis", made, PlainSink(task.redis, rows))
    else:
        sending(flow, events, task, pipeline)
    store = Path(task.directory)
    init_db_dir(store, 1)
    run_main(flow, epoch_interval=timedelta(seconds=COMMIT_S), recovery_config=RecoveryConfig(store))


if __name__ == "__main__":
    main()
