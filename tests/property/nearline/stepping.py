"""Product coroutines, run one outside effect at a time: each Redis call, send, poll and commit waits at a gate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from aif_stream.index.connection import Redis
from aif_stream.index.link import Reply

R = TypeVar("R")


class Parked(NamedTuple):
    """A call that waits for its turn; ``what`` it is about to do."""

    what: str
    go: asyncio.Future[None]


class Gate:
    """Where one actor's calls wait. Whoever is cancelled here never did what it was about to do."""

    def __init__(self) -> None:
        self._parked: list[Parked] = []

    @property
    def parked(self) -> list[Parked]:
        self._parked = [call for call in self._parked if not call.go.done()]
        return self._parked

    async def step(self, what: str) -> None:
        call = Parked(what, asyncio.get_running_loop().create_future())
        self._parked.append(call)
        await call.go

    def release(self, pick: int) -> str | None:
        """Let one of the waiting calls go on; what it does, or None when none waits."""
        parked = self.parked
        if not parked:
            return None
        call = parked[pick % len(parked)]
        call.go.set_result(None)
        return call.what


class Inline(ThreadPoolExecutor):
    """Threads would make the order of steps depend on the machine."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        done: Future[R] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits it
            done.set_exception(error)
        return done


class Stage:
    """The loop that all actors share. Between two calls of ``run`` every actor waits at its gate (or has ended)."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.loop.set_default_executor(Inline())
        self.under_way = 0

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run to its end, then everybody else as far as they get."""

        async def both() -> R:
            result = await coroutine
            await self.settle()
            return result

        return self.loop.run_until_complete(both())

    async def settle(self) -> None:
        """Until nothing is ready to run and no call is on its way to Redis."""
        ready: Sequence[object] = self.loop._ready  # type: ignore[attr-defined]
        while ready or self.under_way:  # noqa: ASYNC110 - nobody tells when a loop has nothing to do
            await asyncio.sleep(0)

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class GatedRedis(Redis):
    """The real Redis behind a gate. ``alter`` may change commands on their way (planted bugs do)."""

    def __init__(self, stage: Stage, inner: Redis, gate: Gate, alter: Callable[[bytes], bytes] | None = None) -> None:
        super().__init__(inner._route)
        self._stage = stage
        self._inner = inner
        self._gate = gate
        self._alter = alter

    async def execute(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        await self._gate.step("redis")
        if self._alter is not None:
            commands = [self._alter(command) for command in commands]
        self._stage.under_way += 1
        try:
            return await self._inner.execute(commands, keys)
        finally:
            self._stage.under_way -= 1
