"""``aif up``: the whole system on an embedded broker and Redis, every role a process of its own.

Order of the start: Redis and broker → nearline and retrieval → model version (trained on the same generator as the
catalogue) → catalogue, paced by its readers → serve → one request, answered in full → the ready line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from aif_stream.bus.topics import load_topics, partition_counts
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import AifError
from aif_stream.runtime.address import published_address
from aif_stream.runtime.catalogue import Catalogue, answered_in_full, kept_end_ms, seed
from aif_stream.runtime.first_model import first_model
from aif_stream.runtime.roles import Roles, until_ready
from aif_stream.runtime.traffic import live_traffic
from aif_stream.settings import Settings, variables

Report = Callable[[str], None]
T = TypeVar("T")

# The embedded broker makes a group that joins again wait for (session timeout - 1 s); a dead member counts as long.
_SESSION_TIMEOUT_MS: Final = 1500
# What the roles and the verbs of another terminal must agree on with this stack.
_SHARED: Final = (
    *("kafka_bootstrap", "redis_url", "kafka_session_timeout_ms", "index_buckets", "models_dir", "serve_url"),
    *("serve_port", "retrieval_port", "retrieval_urls", "metrics_port", "monitor_port", "host", "topic_prefix"),
    "explain_port",
)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``aif up`` was asked for. ``port`` None: the settings'. ``data`` None: nothing outlives the stack."""

    items: int
    users: int
    demo: bool = False
    port: int | None = None
    data: Path | None = None


async def run_up(base: Settings, options: UpOptions, stop: asyncio.Event, report: Report, ready: Report) -> None:
    """Run the stack until ``stop``; ``report`` hears of each step, ``ready`` gets the server's address once.

    Raises ``AifError`` naming the part that did not start, ended by itself or did not stop in order, and the log.
    """
    async with AsyncExitStack() as stack:
        opened = await _unless(stop, stack.enter_async_context(_embedded(base, options)))
        if opened is None:
            return
        settings, directory = opened
        shared = {name: str(getattr(settings, name)) for name in _SHARED}
        # A log that an error names must outlive the stack that it tells of.
        logs = (base.home if options.data is None else directory) / "logs"
        roles = Roles(logs, variables(settings, _SHARED))

        async def stay() -> None:
            await _bring_up(settings, options, roles, report)
            with published_address(base.home, shared):
                ready(settings.serve_url)
                if options.demo:
                    await live_traffic(settings, Catalogue(options.items, options.users))
                await stop.wait()

        try:
            await _first_of(stay(), roles.watch(), _until(stop))
        finally:
            report("stopping")
            unclean = await roles.stop()
            for line in unclean:
                report(line)
        if unclean:
            raise AifError("not every role stopped in order", mend=f"read the logs in {logs}")


@asynccontextmanager
async def _embedded(base: Settings, options: UpOptions) -> AsyncIterator[tuple[Settings, Path]]:
    """Redis and broker; yields the settings that lead to them, and the directory of everything."""
    async with AsyncExitStack() as stack:
        if options.data is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aif-up-")))
        else:
            directory = options.data.expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
        redis = await stack.enter_async_context(EmbeddedRedis(directory / "redis"))
        partitions = partition_counts(load_topics(), base.topic_prefix)
        broker = await stack.enter_async_context(EmbeddedBroker(partitions))
        serve_port = base.serve_port if options.port is None else options.port
        free = free_ports(5)
        serve_port = serve_port or free[2]
        yield (
            dataclasses.replace(
                base,
                kafka_bootstrap=broker.bootstrap,
                kafka_session_timeout_ms=_SESSION_TIMEOUT_MS,
                redis_url=redis.url,
                models_dir=directory / "models",
                serve_port=serve_port,
                serve_url=f"http://{base.host}:{serve_port}",
                retrieval_port=free[0],
                retrieval_urls=f"http://{base.host}:{free[0]}",
                metrics_port=free[1],
                monitor_port=free[3],
                explain_port=free[4],
            ),
            directory,
        )


async def _bring_up(settings: Settings, options: UpOptions, roles: Roles, report: Report) -> None:
    catalogue = Catalogue(options.items, options.users, kept_end_ms(settings.models_dir.parent))
    async with aiohttp.ClientSession() as session:
        report("starting nearline and retrieval")
        nearline, retrieval = roles.start("nearline"), roles.start("retrieval")
        await first_model(settings, catalogue, report)
        await until_ready(session, f"http://{settings.host}:{settings.metrics_port}/readyz", nearline)
        await until_ready(session, f"{settings.retrieval_urls}/readyz", retrieval)
        await seed(settings, session, catalogue, report)
        report("starting the server")
        serve = roles.start("serve")
        # Without a catalogue there is no model yet, and a server without one is alive, not ready.
        await until_ready(session, f"{settings.serve_url}/{'readyz' if catalogue.items else 'livez'}", serve)
        await answered_in_full(settings, session, catalogue, report)
        monitor = roles.start("monitor")
        roles.start("explain")  # answers do not wait for it, and what is asked meanwhile waits in Kafka
        await until_ready(session, f"http://{settings.host}:{settings.monitor_port}/readyz", monitor)


async def _first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends; cancel the others; raise what the first one raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; None if ``stop`` is set first: then it is cancelled."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
