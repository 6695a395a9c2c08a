"""The Faust app that hosts the worker: life cycle, lanes as services, timers. The only importer of faust.

Faust's own Kafka client stays off: no topic of this worker is an agent's. Its consumer would join a group of its own,
create reply and assignor topics, and hand out events one task switch at a time (6,000-9,000 events/s measured, whatever
the codec), while a lane that owns its consumer inside the app is as fast as one without Faust. The boot strategy below
is Faust's own seam for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import faust
from faust.app.base import BootStrategy
from mode import Service

from aif_stream.errors import AifError
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# Lanes drain (lane.DRAIN_S) and leave their groups; the process as a whole has 10 s.
_STOP_DEADLINE_S = 7.0


class Hosted(Protocol):
    """Something that runs until ``stop`` is set; an exception ends the worker."""

    @property
    def name(self) -> str: ...

    async def run(self, stop: asyncio.Event) -> None: ...


class _Boot(BootStrategy):
    """Services and timers only."""

    enable_kafka = False
    enable_web = False

    def agents(self) -> Iterable[Any]:
        return ()


class _App(faust.App):
    BootStrategy = _Boot

    async def on_first_start(self) -> None:
        """Faust would make its data directory here; nothing of ours lives in it."""

    async def on_start(self) -> None:
        """Faust would build its (unused) consumer here, with a thread's event loop that nobody closes."""
        self.finalize()


class Host:
    """Runs ``Hosted`` parts and timers in one Faust app until ``stop`` is set or one of them fails.

    A failed Faust service leaves its process alive, so the first failure is kept here, ends ``run`` and is raised
    from it: the caller exits non-zero, and whatever supervises the process starts it again.
    """

    def __init__(self, settings: Settings) -> None:
        # env={}: Faust lets variables of the environment win over arguments; settings.py is our only reader of them.
        self._app = _App(
            f"{settings.topic_prefix}aif.nearline",
            env={},
            broker=f"kafka://{settings.kafka_bootstrap.replace(',', ';')}",
            datadir=settings.home / "faust",
            web_enabled=False,
            topic_disable_leader=True,
            reply_create_topic=False,
            loop=asyncio.get_running_loop(),
        )
        self._halt = asyncio.Event()
        self._failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._failures: list[str] = []

    def add(self, part: Hosted) -> None:
        """Start ``part`` with the app, stop it (and wait for it) when the app stops."""
        self._app.service(_service(part, self._halt, self._fail))

    def every(self, interval_s: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Call ``work`` every ``interval_s`` seconds. An ``AifError`` of one call is logged; others end the worker."""

        async def tick() -> None:
            try:
                await work()
            except AifError as error:
                log.warning(kv("timer.failed", timer=name, error=error))
            except Exception as error:  # noqa: BLE001 - the loop's edge: reported by run()
                self._fail(name, error)

        self._app.timer(interval_s, name=name, traced=False)(tick)

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything; return after ``stop``, or raise what a part died of (after the others have drained).

        A death sets ``stop`` too: from then on the process has as long to end as after a signal."""
        stopping: asyncio.Future[object] = asyncio.ensure_future(stop.wait())
        try:
            await self._app.start()
            await asyncio.wait([stopping, self._failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            stop.set()
            self._halt.set()  # every part at once: Faust stops its services one after the other
            try:
                await asyncio.wait_for(self._app.stop(), _STOP_DEADLINE_S)
            except TimeoutError:
                self._fail("stop", AifError(f"the lanes did not stop within {_STOP_DEADLINE_S:.0f} s"))
        if self._failed.done():
            self._failed.result()

    def failures(self) -> list[str]:
        """What parts died of, with their names."""
        return list(self._failures)

    def _fail(self, name: str, error: BaseException) -> None:
        self._failures.append(f"{name} died: {type(error).__name__}: {error}")
        log.error(kv("part.died", part=name, error=f"{type(error).__name__}: {error}"), exc_info=error)
        if not self._failed.done():
            self._failed.set_exception(error)


def _service(part: Hosted, halt: asyncio.Event, failed: Callable[[str, BaseException], None]) -> type[Service]:
    """The Faust service around one part."""

    class _Part(Service):
        async def on_start(self) -> None:
            self._work = asyncio.create_task(part.run(halt), name=part.name)
            self._work.add_done_callback(self._ended)

        def _ended(self, work: asyncio.Task[None]) -> None:
            if work.cancelled():
                return
            error = work.exception()
            if error is None and not halt.is_set():
                error = AifError(f"{part.name} ended without being asked to")
            if error is not None:
                failed(part.name, error)

        async def on_stop(self) -> None:
            await asyncio.wait({self._work})

    _Part.__name__ = part.name
    return _Part
