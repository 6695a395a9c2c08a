"""Bytewax over the item updates, into a sink by batches: python bytewax_lane.py BROKER REDIS_URL TOPIC"""

from __future__ import annotations

import sys
from typing import Any

import bytewax.operators as op
import redis
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from work import BATCH, Rows, write


class _Part(StatelessSinkPartition[Any]):
    def __init__(self, url: str) -> None:
        self._client = redis.from_url(url)

    def write_batch(self, items: list[Any]) -> None:
        for first in range(0, len(items), BATCH):
            write(self._client, items[first : first + BATCH])


class RedisSink(DynamicSink[Any]):
    """One connection per worker."""

    def __init__(self, url: str) -> None:
        self._url = url

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Part:
        return _Part(self._url)


def main() -> None:
    broker, url, topic_name = sys.argv[1:4]
    rows = Rows()
    flow = Dataflow("peer")
    events = op.input("events", flow, KafkaSource([broker], [topic_name], batch_size=BATCH))
    made = op.map("row", events, lambda message: rows.row(message.value))
    op.output("redis", made, RedisSink(url))
    run_main(flow)


if __name__ == "__main__":
    main()
