"""Event → Redis beside peers: `aif nearline`, a plain Faust agent, Quix Streams, Bytewax, one after the other.

    python benchmarks/peers/lanes.py [--updates 200000] [--items 100000] [--content 16] [--only aif,faust,…] [--json]

One Apache Kafka 4.1.0 (the same backlog of item updates for each) and one Redis on core 1, the worker alone on core 0.
What the peers leave out stands in work.py. The rate counts from a worker's first rows to its last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aif_stream.bench import nearline
from aif_stream.bench.material import lines, model
from aif_stream.bus.topics import ITEM_UPDATES
from aif_stream.embedded.process import ServerProcess
from aif_stream.index.connection import open_redis
from aif_stream.model.artefact import save
from aif_stream.nearline import rollout
from aif_stream.settings import Settings

HERE = Path(__file__).resolve().parent
PEERS = ("faust", "quix", "bytewax")
STARTS_S, STANDS_S = 90.0, 60.0


def start(peer: str, settings: Settings, directory: Path) -> ServerProcess:
    own = peer == "faust"  # a dependency of ours
    setup = [] if own else [HERE.parent / "setup-peers"]
    python = sys.executable if own else subprocess.check_output(setup, text=True).strip()
    command = [python, HERE / f"{peer}_lane.py", settings.kafka_bootstrap, settings.redis_url, ITEM_UPDATES]
    process = ServerProcess(
        peer,
        ["taskset", "-c", "0", *command, *(["worker", "-l", "error"] if own else [])],
        directory=directory,
        log=directory / f"{peer}.log",
        environ={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.spawn()
    return process


async def watch(settings: Settings, updates: int, process: ServerProcess) -> dict[str, Any]:
    """Follow the peer's own count until all but a last, incomplete pipeline are done."""
    async with open_redis(settings) as redis:
        began_s = last_s = time.perf_counter()
        first, done, cpu_s, at_s = 0, 0, 0.0, 0.0
        while done < updates - 512 * 8:
            await asyncio.sleep(0.02)
            found, now_s = int(await redis.call("GET", "peer:done") or 0), time.perf_counter()
            if found > done:
                done, last_s = found, now_s
            if first == 0 and done:
                first, at_s, cpu_s = done, now_s, nearline.cpu_s(process.pid)
            if not process.running or now_s - last_s > (STANDS_S if done else STARTS_S):
                sys.exit(f"{process.name} stands at {done} of {updates}:\n{process.log.read_text()[-3000:]}")
        count = done - first
        return {
            "updates_per_s": round(count / (last_s - at_s)),
            "worker_cpu_us_per_update": round((nearline.cpu_s(process.pid) - cpu_s) / count * 1e6, 1),
            "seconds": round(last_s - began_s, 2),
        }


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    chosen = options.only.split(",")
    found: dict[str, Any] = {}
    async with nearline.servers(directory, options.batch) as settings:
        if "aif" in chosen:
            save(directory / "artefact", model(options.content))
            process = nearline.worker(settings, directory, 1)
            await rollout.publish_version(settings, directory / "artefact", activate=True)
            await process.stop(30)
        await nearline.publish(settings, lines(options.items, options.content), options.updates)
        if "aif" in chosen:
            process = nearline.worker(settings, directory, 2)
            found["aif"] = await nearline.backlog(settings, options.updates, process)
            await process.stop(30)
        for peer in PEERS:
            if peer not in chosen:
                continue
            async with open_redis(settings) as redis:
                await redis.call("FLUSHALL")
            process = start(peer, settings, directory)
            found[peer] = await watch(settings, options.updates, process)
            await process.stop(10)
    ours = found.get("aif", {}).get("updates_per_s")
    for peer in PEERS:
        if ours and peer in found:
            found[peer]["aif_times_as_fast"] = round(ours / found[peer]["updates_per_s"], 2)
    return found


def set_up(options: argparse.Namespace) -> dict[str, Any]:
    peers = subprocess.check_output([HERE.parent / "setup-peers"], text=True).strip()
    code = "from importlib.metadata import version as v; print(v('quixstreams'), v('bytewax'), v('redis'))"
    quix, wax, redis_py = subprocess.check_output([peers, "-c", code], text=True).split()
    versions = {"faust-streaming": version("faust-streaming"), "quixstreams": quix, "bytewax": wax, "redis": redis_py}
    return {
        "updates": options.updates,
        "items": options.items,
        "content_numbers": options.content,
        "line_bytes": len(lines(1, options.content)[0][1]),
        "versions": versions,
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--content", type=int, default=16)
    parser.add_argument("--batch", type=int, default=Settings().batch_events)
    parser.add_argument("--only", default="aif," + ",".join(PEERS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="aif-peers-") as directory:
        result = {"ways": asyncio.run(measure(options, Path(directory))), "set_up": set_up(options)}
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
