"""``aif explain`` put together: the worker, its lease, /metrics and health."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from aif_stream import priority
from aif_stream.explain.worker import facts_of, open_worker
from aif_stream.index.leases import EXPLAIN, held_lease
from aif_stream.listening import first_cause, first_of_group, health_served
from aif_stream.settings import Settings
from aif_stream.telemetry import kv
from aif_stream.web import Health

log = logging.getLogger(__name__)


async def serve_explain(settings: Settings, stop: asyncio.Event) -> None:
    """Work until ``stop``, at the lowest OS priority once it has started.

    Beside it /metrics, /livez, /startupz and /readyz on ``explain_port``. Raises ``AifError`` naming what is
    missing."""
    health = Health(reasons=lambda: ["connecting"])
    async with health_served(health, settings.host, settings.explain_port) as url:
        with first_of_group():
            async with open_worker(settings) as (worker, gate):
                # Not before: on a busy machine a start at the lowest priority takes minutes.
                priority.lower(settings.explain_nice)
                log.info(kv("explain.started", metrics=url, nice=settings.explain_nice))
                async with held_lease(settings, EXPLAIN, partial(facts_of, worker, gate, url)) as unkept:
                    health.reasons = lambda: [*worker.reasons(), *unkept()]
                    health.started = True
                    try:
                        await worker.run(stop)
                    except Exception as error:
                        cause = first_cause(error)
                        died = f"{type(cause).__name__}: {cause}"
                        health.failures = lambda: [died]
                        stop.set()
                        raise
