"""A process of its own, at the lowest OS priority, that computes the rows of rebuilds.

Why not a thread: Python's lock would be held by a thread that the scheduler starves, and the live lanes would wait
for it. Rows are computed from the bytes in the store by the same code as live ones.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from aif_stream import clock, priority
from aif_stream.domain.events import ItemUpserted, decode_item
from aif_stream.domain.order import Order
from aif_stream.domain.row import Rows, empty_rows
from aif_stream.errors import BadEvent
from aif_stream.model.artefact import load
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.backoff import Backoff


class Computed(NamedTuple):
    """Rows (N) in the order of the payloads, and why some are invalid (reason -> items)."""

    rows: Rows
    problems: dict[str, int]


class RowProcess:
    """Starts its process with the first call: a worker that never rebuilds does not pay for it."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    async def rows(self, artefact: Path, payloads: Sequence[bytes], orders: Sequence[Order]) -> Computed:
        """Item side of N stored items under the version in ``artefact``. Raises ``ArtefactError``.

        A process that dies (the kernel's out-of-memory killer) is started again, later each time: a rebuild
        must not take the live lanes down with it.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff("the rebuild process")
        while True:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)
            try:
                computed = await loop.run_in_executor(self._pool, _compute, artefact, list(payloads), list(orders))
            except BrokenProcessPool as error:
                self._pool = None
                await backoff.pause(error)
            else:
                backoff.done()
                return computed


def _begin() -> None:
    priority.lower(priority.LEAST, own_session=True)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - a spawned process has one

    def leave() -> None:
        parent.join()
        os._exit(1)  # the worker was killed: nobody will close the pool

    threading.Thread(target=leave, daemon=True).start()


@functools.lru_cache(maxsize=2)  # the new version, and the one before while its last tasks come in
def _model(artefact: Path) -> ModelVersion:
    return load(artefact)


def _compute(artefact: Path, payloads: list[bytes], orders: list[Order]) -> Computed:
    model = _model(artefact)
    packed = np.array(orders, dtype=np.uint64).reshape(-1, 2)
    items, at = _decodable(payloads)
    rows = empty_rows(model.layout, len(payloads))
    computed_ms = clock.now_ms()
    rows["event_time_ms"], rows["offset"], rows["computed_ms"] = packed[:, 0], packed[:, 1], computed_ms
    some, problems = model.item_rows(items, packed[at, 0], packed[at, 1], computed_ms)
    rows[at] = some
    if len(at) < len(payloads):
        problems["unreadable"] += len(payloads) - len(at)
    return Computed(rows, dict(problems))


def _decodable(payloads: Sequence[bytes]) -> tuple[list[ItemUpserted], list[int]]:
    """Stored items were decoded once; a later program may be stricter. Those get an invalid row."""
    items: list[ItemUpserted] = []
    at: list[int] = []
    for i, payload in enumerate(payloads):
        try:
            items.append(decode_item(payload))
        except BadEvent:
            continue
        at.append(i)
    return items, at
