"""The owned threads in which user sides, joins and scores are computed, so that the event loop only glues."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

import torch

from aif_stream.clock import monotonic_s

T = TypeVar("T")

# A thread that computes in Python gives the event loop its turn after this (Python's default is 5 ms, which is as
# long as scoring itself: three upstream calls then leave the server that much later).
_SWITCH_S: Final = 0.0005


class ComputeThreads:
    """``threads`` workers; torch uses one thread in each (they are the parallelism)."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)
        self._counting = threading.Lock()
        sys.setswitchinterval(_SWITCH_S)
        self.busy_s = 0.0  # wall time of all work so far
        self._pool = ThreadPoolExecutor(threads, "rank", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread. Cancelling the wait does not stop work that has begun."""

        def timed() -> T:
            begin_s = monotonic_s()
            try:
                return work()
            finally:
                self._spent(monotonic_s() - begin_s)

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)

    def _spent(self, seconds: float) -> None:
        with self._counting:
            self.busy_s += seconds
