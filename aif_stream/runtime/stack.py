"""``aif up``: the whole system on an embedded broker and Redis, every role a process of its own.

First start: Redis and broker → nearline, retrieval, explain → model version (trained on the same generator as the
catalogue) → catalogue, paced by its readers → serve → one request, answered in full → the ready line. A start on a
folder that holds data restores its records to the broker (restore.py) instead of seeding model and catalogue.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from aif_stream.bus.raw_log import RawLog
from aif_stream.bus.topics import ITEM_UPDATES, load_topics, partition_counts
from aif_stream.bus.versions import read_versions
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.journal import Journal
from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import AifError
from aif_stream.index.connection import open_redis
from aif_stream.runtime.address import published_address
from aif_stream.runtime.catalogue import Catalogue, seed
from aif_stream.runtime.data_folder import DataFolder, numbers, open_folder
from aif_stream.runtime.first_model import first_model
from aif_stream.runtime.readers import Readers
from aif_stream.runtime.readiness import answered_in_full, explained
from aif_stream.runtime.restore import Restore
from aif_stream.runtime.roles import Roles, until_ready
from aif_stream.runtime.traffic import live_traffic
from aif_stream.settings import Settings, variables

Report = Callable[[str], None]
T = TypeVar("T")

# The embedded broker makes a group that joins again wait for (session timeout - 1 s); a dead member counts as long.
_SESSION_TIMEOUT_MS: Final = 1500
# The Redis of a killed stack gets SIGTERM at once, but may still have to write its append-only file.
_LOCK_WAIT_S: Final = 20.0
# What the roles and the verbs of another terminal must agree on with this stack.
_SHARED: Final = (
    *("kafka_bootstrap", "redis_url", "kafka_session_timeout_ms", "index_buckets", "models_dir", "serve_url"),
    *("serve_port", "retrieval_port", "retrieval_urls", "metrics_port", "monitor_port", "host", "topic_prefix"),
    "explain_port",
)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of ``aif up``. ``items``, ``users`` None: those of the folder, or the defaults. ``port`` None: from the
    settings. ``data`` None: nothing is kept after the stop."""

    items: int | None = None
    users: int | None = None
    demo: bool = False
    port: int | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class _Servers:
    """Running Redis and broker. ``settings`` hold their addresses. ``log`` and ``journal``: only with ``--data``."""

    settings: Settings
    directory: Path
    log: RawLog | None = None
    journal: Journal | None = None


async def run_up(
    base: Settings, options: UpOptions, stop: asyncio.Event, report: Report, ready: Callable[[str, bool], None]
) -> None:
    """Run the stack until ``stop``. ``report`` is called for each step, ``ready`` once: with the server's address and
    whether a version is active.

    Raises ``DataFolderError`` if the folder cannot be used, else ``AifError`` naming the part that did not start, or
    that ended by itself or did not stop in order, and the log to read.
    """
    async with AsyncExitStack() as stack:
        folder = None
        if options.data is not None:
            folder = stack.enter_context(open_folder(options.data, options.items, options.users))
        catalogue = Catalogue(*((folder.items, folder.users) if folder else numbers(options.items, options.users)))
        servers = await _unless(stop, stack.enter_async_context(_embedded(base, options, folder)))
        if servers is None:
            return
        settings, journal = servers.settings, servers.journal
        shared = {name: str(getattr(settings, name)) for name in _SHARED}
        # A log that an error names must outlive the stack that it tells of.
        logs = (base.home if folder is None else folder.path) / "logs"
        roles = Roles(logs, variables(settings, _SHARED))

        async def stay() -> None:
            active = await _bring_up(servers, folder, catalogue, roles, report)
            with published_address(base.home, shared):
                ready(settings.serve_url, active)
                if options.demo:
                    await live_traffic(settings, catalogue)
                await stop.wait()

        try:
            keeping = () if journal is None else (journal.failed(),)
            await _first_of(stay(), roles.watch(), _until(stop), *keeping)
        finally:
            report("stopping")
            unclean = await roles.stop()
            for line in unclean:
                report(line)
        if unclean:
            raise AifError("not every role stopped in order", mend=f"read the logs in {logs}")


