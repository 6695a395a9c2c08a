"""The owned threads in which user sides, joins and scores are computed, so that the event loop only glues."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

import torch

T = TypeVar("T")

# A thread that computes in Python gives the event loop its turn after this (Python's default is 5 ms, which is as
# long as scoring itself: three upstream calls then leave the server that much later).
_SWITCH_S: Final = 0.0005


class ComputeThreads:
    """``threads`` workers; torch uses one thread in each (they are the parallelism)."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)
        sys.setswitchinterval(_SWITCH_S)
        self._pool = ThreadPoolExecutor(threads, "rank", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread. Cancelling the wait does not stop work that has begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
