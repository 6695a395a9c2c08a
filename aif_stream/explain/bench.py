"""The one thread that computes explanations: a unit at a time, the more urgent first, and live traffic before all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from aif_stream.domain.explanations import Priority
from aif_stream.explain.gate import Gate

T = TypeVar("T")

_RANK: Final = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class Bench:
    """Units should be short (some 100 ms): what is more urgent waits for the one that runs."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._pool = ThreadPoolExecutor(1, "explain")
        self._units: asyncio.PriorityQueue[tuple[int, int, Callable[[], Any], asyncio.Future[Any]]]
        self._units = asyncio.PriorityQueue()
        self._number = itertools.count()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="bench")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Units that have not begun."""
        return self._units.qsize()

    async def run(self, priority: Priority, unit: Callable[[], T]) -> T:
        """Compute ``unit`` when its turn has come, and raise what it raises. Cancelling takes it out of the queue; what
        has begun runs to its end."""
        await self._gate.passed(priority)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._units.put_nowait((_RANK[priority], next(self._number), unit, done))
        return await done

    async def _run(self) -> None:
        while True:
            await self._one(*(await self._units.get())[2:])

    async def _one(self, unit: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """A call of its own: nothing holds on to a unit (and its user's rows) while the bench waits for another."""
        if done.cancelled():
            return
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, unit)
        except Exception as error:  # noqa: BLE001  # it belongs to whoever asked
            if not done.cancelled():
                done.set_exception(error)
        else:
            if not done.cancelled():
                done.set_result(found)
