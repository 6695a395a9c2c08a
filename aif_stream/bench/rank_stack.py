"""What benchmarks/rank.py measures: a filled index, an upstream, and `aif serve` alone on one core."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np

from aif_stream.bus.topics import load_topics, partition_counts
from aif_stream.domain.candidates import MEDIA_TYPE, Candidates, encode_candidates
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.process import end_with_owner, free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.model.config import ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.runtime.filled_index import CATEGORIES, CONTENT, fill, publish_active
from aif_stream.settings import Settings, handed_on


def model_of(args: argparse.Namespace) -> ModelVersion:
    config = ModelConfig(
        signature_bits=args.bits,
        long=args.history,
        short=args.short,
        content_width=CONTENT,
        categories=CATEGORIES,
        codes=args.codes,
    )
    model = ModelVersion.init(config, 1, "bench")
    if args.codes:  # an untrained version's are all zeros: every item would read the same row of the bag
        words = np.random.default_rng(5).integers(0, 256, (args.codes, args.bits // 8), dtype=np.uint8)
        model.net.item_tower.codewords.numpy()[...] = words
        model = ModelVersion(model.name, model.net)
    return model


def upstream(args: argparse.Namespace) -> None:
    """A retrieval that answers random keys after R ms."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    random = np.random.default_rng(2)
    whole = random.permutation(args.items).astype(np.uint64)

    async def retrieve(request: Request) -> Response:
        started = time.monotonic()
        asked = json.loads(await request.body())
        start = int(random.integers(0, max(1, args.items - asked["k"])))
        body = encode_candidates(Candidates(asked["channel"], whole[start : start + asked["k"]]))
        await asyncio.sleep(max(0.0, args.retrieval_ms / 1000 - (time.monotonic() - started)))
        return Response(body, media_type=MEDIA_TYPE)

    app = Starlette(routes=[Route("/v1/retrieve", retrieve, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="error", access_log=False)


@contextlib.contextmanager
def child(command: list[str], log: Path, cores: set[int], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process on its cores that ends with this one, also when this one is killed (``timeout``, Ctrl-C)."""
    with log.open("wb") as out:
        own = handed_on({"OMP_NUM_THREADS": "1", **environ})
        process = subprocess.Popen(command, stdout=out, stderr=out, env=own, preexec_fn=end_with_owner())  # noqa: PLW1509
        os.sched_setaffinity(process.pid, cores)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def until_ready(url: str, log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} is not ready:\n{log.read_text()[-3000:]}")


def until_listening(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """Redis, broker, a filled index, an active version and an upstream, waiting for a server."""

    args: argparse.Namespace
    home: Path
    upstream_url: str
    environ: dict[str, str]
    first: set[int]

    @contextlib.asynccontextmanager
    async def server(self, **environ: str) -> AsyncIterator[tuple[str, int]]:
        """``aif serve`` alone on the first core: its address and process id."""
        (port,) = free_ports(1)
        log = self.home / "serve.log"
        own = {**self.environ, "AIF_SERVE_PORT": str(port), **environ}
        with child([sys.executable, "-m", "aif_stream", "serve"], log, self.first, own) as process:
            url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(until_ready, f"{url}/readyz", log)
            yield url, process.pid


@contextlib.asynccontextmanager
async def stack(args: argparse.Namespace, home: Path) -> AsyncIterator[Stack]:
    """``rank --upstream …`` is run as the retrieval. Everything but the server stays off the first core."""
    every = os.sched_getaffinity(0)
    first = {min(every)}
    others = every - first or every
    os.sched_setaffinity(0, others)
    (port,) = free_ports(1)
    topics = partition_counts(load_topics())
    try:
        async with EmbeddedRedis() as redis, EmbeddedBroker(topics) as broker:
            settings = dataclasses.replace(
                Settings(), home=home, models_dir=home / "models", kafka_bootstrap=broker.bootstrap, redis_url=redis.url
            )
            model = model_of(args)
            await fill(settings, model, args.items, dict.fromkeys(range(args.users), args.history))
            await publish_active(settings, model, "bench")
            url = f"http://127.0.0.1:{port}"
            environ = {
                "AIF_HOME": str(home),
                "AIF_KAFKA_BOOTSTRAP": broker.bootstrap,
                "AIF_REDIS_URL": redis.url,
                "AIF_RETRIEVAL_URLS": url,
                "AIF_RETRIEVAL_K": str(args.candidates),
                "AIF_RETRIEVAL_CHANNELS": args.channels,
                "AIF_HISTORY_LONG": str(args.history),
                "AIF_JOIN": args.join,
                "AIF_EXECUTOR_THREADS": str(args.threads),
                "AIF_KERNELS": args.kernels,
                "AIF_USER_CACHE_S": str(args.user_cache),
                "AIF_LOG_LEVEL": "ERROR",
            }
            numbers = ("--items", str(args.items), "--retrieval-ms", str(args.retrieval_ms), "--port", str(port))
            with child(
                [sys.executable, "-m", "aif_stream.bench.rank", "--upstream", *numbers],
                home / "upstream.log",
                others,
                {},
            ):
                await asyncio.to_thread(until_listening, port)
                yield Stack(args, home, url, environ, first)
    finally:
        os.sched_setaffinity(0, every)
