"""Event → Redis beside peers: `aif nearline`, a Faust agent, Quix Streams, Bytewax, taking turns.

    python benchmarks/peers/lanes.py [--updates 100000] [--items 50000] [--rounds 3] [--ways plain,same,lent] [--json]

One Apache Kafka 4.1.0 (the same backlog of item updates for each) and one Redis on core 1, the worker alone on core 0;
each turn begins with an empty Redis and a group of its own. Ways of a peer: **plain**, less work (work.py); **same**,
the worker's pipeline with events read in Python; **lent**, with the worker's reading in C too (pipeline.py). After each
turn of the worker, same and lent, Redis must hold the same rows and features, else this fails. Only the worker
publishes the change log and writes marks. How a turn is timed: watching.py. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import watching
from rich.console import Console
from rich.table import Table
from work import Task

import aif_stream
from aif_stream.bench import nearline
from aif_stream.bench.material import lines, model
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.embedded.process import ServerProcess
from aif_stream.index.connection import open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import save
from aif_stream.nearline import rollout
from aif_stream.settings import Settings

HERE = Path(__file__).resolve().parent
PEERS = ("faust", "quix", "bytewax")
WAYS = ("plain", "same", "lent")


def task_of(way: str, settings: Settings, directory: Path, group: str) -> Task:
    beside = [str(Path(aif_stream.__file__).parents[1]), sysconfig.get_path("purelib")]
    (directory / group).mkdir()
    return Task(
        way=way,
        broker=settings.kafka_bootstrap,
        redis=settings.redis_url,
        topic=ITEM_UPDATES,
        group=group,
        directory=str(directory / group),
        beside=beside,
        artefact=str(directory / "artefact"),
        buckets=settings.index_buckets,
        batch=settings.batch_events,
    )


def start(peer: str, task: Task, directory: Path) -> ServerProcess:
    own = peer == "faust"  # a dependency of ours
    python = sys.executable if own else peers_python()
    rest = ["worker", "-l", "error"] if own else []
    process = ServerProcess(
        task.group,
        ["taskset", "-c", "0", python, HERE / f"{peer}_lane.py", json.dumps(asdict(task)), *rest],
        directory=directory,
        log=directory / f"{task.group}.log",
        environ={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.spawn()
    return process


def peers_python() -> str:
    return subprocess.check_output([HERE.parent / "setup-peers"], text=True).strip()


async def turn(name: str, settings: Settings, options: argparse.Namespace, directory: Path, number: int) -> Any:
    """One run from an empty Redis; the figures, and what it left there (None for the plain way)."""
    peer, _, way = name.partition(" ")
    layout = model(options.content).layout
    async with open_redis(settings) as redis:
        await redis.call("FLUSHALL")
        if peer == "aif":
            process, result = await watching.worker(settings, options.updates, directory, number, layout)
        else:
            store = N2OStore(redis, Buckets(settings.index_buckets))
            await store.ensure_layout()
            await store.add_version("bench")
            process = start(peer, task_of(way, settings, directory, f"{peer}-{way}-{number}"), directory)
            result = await watching.peer(settings, options.updates, way, process)
    await process.stop(30)
    return result, None if way == "plain" else await watching.digest(settings, layout)


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    ways = options.ways.split(",")
    names = ["aif" if peer == "aif" else f"{peer} {way}" for peer in options.only.split(",") for way in ways]
    names = list(dict.fromkeys(names))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    left: set[str] = set()
    async with nearline.servers(directory, options.batch) as settings:
        save(directory / "artefact", model(options.content))
        process = nearline.worker(settings, directory, 1)
        await rollout.publish_version(settings, directory / "artefact", activate=True)
        await process.stop(30)
        await nearline.publish(settings, lines(options.items, options.content), options.updates)
        for number in range(2, options.rounds + 2):
            for name in names:
                result, rows = await turn(name, settings, options, directory, number)
                print(f"{name}: {result['updates_per_s']:,}/s", file=sys.stderr)
                runs[name].append(result)
                left |= {rows} - {None}
                if len(left) > 1:
                    sys.exit(f"{name} left other rows in Redis than those before it")
    return {name: medians(some) for name, some in runs.items()}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {**found, "every_updates_per_s": [run["updates_per_s"] for run in runs]}


def compare(ways: dict[str, Any]) -> None:
    """How often the worker is as fast as each, by rate and by CPU."""
    ours = ways.get("aif")
    for name, found in ways.items():
        if ours and name != "aif":
            found["aif_times_as_fast"] = round(ours["updates_per_s"] / found["updates_per_s"], 2)
            of_cpu = found["worker_cpu_us_per_update"] / ours["worker_cpu_us_per_update"]
            found["times_the_cpu_of_aif"] = round(of_cpu, 2)


def set_up(options: argparse.Namespace, load: float) -> dict[str, Any]:
    code = "from importlib.metadata import version as v; print(v('quixstreams'), v('bytewax'), v('redis'))"
    quix, wax, redis_py = subprocess.check_output([peers_python(), "-c", code], text=True).split()
    versions = {"faust-streaming": version("faust-streaming"), "quixstreams": quix, "bytewax": wax, "redis": redis_py}
    return {
        "updates": options.updates,
        "items": options.items,
        "rounds": options.rounds,
        "batch_events": options.batch,
        "content_numbers": options.content,
        "line_bytes": len(lines(1, options.content)[0][1]),
        "versions": versions,
        "load_1min_before": round(load, 2),
        "python": platform.python_version(),
    }


def show(ways: dict[str, Any]) -> None:
    table = Table("lane", "updates/s", "CPU µs per update", "aif × as fast", "× the CPU of aif")
    for name, found in ways.items():
        times = [str(found.get(key, "")) for key in ("aif_times_as_fast", "times_the_cpu_of_aif")]
        table.add_row(name, f"{found['updates_per_s']:,.0f}", f"{found['worker_cpu_us_per_update']:.1f}", *times)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--content", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=Settings().batch_events)
    parser.add_argument("--only", default="aif," + ",".join(PEERS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="aif-peers-") as directory:
        ways = asyncio.run(measure(options, Path(directory)))
    compare(ways)
    if options.json:
        print(json.dumps({"ways": ways, "set_up": set_up(options, load)}))
    else:
        show(ways)


if __name__ == "__main__":
    main()
