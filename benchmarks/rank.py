"""`POST /v1/rank` of one server process, closed loop: B candidates × a history of L, beside a retrieval of R ms.

    python benchmarks/rank.py [--candidates 10000] [--history 1000] [--items 100000] [--requests 1000] [--json]

Starts an embedded broker and Redis, fills the index directly, publishes an untrained model (its shapes are those of a
trained one), and runs `aif serve` alone on core 0; Redis, broker, upstream and client share the other cores. The
upstream answers random keys of the catalogue after R ms, so that the reference retrieval's own work is not measured.
Beside it: retrieval asked alone, so that the added latency is known; and AIF_JOIN=redis with --join redis.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import load_topics
from aif_stream.bus.versions import publish_version
from aif_stream.clock import now_ms
from aif_stream.domain.candidates import MEDIA_TYPE, Candidates, encode_candidates
from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.order import Order
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import manifest_sha256, save
from aif_stream.model.config import ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

CONTENT = 32
CATEGORIES = 100
USERS = 64
SIZES = ("candidates", "history", "short", "bits", "items", "requests", "retrieval_ms", "join", "threads")
STAGES = ("user", "retrieval", "join", "score", "total", "overlap_saved")


def model_of(args: argparse.Namespace) -> ModelVersion:
    config = ModelConfig(
        signature_bits=args.bits,
        long=args.history,
        short=args.short,
        content_width=CONTENT,
        categories=tuple(f"c{i}" for i in range(CATEGORIES)),
    )
    return ModelVersion.init(config, 1, "bench")


async def fill(args: argparse.Namespace, settings: Settings, model: ModelVersion) -> None:
    """Items 0 … N - 1 with rows, USERS users with L clicks each."""
    random = np.random.default_rng(1)
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        await store.ensure_layout()
        await store.add_version(model.name)
        for first in range(0, args.items, 4096):
            numbers = range(first, min(first + 4096, args.items))
            vectors = random.standard_normal((len(numbers), CONTENT)).round(3).tolist()
            items = [
                ItemUpserted(item_id=n, category=f"c{n % CATEGORIES}", content_vector=v)
                for n, v in zip(numbers, vectors, strict=True)
            ]
            times = np.full(len(items), now_ms(), np.uint64)
            rows = model.item_rows(items, times, np.arange(len(items), dtype=np.uint64), now_ms()).rows
            batch = [
                ItemWrite(n, str(n), Order(int(times[i]), i), msgspec.json.encode(items[i]))
                for i, n in enumerate(numbers)
            ]
            await store.write_live(batch, {model.name: rows})
        histories = HistoryStore(redis, settings.history_long)
        for user in range(USERS):
            touched = random.integers(0, args.items, args.history).tolist()
            start = now_ms() - 60_000 * args.history
            packed = b"".join(entry_bytes(k, BehaviorKind.CLICK, start + 60_000 * i) for i, k in enumerate(touched))
            await histories.append({user: packed})


async def publish(settings: Settings, model: ModelVersion) -> None:
    directory = settings.models_dir / model.name
    save(directory, model)
    record = VersionRecord(
        version=model.name,
        state=VersionState.ACTIVE,
        artefact=str(directory),
        manifest_sha256=manifest_sha256(directory),
        created_ms=now_ms(),
        activation=1,
    )
    async with Producer(settings, "bench") as producer:
        await publish_version(producer, record)


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


def client(args: argparse.Namespace) -> None:
    """One connection, one request after the other; prints every latency and timing."""
    parts = urlsplit(args.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def ask(path: str, body: dict[str, Any]) -> tuple[float, bytes]:
        data = json.dumps(body)
        started = time.perf_counter()
        connection.request("POST", path, data, {"content-type": "application/json"})
        reply = connection.getresponse()
        found = reply.read()
        taken = (time.perf_counter() - started) * 1000
        if reply.status != 200:
            raise SystemExit(f"{path} answered {reply.status}: {found[:300]!r}")
        return taken, found

    if args.client == "retrieval":
        taken = [ask("/v1/retrieve", {"user_id": "1", "channel": "popular", "k": args.candidates})[0]
                 for _ in range(args.requests)]  # fmt: skip
        print(json.dumps({"latency": taken}))
        return
    rows: list[tuple[float, dict[str, Any]]] = []
    for i in range(args.warm + args.requests):
        body = {"user_id": i % USERS, "k": 500, "deadline_ms": 2000}
        ms, found = ask("/v1/rank", body)
        if i >= args.warm:
            rows.append((ms, json.loads(found)))
    print(
        json.dumps(
            {
                "latency": [ms for ms, _ in rows],
                "stages": {stage: [a["timings_ms"][stage] for _, a in rows] for stage in STAGES},
                "scored": [a["coverage"]["scored"] for _, a in rows],
                "degraded": sum(bool(a["degraded"]) for _, a in rows),
            }
        )
    )


def quantiles(values: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(values, q)), 3) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}


def again(args: argparse.Namespace, *more: str) -> list[str]:
    """This script in another process, with the same sizes."""
    names = ("candidates", "history", "items", "requests", "retrieval_ms", "warm")
    sizes = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    return [sys.executable, __file__, *sizes, *more]


@contextlib.contextmanager
def child(command: list[str], log: Path, cores: set[int], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1", **environ}
        )
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


@contextlib.asynccontextmanager
async def stack(args: argparse.Namespace, home: Path) -> AsyncIterator[tuple[str, str]]:
    """(url of serve, url of the upstream)."""
    every = os.sched_getaffinity(0)
    first = {min(every)}
    others = every - first or every
    os.sched_setaffinity(0, others)
    serve_port, upstream_port = free_ports(2)
    topics = {name: spec.partitions for name, spec in load_topics().items()}
    async with EmbeddedRedis() as redis, EmbeddedBroker(topics) as broker:
        settings = dataclasses.replace(
            Settings(), home=home, models_dir=home / "models", kafka_bootstrap=broker.bootstrap, redis_url=redis.url
        )
        model = model_of(args)
        await fill(args, settings, model)
        await publish(settings, model)
        environ = {
            "AIF_HOME": str(home),
            "AIF_KAFKA_BOOTSTRAP": broker.bootstrap,
            "AIF_REDIS_URL": redis.url,
            "AIF_SERVE_PORT": str(serve_port),
            "AIF_RETRIEVAL_URLS": f"http://127.0.0.1:{upstream_port}",
            "AIF_RETRIEVAL_K": str(args.candidates),
            "AIF_RETRIEVAL_CHANNELS": args.channels,
            "AIF_HISTORY_LONG": str(args.history),
            "AIF_JOIN": args.join,
            "AIF_EXECUTOR_THREADS": str(args.threads),
            "AIF_LOG_LEVEL": "WARNING",
        }
        fetch = again(args, "--upstream", "--port", str(upstream_port))
        log = home / "serve.log"
        serve = [sys.executable, "-m", "aif_stream", "serve"]
        with child(fetch, home / "upstream.log", others, {}), child(serve, log, first, environ) as process:
            url = f"http://127.0.0.1:{serve_port}"
            await asyncio.to_thread(until_ready, f"{url}/readyz", log)
            if args.profile:
                print(f"serve is process {process.pid}", file=sys.stderr)
            yield url, f"http://127.0.0.1:{upstream_port}"


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    async def run(which: str, url: str) -> dict[str, Any]:
        command = again(args, "--client", which, "--url", url)
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(process.returncode)
        return dict(json.loads(out))

    with tempfile.TemporaryDirectory() as home:
        async with stack(args, Path(home)) as (url, upstream_url):
            alone = await run("retrieval", upstream_url)
            ranked = await run("rank", url)
    retrieval, latency = quantiles(alone["latency"]), quantiles(ranked["latency"])
    return {
        "benchmark": "rank",
        "command": " ".join(["python", *sys.argv]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
        "sizes": {
            name: getattr(args, name)
            for name in (
                "candidates",
                "history",
                "short",
                "bits",
                "items",
                "requests",
                "retrieval_ms",
                "join",
                "threads",
            )
        },
        "scored_p50": float(np.median(ranked["scored"])),
        "degraded": ranked["degraded"],
        "latency_ms": latency,
        "retrieval_alone_ms": retrieval,
        "added_p50_ms": round(latency["p50"] - retrieval["p50"], 3),
        "stages_ms": {stage: quantiles(values) for stage, values in ranked["stages"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("candidates", 10_000), ("history", 1_000), ("short", 100), ("bits", 64), ("items", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--warm", type=int, default=50)
    parser.add_argument("--retrieval-ms", type=float, default=10.0)
    parser.add_argument("--channels", default="neighbours,category,popular")
    parser.add_argument("--join", choices=("mirror", "redis"), default="mirror")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print the server's process id")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", choices=("rank", "retrieval"), help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        upstream(args)
    elif args.client:
        client(args)
    else:
        found = asyncio.run(measure(args))
        if args.json:
            print(json.dumps(found, indent=1))
            return
        print(f"B={args.candidates} L={args.history} S={args.short} W={args.bits}, {args.requests} requests in a row")
        for name in ("retrieval_alone", "latency"):
            print(f"{name:16} p50 {found[f'{name}_ms']['p50']:8.2f}  p99 {found[f'{name}_ms']['p99']:8.2f} ms")
        for stage, values in found["stages_ms"].items():
            print(f"  {stage:14} p50 {values['p50']:8.2f}  p99 {values['p99']:8.2f} ms")


if __name__ == "__main__":
    main()