@asynccontextmanager
async def _embedded(base: Settings, options: UpOptions, folder: DataFolder | None) -> AsyncIterator[_Servers]:
    """Start Redis and the broker; with a folder, keep their data there."""
    async with AsyncExitStack() as stack:
        if folder is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aif-up-")))
        else:
            directory = folder.path
        redis = await stack.enter_async_context(EmbeddedRedis(directory / "redis", lock_wait_s=_LOCK_WAIT_S))
        partitions = partition_counts(load_topics(), base.topic_prefix)
        broker = await stack.enter_async_context(EmbeddedBroker(partitions))
        serve_port = base.serve_port if options.port is None else options.port
        free = free_ports(5)
        serve_port = serve_port or free[2]
        settings = dataclasses.replace(
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
        )
        if folder is None:
            yield _Servers(settings, directory)
            return
        if folder.is_new:
            await _emptied(settings, directory)
        log = await stack.enter_async_context(RawLog(settings))
        journal = Journal(broker, log, directory / "journal", partition_counts(load_topics()))
        yield _Servers(settings, directory, log, await stack.enter_async_context(journal))


async def _emptied(settings: Settings, directory: Path) -> None:
    """Remove what an interrupted first start has seeded."""
    async with open_redis(settings) as redis:
        await redis.everywhere("FLUSHALL")
    shutil.rmtree(directory / "journal", ignore_errors=True)


async def _bring_up(
    servers: _Servers, folder: DataFolder | None, catalogue: Catalogue, roles: Roles, report: Report
) -> bool:
    """Start the roles and wait until they are ready. Returns whether a version is active."""
    settings = servers.settings
    is_new = folder is None or folder.is_new
    async with aiohttp.ClientSession() as session:
        report("starting nearline and retrieval" if is_new else f"reading {servers.directory}")
        items = await _put_back(servers, session, roles)
        nearline = roles.start("nearline")
        serve = None if is_new else roles.start("serve")
        if is_new:
            await first_model(settings, catalogue, report)
        await until_ready(session, f"http://{settings.host}:{settings.metrics_port}/readyz", nearline)
        await until_ready(session, f"{settings.retrieval_urls}/readyz", roles.named("retrieval"))
        if is_new:
            await seed(settings, session, catalogue, report)
            items = catalogue.items
        if folder is not None and is_new:
            folder.seeded()
        if serve is None:
            report("starting the server")
            serve = roles.start("serve")
        active = (await read_versions(settings)).active is not None
        # Without an active version a server is alive, but never ready.
        await until_ready(session, f"{settings.serve_url}/{'readyz' if active else 'livez'}", serve)
        monitor = roles.start("monitor")
        asked = await answered_in_full(settings, session, report, items=items > 0, insist=is_new) if active else []
        await until_ready(session, f"http://{settings.host}:{settings.explain_port}/readyz", roles.named("explain"))
        await explained(settings, session, report, asked)
        await until_ready(session, f"http://{settings.host}:{settings.monitor_port}/readyz", monitor)
        return active


async def _put_back(servers: _Servers, session: aiohttp.ClientSession, roles: Roles) -> int:
    """Restore the folder's records to the broker and start the journal. Returns the number of items.

    Starts retrieval, which must read while items are restored, and explain, which takes longest to start."""
    settings = servers.settings
    if servers.log is None or servers.journal is None:
        roles.start("retrieval")
        roles.start("explain")
        return 0
    async with open_redis(settings) as redis, Readers(settings, session, ITEM_UPDATES, None) as readers:

        async def read_back(items: int) -> None:
            await until_ready(session, f"{settings.retrieval_urls}/livez", roles.named("retrieval"))
            await readers.wait_within(items)

        restore = Restore(settings, redis, servers.log, servers.journal, read_back)
        await restore.logs()
        roles.start("retrieval")
        roles.start("explain")
        await restore.items()
        await restore.live()
    servers.journal.start()
    return restore.count


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
