from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest

from aif_stream.online import executor
from aif_stream.online.executor import ComputeThreads

FAR_S = 1e9


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "cores", lambda: 1)


def held(threads: ComputeThreads, begun: threading.Event, go: threading.Event) -> asyncio.Task[None]:
    """Work that holds a thread until it is told to go on."""

    def wait() -> None:
        begun.set()
        assert go.wait(60)

    return asyncio.ensure_future(threads.run(wait, 0.0))


async def behind(threads: ComputeThreads, ask: Callable[[], list[asyncio.Task[None]]]) -> None:
    """Ask for work while the only thread is held, then let it go on until all of it has ended."""
    begun, go = threading.Event(), threading.Event()
    first = held(threads, begun, go)
    await asyncio.to_thread(begun.wait, 60)
    asked = ask()
    await asyncio.sleep(0)  # each has run to where it waits for its thread
    go.set()
    await asyncio.gather(first, *asked, return_exceptions=True)


async def test_what_is_due_first_is_done_first_and_of_equals_what_was_asked_first(one_core: None) -> None:
    done: list[str] = []
    with ComputeThreads(2) as threads:

        def ask() -> list[asyncio.Task[None]]:
            wanted = [("late", 3.0), ("first", 1.0), ("second", 1.0), ("between", 2.0)]
            return [asyncio.ensure_future(threads.run(partial(done.append, name), due)) for name, due in wanted]

        await behind(threads, ask)
    assert done == ["first", "second", "between", "late"]


async def test_no_more_threads_compute_than_there_are_cores(one_core: None) -> None:
    names: set[str] = set()
    with ComputeThreads(4) as threads:
        assert threads.count == 1
        for _ in range(8):
            await threads.run(lambda: names.add(threading.current_thread().name), FAR_S)
    assert names == {"rank_0"}


async def test_work_that_nobody_waits_for_any_more_is_not_begun(one_core: None) -> None:
    done: list[str] = []
    with ComputeThreads(1) as threads:

        def ask() -> list[asyncio.Task[None]]:
            left = asyncio.ensure_future(threads.run(lambda: done.append("left"), 1.0))
            kept = asyncio.ensure_future(threads.run(lambda: done.append("kept"), 2.0))
            asyncio.get_running_loop().call_soon(left.cancel)
            return [left, kept]

        await behind(threads, ask)
    assert done == ["kept"]


async def test_an_error_of_the_work_is_the_callers_and_the_thread_goes_on() -> None:
    with ComputeThreads(1) as threads:
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0, FAR_S)
        assert await threads.run(lambda: 7, FAR_S) == 7
        assert threads.busy_s > 0


async def test_work_of_no_request_waits_for_none_and_holds_none_up(one_core: None) -> None:
    with ComputeThreads(1) as threads:
        begun, go = threading.Event(), threading.Event()
        first = held(threads, begun, go)
        await asyncio.to_thread(begun.wait, 60)
        assert await threads.aside(lambda: 7) == 7  # while the only compute thread is held
        go.set()
        await first


async def test_closing_cancels_what_waits_and_ends_the_threads(one_core: None) -> None:
    begun, go = threading.Event(), threading.Event()
    before = set(threading.enumerate())
    with ComputeThreads(1) as threads:
        (worker,) = set(threading.enumerate()) - before
        first = held(threads, begun, go)
        await asyncio.to_thread(begun.wait, 60)
        second = asyncio.ensure_future(threads.run(lambda: None, 1.0))
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    await first
    await asyncio.to_thread(worker.join, 60)
    assert not worker.is_alive()
