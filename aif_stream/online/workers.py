"""``aif serve --workers N``: N processes behind one port (SO_REUSEPORT), each with its mirror, threads and metrics.

Python computes on one core at a time, so a machine is filled with processes. They share nothing: memory is N mirrors,
and a version switch happens in each when its own mirror is ready. The first that ends takes the others down (a service
manager starts the whole again), since a port that answers with fewer processes than asked for hides the failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Iterator, Sequence
from typing import Final

from aif_stream.errors import AifError
from aif_stream.listening import address_of, bind
from aif_stream.orphans import end_with_owner
from aif_stream.settings import Settings, handed_on
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# Each ends within 10 s; the rest is for a host on which it takes that long to see it.
_STOP_S: Final = 15.0


async def run_workers(settings: Settings, count: int, arguments: Sequence[str], stop: asyncio.Event) -> None:
    """``count`` times ``aif serve`` with ``arguments``, until ``stop``. Raises ``AifError`` naming the first that ended
    by itself; the others are stopped then."""
    with contextlib.ExitStack() as stack:
        # Held, never listened on with work behind it: reserves the port, and turns port 0 into one number for all.
        held = stack.enter_context(
            contextlib.closing(bind(settings.host, settings.serve_port, shared=True, listen=False))
        )
        port = held.getsockname()[1]
        own = ",".join(str(stack.enter_context(_reserved(settings.host))) for _ in range(count))
        workers = [await _start(settings, port, own, number, arguments) for number in range(1, count + 1)]
        log.info(kv("serve.workers", address=address_of(held), processes=",".join(str(w.pid) for w in workers)))
        stopping = asyncio.create_task(stop.wait())
        ends = [asyncio.create_task(worker.wait()) for worker in workers]
        try:
            await asyncio.wait([stopping, *ends], return_when=asyncio.FIRST_COMPLETED)
            ended = [worker for worker in workers if worker.returncode is not None]
        finally:
            stopping.cancel()
            await _stop(workers)
            await asyncio.gather(*ends)
    if ended and not stop.is_set():
        raise AifError(
            f"serving process {ended[0].pid} ended by itself (exit code {ended[0].returncode})", mend="read its log"
        )


@contextlib.contextmanager
def _reserved(host: str) -> Iterator[int]:
    """A free port for one process alone, beside the shared one."""
    held = bind(host, 0, shared=True, listen=False)
    try:
        yield held.getsockname()[1]
    finally:
        held.close()


async def _start(settings: Settings, port: int, ports: str, number: int, arguments: Sequence[str]) -> Process:
    told = {"AIF_SERVE_PORT": str(port), "AIF_SERVE_WORKER": str(number), "AIF_SERVE_WORKER_PORTS": ports}
    environ = handed_on(told)
    if settings.worker_id:
        environ["AIF_WORKER_ID"] = f"{settings.worker_id}-{number}"
    command = (sys.executable, "-m", "aif_stream", "serve", *arguments)
    # A session of its own: Ctrl-C reaches us alone, and we stop the workers in order.
    return await asyncio.create_subprocess_exec(
        *command, env=environ, start_new_session=True, preexec_fn=end_with_owner()
    )


async def _stop(workers: Sequence[Process]) -> None:
    """SIGTERM to all at once; who is still there after its time is killed."""
    living = [worker for worker in workers if worker.returncode is None]
    for worker in living:
        worker.send_signal(signal.SIGTERM)
    if not living:
        return
    _, late = await asyncio.wait([asyncio.create_task(worker.wait()) for worker in living], timeout=_STOP_S)
    if late:
        for worker in living:
            if worker.returncode is None:
                log.error(kv("worker.killed", pid=worker.pid, problem=f"it did not stop within {_STOP_S:g} s"))
                worker.kill()
        await asyncio.wait(late)
