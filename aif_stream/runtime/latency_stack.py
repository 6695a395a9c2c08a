"""What ``aif experiment latency`` measures: real servers over filled indexes, beside an upstream of a chosen latency.

Each model has an index of its own (Redis, broker), filled directly; weights are untrained, as shapes alone decide the
cost. Servers run alone on the first core; everything else, the load included, stays off it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from aif_stream.bus.topics import load_topics, partition_counts
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.process import LOOPBACK, ServerProcess, free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.model.config import Kind, ModelConfig, Part
from aif_stream.model.version import ModelVersion
from aif_stream.runtime.filled_index import CATEGORIES, CONTENT, fill, publish_active
from aif_stream.settings import Settings, handed_on

USERS: Final = 16  # of each length of history
_START_S: Final = 600.0  # several at once on one core, which others may use as well
_STOP_S: Final = 20.0

CLASSIC: Final = "classic"  # COLD with every tower at request time, not served by `aif serve`
MODELS: Final[dict[str, ModelConfig]] = {
    "aif": ModelConfig(),
    "cold": ModelConfig(kind=Kind.COLD),
    CLASSIC: ModelConfig(kind=Kind.COLD),
    "coded": ModelConfig(codes=1024),
    **{part.value: ModelConfig(parts=(part,)) for part in Part},  # what each of them adds to COLD
}


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """A filled index with one active version, and the environment that leads a server to it."""

    directory: Path
    items: int
    artefact: Path
    environ: Mapping[str, str]

    @asynccontextmanager
    async def server(self, name: str, session: aiohttp.ClientSession, **environ: str) -> AsyncIterator[tuple[str, int]]:
        """``aif serve`` (or, for a model of that name, ``classic``) on the first core: its address and process id."""
        (port,) = free_ports(1)
        classic = ["aif_stream.runtime.classic", str(port), str(self.items), str(self.artefact)]
        process = ServerProcess(
            f"aif serve ({name})",
            [sys.executable, "-m", *(classic if self.artefact.name == CLASSIC else ["aif_stream", "serve"])],
            directory=self.directory,
            log=self.directory / f"{name}.log",
            environ=handed_on({**self.environ, "AIF_SERVE_PORT": str(port), "OMP_NUM_THREADS": "1", **environ}),
        )
        process.spawn()
        try:
            pin(process.pid, first_core())
            url = f"http://{LOOPBACK}:{port}"
            await process.wait_ready(lambda: _answers(session, f"{url}/readyz"), _START_S)
            yield url, process.pid
        finally:
            await process.stop(_STOP_S)


@asynccontextmanager
async def filled(model: str, items: int, histories: Sequence[int], home: Path, upstream: str) -> AsyncIterator[Index]:
    """Items 0 … items - 1; for the n-th length of ``histories``, users n·USERS … with so many clicks each."""
    directory = home / model
    directory.mkdir()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis())
        topics = partition_counts(load_topics())
        broker = await stack.enter_async_context(EmbeddedBroker(topics))
        settings = dataclasses.replace(
            Settings(),
            home=directory,
            models_dir=directory / "models",
            kafka_bootstrap=broker.bootstrap,
            redis_url=redis.url,
        )
        config = msgspec.structs.replace(
            MODELS[model], long=max(histories), short=100, content_width=CONTENT, categories=CATEGORIES
        )
        version = ModelVersion.init(config, 1, model)
        lengths = {group * USERS + n: length for group, length in enumerate(histories) for n in range(USERS)}
        await fill(settings, version, items, lengths)
        await publish_active(settings, version, "latency")
        yield Index(
            directory,
            items,
            settings.models_dir / version.name,
            {
                "AIF_HOME": str(directory),
                "AIF_KAFKA_BOOTSTRAP": broker.bootstrap,
                "AIF_REDIS_URL": redis.url,
                "AIF_RETRIEVAL_URLS": upstream,
                "AIF_RETRIEVAL_CHANNELS": "popular",  # one channel: as many candidates as it is told, none twice
                "AIF_RETRIEVAL_BUDGET_MS": "1500",
                "AIF_HISTORY_LONG": str(max(histories)),
                "AIF_USER_CACHE_S": "0",
                "AIF_EXECUTOR_THREADS": "2",
                "AIF_LOG_LEVEL": "ERROR",
            },
        )


@asynccontextmanager
async def upstream(items: int, home: Path, session: aiohttp.ClientSession) -> AsyncIterator[str]:
    """The slow upstream as a process of its own: its address."""
    (port,) = free_ports(1)
    process = ServerProcess(
        "slow upstream",
        [sys.executable, "-m", "aif_stream.runtime.slow_upstream", str(port), str(items)],
        directory=home,
        log=home / "upstream.log",
    )
    process.spawn()
    try:
        url = f"http://{LOOPBACK}:{port}"
        await process.wait_ready(lambda: _answers(session, f"{url}/pace", post=True), _START_S)
        yield url
    finally:
        await process.stop(_STOP_S)


@contextlib.contextmanager
def off_the_first_core() -> Iterator[None]:
    """This process, and what it starts meanwhile, leave the first core to the servers (where there is another)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, every - first_core() or every)
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def first_core() -> set[int]:
    """The lowest core of the machine that process 1's children may use; empty where cores cannot be chosen."""
    return {0} if hasattr(os, "sched_setaffinity") else set()


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process on some cores, where the machine lets it."""
    if cores:
        with contextlib.suppress(OSError):  # the first core is not ours (a container's share): anywhere then
            os.sched_setaffinity(pid, cores)


async def _answers(session: aiohttp.ClientSession, url: str, post: bool = False) -> bool:
    try:
        async with session.request("POST" if post else "GET", url, data=b"{}" if post else None) as reply:
            return reply.status < 300
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False
