"""The work of `aif nearline` on a batch, for a peer to call: records in, acknowledged rows and features in Redis out.

Both ways use the worker's model, newest event of each item, packed commands and write script; at the end Redis holds
what it holds after our worker. **same**: events are read one by one in Python (headers and JSON by msgspec's typed
decoder), as a user of the framework would, and `item_rows` computes the batch. **lent**: the worker's reading and
encoding in C as well, so that the framework is all that differs.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import hiredis
import numpy as np
from work import Progress, Task

from aif_stream.bus.salvage import Plain
from aif_stream.clock import now_ms
from aif_stream.domain.events import MAX_AHEAD_MS
from aif_stream.domain.row import Rows
from aif_stream.index import packing
from aif_stream.index.keys import Buckets
from aif_stream.index.link import Reply
from aif_stream.index.refusals import checked
from aif_stream.index.wire import pack, parse_address
from aif_stream.index.writes import Writes
from aif_stream.kernels.native import Level
from aif_stream.model.artefact import load
from aif_stream.nearline.item_records import ItemRecords, newest_records, read_records, writes_of

LIMIT_BYTES = 1 << 20
Record = Plain
"""topic, partition, offset, timestamp in ms, its type, key, value, headers as (name, bytes)."""


class Pipeline:
    """Decode, newest, item side, pack; counts what it packed."""

    def __init__(self, task: Task) -> None:
        self.batch = task.batch
        self.progress = Progress()
        self._level = None if task.way == "lent" else Level.NUMPY
        self._model = load(Path(task.artefact))
        self._buckets = Buckets(task.buckets)
        self._heads = packing.WriteHeads()
        # As our worker does: torch's modules are not scanned again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)

    def commands(self, records: Sequence[Record]) -> tuple[list[bytes], list[bytes]]:
        """Packed commands and the keys that place them."""
        self.progress.begin()
        batch, poison = read_records(records, MAX_AHEAD_MS, LIMIT_BYTES, level=self._level)
        if poison:
            raise ValueError(f"{len(poison)} events cannot be read: {poison[0].problem}")
        chosen = newest_records(batch).chosen
        writes, now = writes_of(batch, chosen), now_ms()
        rows = {self._model.name: self._rows(batch, chosen, writes, now)}
        packing.stamp_rows(writes, rows, now)
        groups = packing.grouped(self._buckets.of_many(writes.keys))
        commands, places = packing.pack_batch(writes, rows, groups, self._heads, now)
        beside = [pack(*command) for command in self.progress.commands(len(records))]
        return [*commands, *beside], [*places, *(b"" for _ in beside)]

    def _rows(self, batch: ItemRecords, chosen: np.ndarray, writes: Writes, now: int) -> Rows:
        if batch.columns is None:
            items = [batch.item(i) for i in chosen.tolist()]
            return self._model.item_rows(items, writes.times, writes.offsets, now, writes.keys).rows
        at = batch.sources[chosen]
        (rows, _), done = self._model.item_rows_of(batch.columns, at, writes.times, writes.offsets, now)
        if not done.all():
            raise ValueError(f"{(~done).sum()} events of the benchmark are none that C reads")
        return rows


class Sender:
    """Collects records, sends each full batch without waiting, on a blocking connection with hiredis on it: redis-py's
    client costs several µs per reply. ``confirm`` comes before a commit."""

    def __init__(self, task: Task, pipeline: Pipeline) -> None:
        self._pipeline, self._batch = pipeline, task.batch
        address = parse_address(task.redis)
        self._socket = socket.create_connection((address.host, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._records: list[Record] = []
        self._expected = 0

    def add(self, records: Iterable[Record]) -> None:
        self._records.extend(records)
        while len(self._records) >= self._batch:
            self._send(self._records[: self._batch])
            del self._records[: self._batch]

    def confirm(self) -> None:
        """Send what is left and wait for every reply. Raises what Redis refused."""
        if self._records:
            self._send(self._records)
            self._records = []
        replies: list[Reply] = []
        while len(replies) < self._expected:
            reply = self._reader.gets()
            if reply is not False:
                replies.append(reply)
                continue
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("Redis closed the connection")
            self._reader.feed(data)
        self._expected = 0
        checked(replies)

    def _send(self, records: Sequence[Record]) -> None:
        commands, _ = self._pipeline.commands(records)
        self._socket.sendall(b"".join(commands))
        self._expected += len(commands)
