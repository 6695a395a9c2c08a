"""``aif nearline`` put together: the worker, as soon as its stores are there; its lease, /metrics and health."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import AsyncExitStack
from functools import partial

from aif_stream.bus.diagnosis import is_refusal
from aif_stream.errors import BusUnavailable, IndexUnavailable
from aif_stream.index.leases import NEARLINE, held_lease
from aif_stream.listening import health_served
from aif_stream.nearline.app import Nearline, open_nearline
from aif_stream.nearline.backoff import Backoff
from aif_stream.settings import Settings
from aif_stream.telemetry import kv
from aif_stream.web import Health

log = logging.getLogger(__name__)


async def serve_nearline(settings: Settings, stop: asyncio.Event) -> None:
    """Work until ``stop``; beside it /metrics, /livez, /startupz and /readyz on ``metrics_port``."""
    starting = ["connecting"]
    health = Health(reasons=lambda: starting)
    async with health_served(health, settings.host, settings.metrics_port) as url, AsyncExitStack() as stack:
        log.info(kv("metrics.listening", url=url))
        nearline = await _opened(stack, settings, stop, starting)
        if nearline is None:
            return
        spare_the_collector()
        async with held_lease(settings, NEARLINE, partial(nearline.facts, url)) as unkept:
            health.reasons = lambda: [*nearline.reasons(), *unkept()]
            health.failures = nearline.failures
            health.started = True
            await nearline.run(stop)


async def _opened(
    stack: AsyncExitStack, settings: Settings, stop: asyncio.Event, starting: list[str]
) -> Nearline | None:
    """The worker, entered on ``stack`` as soon as Kafka and Redis are there; None when ``stop`` came first.

    ``starting`` tells /readyz what is waited for. Raises what waiting does not mend: a refusal (password, rights,
    certificate), a missing topic, a foreign layout, wrong settings.
    """
    backoff = Backoff("start of the worker")
    while not stop.is_set():
        try:
            nearline = await stack.enter_async_context(open_nearline(settings))
        except (BusUnavailable, IndexUnavailable) as error:
            if is_refusal(error):
                raise
            starting[:] = [str(error)]
            await backoff.pause(error)
        else:
            backoff.done()
            return nearline
    return None


def spare_the_collector() -> None:
    """Make cyclic garbage collection rare and short; for a process that is a worker and nothing else.

    A batch is some 20,000 objects without cycles, alive together: with Python's defaults it is scanned again and
    again, with torch's modules beside it (measured: 62 µs per event, 43 without).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
