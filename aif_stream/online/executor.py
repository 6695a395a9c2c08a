"""The owned threads in which user sides, joins and scores are computed, so that the event loop only glues.

Work waits in one queue, the earliest deadline first: as deadlines are mostly the same, what was asked first is finished
first. A request that has its candidates is scored before the user side of one that came later, so it leaves before the
later one is begun.

No more threads than cores compute at a time. With two on one core the kernel gives both half of it: two works of 3 ms
that could end after 3 and 6 ms both end after 6, and so on for every request under way, so that near capacity all are
as late as the last one. One after the other, only those at the end of the queue wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import torch

from aif_stream.clock import monotonic_s

T = TypeVar("T")

# A thread that computes in Python gives the event loop its turn after this (Python's default is 5 ms, which is as
# long as scoring itself: three upstream calls then leave the server that much later).
_SWITCH_S: Final = 0.0005


class _Job(NamedTuple):
    """Of two jobs the smaller is begun first; no two have the same number."""

    due_s: float
    number: int
    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class ComputeThreads:
    """``with ComputeThreads(most) as threads``: so many workers, but no more than there are cores; torch uses one
    thread in each (they are the parallelism)."""

    def __init__(self, most: int) -> None:
        torch.set_num_threads(1)
        sys.setswitchinterval(_SWITCH_S)
        self.count = min(most, cores())
        self.busy_s = 0.0  # wall time of all work so far
        self._lock = threading.Lock()  # of the queue and the sum
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one per job; False ends a thread

    def __enter__(self) -> Self:
        for number in range(self.count):
            threading.Thread(target=self._serve, name=f"rank_{number}").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has begun ends by itself; who waits for anything else is cancelled."""
        with self._lock:
            left, self._jobs = self._jobs, []
        for job in left:
            job.answer.cancel()
        for _ in range(self.count):
            self._tokens.put(False)

    async def run(self, work: Callable[[], T], due_s: float) -> T:
        """Run ``work`` in a thread, after all that is due before ``due_s`` (monotonic). Cancelling the wait takes work
        out of the queue, and does not stop what has begun."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._lock:
            heapq.heappush(self._jobs, _Job(due_s, next(self._numbers), work, answer, loop))
        self._tokens.put(True)
        return await answer

    async def aside(self, work: Callable[[], T]) -> T:
        """Run ``work`` that belongs to no request, and may take long, in a thread of its own."""

        def alone() -> T:
            torch.set_num_threads(1)
            return work()

        return await asyncio.to_thread(alone)

    def _serve(self) -> None:
        torch.set_num_threads(1)
        while self._tokens.get():
            with self._lock:
                job = heapq.heappop(self._jobs) if self._jobs else None
            if job is not None and not job.answer.cancelled():
                self._do(job)
            job = None  # or its work would be kept until the next one comes

    def _do(self, job: _Job) -> None:
        begin_s, found, error = monotonic_s(), None, None
        try:
            found = job.work()
        except BaseException as raised:  # noqa: BLE001 - whoever waits gets it, of whatever kind
            error = raised
        with self._lock:
            self.busy_s += monotonic_s() - begin_s
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            job.loop.call_soon_threadsafe(_settle, job.answer, found, error)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settle(answer: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    if answer.done():  # cancelled meanwhile
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)
