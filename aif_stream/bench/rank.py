"""`POST /v1/rank` of one server process on one core: B candidates × a history of L, beside a retrieval of R ms.

    python benchmarks/rank.py [--sizes 10000x1000,2000x1000] [--concurrency 1,8] [--rate 20] [--sequential] [--json]
    python benchmarks/rank.py --goals [--json]      the loads of rank_goals.py, and each figure beside its goal

Starts an embedded broker and Redis, fills the index directly, publishes an untrained model (its shapes are those of a
trained one), and runs `aif serve` alone on core 0; Redis, broker, upstream and client share the other cores. The
upstream answers random keys of the catalogue after R ms, so that the reference retrieval's own work is not measured.

Closed load: each of C clients sends its next request when it has its answer. Open load: requests are due at random
times (Poisson) whatever became of the earlier ones, and a latency counts from when its request was *due*, so a late
server cannot hide behind a late client. --sequential measures the same server with the user side after retrieval
(AIF_OVERLAP=false) in the same run. Beside both: retrieval asked alone, so that the added latency is known.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from aif_stream.bench.rank_goals import CELLS, Load, judged, scaled, sized, table
from aif_stream.bench.rank_stack import Stack, stack, upstream
from aif_stream.clock import cpu_s

STAGES = ("user", "retrieval", "join", "score", "total", "overlap_saved")
Ask = Callable[[int, float], Coroutine[Any, Any, None]]


class Heard:
    """What one load heard: latencies of answers (200) in ms, their stages, and how many of which status."""

    def __init__(self) -> None:
        self.latency: list[float] = []
        self.stages: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "join + score")}
        self.statuses: Counter[int] = Counter()
        self.degraded = 0
        self.scored: list[int] = []

    def answer(self, ms: float, status: int, body: bytes) -> None:
        self.statuses[status] += 1
        if status != 200:
            return
        found = json.loads(body)
        self.latency.append(ms)
        if "timings_ms" in found:
            times = found["timings_ms"]
            for stage in STAGES:
                self.stages[stage].append(times[stage])
            self.stages["join + score"].append(times["join"] + times["score"])
            self.degraded += bool(found["degraded"])
            self.scored.append(found["coverage"]["scored"])


async def closed(ask: Ask, requests: int, concurrency: int) -> None:
    numbers = iter(range(requests))

    async def one() -> None:
        for number in numbers:
            await ask(number, time.perf_counter())

    await asyncio.gather(*(one() for _ in range(concurrency)))


async def opened(ask: Ask, requests: int, rate: float) -> None:
    gaps = np.random.default_rng(3).exponential(1 / rate, requests)
    due = time.perf_counter() + np.cumsum(gaps)
    async with asyncio.TaskGroup() as tasks:
        for number, at in enumerate(due.tolist()):
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.create_task(ask(number, at))


async def ranked(args: argparse.Namespace, url: str, pid: int, load: Load) -> dict[str, Any]:
    """One load on a server that is warm."""
    heard, random, hot = Heard(), np.random.default_rng(4), min(64, args.users)
    cold = itertools.cycle(range(hot, args.users)) if args.users > hot else itertools.cycle(range(args.users))

    def user() -> int:
        return next(cold) if random.random() < load.cold else int(random.integers(0, hot))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(number: int, due: float, into: Heard) -> None:
            body = {"user_id": user(), "k": args.k, "deadline_ms": args.deadline_ms}
            async with session.post(url + "/v1/rank", json=body) as reply:
                data = await reply.read()
            into.answer((time.perf_counter() - due) * 1000, reply.status, data)

        await closed(lambda number, due: send(number, due, Heard()), args.warm, 1)
        sides = await user_sides(session, url)
        begin, cpu = time.perf_counter(), cpu_s(pid)
        if load.kind == "closed":
            await closed(lambda number, due: send(number, due, heard), load.requests, int(load.amount))
        else:
            await opened(lambda number, due: send(number, due, heard), load.requests, load.amount)
        seconds, spent = time.perf_counter() - begin, cpu_s(pid) - cpu
        sides = {source: count - sides[source] for source, count in (await user_sides(session, url)).items()}
    answered = heard.statuses[200]
    return {
        "name": load.name,
        "load": load.kind,
        "amount": load.amount,
        "requests": load.requests,
        "user_sides": sides,
        "statuses": {str(status): count for status, count in heard.statuses.items()},
        "degraded": heard.degraded,
        "scored_p50": float(np.median(heard.scored)) if heard.scored else 0.0,
        "answers_per_s": round(answered / seconds, 1),
        "server_cpu_ms_per_answer": round(spent * 1000 / max(answered, 1), 2),
        "latency_ms": quantiles(heard.latency),
        "stages_ms": {stage: quantiles(values) for stage, values in heard.stages.items()},
    }


async def user_sides(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """User sides so far by where they came from."""
    async with session.get(url + "/metrics") as reply:
        text = await reply.text()
    found = re.findall(r'^aif_user_sides_total\{source="(\w+)"\} ([\d.e+]+)', text, re.MULTILINE)
    return {"hit": 0, "shared": 0, "computed": 0} | {source: int(float(count)) for source, count in found}


async def retrieval_alone(args: argparse.Namespace, url: str) -> dict[str, float]:
    taken = []
    async with aiohttp.ClientSession() as session:
        for _ in range(min(args.requests, 200)):
            begin = time.perf_counter()
            body = {"user_id": "1", "channel": "popular", "k": args.candidates}
            async with session.post(url + "/v1/retrieve", json=body) as reply:
                await reply.read()
            taken.append((time.perf_counter() - begin) * 1000)
    return quantiles(taken)


def quantiles(values: list[float]) -> dict[str, float]:
    names = (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
    return {name: round(float(np.percentile(values, q)), 3) if values else 0.0 for name, q in names}


def loads_of(args: argparse.Namespace) -> tuple[Load, ...]:
    """What --concurrency and --rate name."""
    closed_ = [
        Load(f"{c} clients", "closed", float(c), args.requests) for c in filter(None, args.concurrency.split(","))
    ]
    return (
        *closed_,
        *(Load(f"open {r}/s", "open", float(r), args.requests) for r in filter(None, args.rate.split(","))),
    )


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    begin_load = os.getloadavg()
    cells: list[tuple[argparse.Namespace, tuple[Load, ...]]] = []
    if args.goals:
        cells = [(sized(args, cell), scaled(cell.loads, args.scale)) for cell in CELLS]
    else:
        for size in args.sizes.split(","):
            own = copy.copy(args)
            own.candidates, own.history = (int(text) for text in size.split("x"))
            cells.append((own, loads_of(args)))
    for own, loads in cells:
        with tempfile.TemporaryDirectory() as home:
            async with stack(own, Path(home)) as ready:
                runs += await one_size(own, ready, loads)
    return {
        "benchmark": "rank",
        "command": " ".join(["python", *sys.argv]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
        "load_average": {"before": begin_load, "after": os.getloadavg()},
        "sizes": {name: getattr(args, name) for name in ("short", "items", "k", "retrieval_ms", "join")},
        "server": {"threads": args.threads, "deadline_ms": args.deadline_ms, "kernels": args.kernels},
        "goals": judged(runs) if args.goals else [],
        "runs": runs,
    }


async def one_size(args: argparse.Namespace, ready: Stack, loads: tuple[Load, ...]) -> list[dict[str, Any]]:
    alone = None
    runs = []
    for mode in ("overlapped", "sequential") if args.sequential else ("overlapped",):
        async with ready.server(AIF_OVERLAP=str(mode == "overlapped").lower()) as (url, pid):
            alone = alone or await retrieval_alone(args, ready.upstream_url)
            for load in loads:
                run = await ranked(args, url, pid, load)
                added = run["latency_ms"]["p50"] - alone["p50"]
                head = {"mode": mode, "candidates": args.candidates, "history": args.history, "bits": args.bits}
                head |= {"codes": args.codes, "user_cache_s": args.user_cache}
                runs.append({**head, **run, "retrieval_alone_ms": alone, "added_p50_ms": round(added, 3)})
                if not args.json:
                    show(runs[-1])
    return runs


def show(run: dict[str, Any]) -> None:
    unit = "clients" if run["load"] == "closed" else "requests/s due"
    print(
        f"{run['name']}: B={run['candidates']} L={run['history']} W={run['bits']} codes={run['codes']} {run['mode']}, "
        f"{run['amount']:g} {unit}, user sides {run['user_sides']}: "
        f"{run['answers_per_s']} answers/s, {run['server_cpu_ms_per_answer']} ms CPU each, "
        f"statuses {run['statuses']}, degraded {run['degraded']}"
    )
    print(f"  {'retrieval alone':16} p50 {run['retrieval_alone_ms']['p50']:8.2f}")
    for name, found in (("latency", run["latency_ms"]), *run["stages_ms"].items()):
        print(f"  {name:16} p50 {found['p50']:8.2f}  p99 {found['p99']:8.2f} ms")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000x1000", help="candidates x history, comma-separated")
    parser.add_argument("--concurrency", default="1", help="closed loads: clients, comma-separated; empty: none")
    parser.add_argument("--rate", default="", help="open loads: requests/s, comma-separated")
    parser.add_argument("--sequential", action="store_true", help="also with the user side after retrieval")
    for name, default in (("short", 100), ("bits", 64), ("items", 100_000), ("k", 500), ("requests", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--warm", type=int, default=50)
    parser.add_argument("--retrieval-ms", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=float, default=150.0)
    parser.add_argument("--user-cache", type=float, default=0.0, help="AIF_USER_CACHE_S of the server")
    parser.add_argument("--goals", action="store_true", help="the loads of rank_goals.py; about 7 minutes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of --goals: share of each load's requests (a trial run)"
    )
    parser.add_argument("--codes", type=int, default=0, help="codewords of coded tiers; 0: exact tiers")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--kernels", default="auto", help="AIF_KERNELS of the server")
    parser.add_argument("--channels", default="neighbours,category,popular")
    parser.add_argument("--join", choices=("mirror", "redis"), default="mirror")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser


QUICK = ["--items", "20000", "--requests", "100", "--warm", "20"]


def result_of(args: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    return asyncio.run(measure(args))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.upstream:
        upstream(args)
        return
    found = result_of(args)
    if args.json:
        print(json.dumps(found, indent=1))
    elif args.goals:
        print(table(found["goals"]))


if __name__ == "__main__":
    main()
