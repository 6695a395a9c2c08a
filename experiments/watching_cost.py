"""What does watching cost? CPU per 1,000 requests and 100,000 updates with metrics, request log and probe, and without.

    python experiments/watching_cost.py [--starts 6] [--turns 4] [--out FILE.json]          # about 12 minutes

Two whole systems stand side by side on one Kafka (topic prefixes) with a Redis each: `aif nearline` and `aif serve` as
they ship, watched by an `aif monitor`; and the same with AIF_METRICS=false, AIF_REQUEST_LOG_RATE=0 and no monitor.
They are given the same work at the same time, request by request (on and off, then off and on, …): 2,000 requests of
2,000 and 700 of 10,000 candidates, then UPDATES item updates, and again. What neighbours do to caches and clocks is
larger than what is looked for, and so it befalls both. Counted is the CPU time of a system's two processes while both
work, and for SETTLE_S more, in which the request log writes what waits; so clients, Kafka and Redis do not count, and
the probe's own requests and updates do, since they fall into the same time. The monitor's own CPU is told beside it,
per hour. Both systems are started anew STARTS times, for two processes of one program differ too (memory, cores), as
long as they live. Told are the means over all turns, the difference with a 95 % interval (Student's t over the starts).
Bar: 3 %. Exit 3.
``--parts`` names what is on: one of them alone tells what it costs, ``none`` how much two equal systems seem to differ.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from aif_stream.bus import admin
from aif_stream.bus.groups import ITEMS_GROUP
from aif_stream.bus.producer import Ack
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.topics import ITEM_UPDATES, load_topics
from aif_stream.bus.watch import GroupWatch
from aif_stream.clock import cpu_s
from aif_stream.embedded.jars import KafkaJars
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess, free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.nearline import rollout
from aif_stream.runtime.roles import Roles, until_ready
from aif_stream.settings import Settings, variables
from aif_stream.training.summary import student

sys.path.insert(0, str(Path(__file__).parents[1]))  # drills/ is no part of the package
from drills.stack import untrained

ITEMS = 12_000
REQUESTS = {2_000: 2_000, 10_000: 700}  # per turn, by candidates: turns of two to three seconds of CPU
UPDATES = 40_000
# Longer than records of the request log are gathered, and short against a turn: what the monitor asks meanwhile counts.
SETTLE_S = 1.2
PARTS = ("metrics", "log", "probe")
CLIENTS, OPEN_ACKS = 4, 2_000
SHARED = (
    *("kafka_bootstrap", "redis_url", "models_dir", "topic_prefix", "metrics_port", "serve_port", "serve_url"),
    *("monitor_port", "metrics", "request_log_rate", "kafka_session_timeout_ms"),
)


@dataclass(slots=True)
class System:
    settings: Settings
    processes: list[ServerProcess]
    monitor: ServerProcess | None

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.processes)

    def monitor_cpu_s(self) -> float:
        return 0.0 if self.monitor is None else cpu_s(self.monitor.pid)


async def ask(systems: Sequence[System], http: aiohttp.ClientSession, seed: int, candidates: int) -> None:
    """As many requests as a turn has of this size, CLIENTS at a time, each to every system in turn."""
    chance = random.Random(seed)
    bodies = deque(
        orjson.dumps(
            {
                "user_id": chance.randrange(100),
                "candidates": chance.sample(range(1, ITEMS), candidates),
                "k": 100,
                "deadline_ms": 2000,
            }
        )
        for _ in range(REQUESTS[candidates])
    )

    async def client() -> None:
        while bodies:
            body = bodies.popleft()
            for system in systems[:: 1 if len(bodies) % 2 else -1]:
                async with http.post(f"{system.settings.serve_url}/v1/rank", data=body) as reply:
                    await reply.read()
                    assert reply.status == 200, reply.status

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def update(systems: Sequence[System], count: int, seed: int) -> None:
    """``count`` updates of each system, until its worker has committed them."""
    await asyncio.gather(*(_update(system.settings, count, seed) for system in systems))


async def _update(settings: Settings, count: int, seed: int) -> None:
    chance = random.Random(seed)
    acks: deque[Ack] = deque()
    async with EventPublisher(settings, source="cost") as publisher:
        for number in range(count):
            item = number % ITEMS + 1 if seed < 0 else chance.randrange(1, ITEMS)
            attributes: dict[str, str | int | float | list[str]] = {"price": chance.randrange(100)}
            acks.append(await publisher.item(item, category=f"c{item % 20}", attributes=attributes))
            while len(acks) > OPEN_ACKS:
                await acks.popleft()
        for ack in acks:
            await ack
    async with GroupWatch(settings, ITEMS_GROUP, [ITEM_UPDATES]) as watch, asyncio.timeout(120):
        while any(standing.lag_records for standing in (await watch.standing()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def measured(systems: Sequence[System], http: aiohttp.ClientSession, seed: int) -> list[dict[str, float]]:
    """CPU seconds of each system, by what was done."""
    found: list[dict[str, float]] = [{} for _ in systems]
    asked = [
        (f"per_1000_requests_of_{count}", ask(systems, http, seed, count), requests / 1_000)
        for count, requests in REQUESTS.items()
    ]
    for name, work, per in (*asked, ("per_100000_updates", update(systems, UPDATES, seed), UPDATES / 100_000)):
        before = [system.cpu_s() for system in systems]
        await work
        await asyncio.sleep(SETTLE_S)
        for told, system, was in zip(found, systems, before, strict=True):
            told[name] = (system.cpu_s() - was) / per
    return found


@asynccontextmanager
async def system_of(
    base: Settings, directory: Path, artefact: Path, http: aiohttp.ClientSession, name: str, *, parts: frozenset[str]
) -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis(directory / f"redis-{name}"))
        ports = free_ports(3)
        settings = dataclasses.replace(
            base,
            home=directory / name,
            models_dir=directory / name / "models",
            topic_prefix=f"{name}.",
            redis_url=redis.url,
            metrics_port=ports[0],
            serve_port=ports[1],
            serve_url=f"http://127.0.0.1:{ports[1]}",
            monitor_port=ports[2],
            metrics="metrics" in parts,
            request_log_rate=1.0 if "log" in parts else 0.0,
        )
        await admin.apply(settings, load_topics())
        roles = Roles(directory / name, variables(settings, SHARED))
        stack.push_async_callback(roles.stop)
        nearline = roles.start("nearline")
        await until_ready(http, f"http://127.0.0.1:{ports[0]}/readyz", nearline)
        await rollout.publish_version(settings, artefact, activate=True)
        await _update(settings, ITEMS, -1)
        serve = roles.start("serve")
        await until_ready(http, f"{settings.serve_url}/readyz", serve)
        monitor = roles.start("monitor") if "probe" in parts else None
        if monitor is not None:
            await until_ready(http, f"http://127.0.0.1:{ports[2]}/readyz", monitor)
        yield System(settings, [nearline, serve], monitor)


def compared(on: list[list[float]], off: list[list[float]]) -> dict[str, Any]:
    """Values by start and turn: means, and how much more ``on`` is, in percent of ``off``'s, with its interval."""
    more = (np.mean(on, axis=1) - np.mean(off, axis=1)) / np.mean(off) * 100
    half = student(len(more) - 1) * more.std(ddof=1) / np.sqrt(len(more))
    return {
        "on_cpu_s": round(float(np.mean(on)), 3),
        "off_cpu_s": round(float(np.mean(off)), 3),
        "more_percent": round(float(more.mean()), 2),
        "low": round(float(more.mean() - half), 2),
        "high": round(float(more.mean() + half), 2),
        "median_percent": round(float(np.median((np.array(on) - off) / np.mean(off) * 100)), 2),
        "by_start_percent": [round(float(each), 2) for each in more],
        "turns": int(np.size(on)),
    }


Found = dict[str, dict[str, list[float]]]


async def one_start(
    base: Settings,
    directory: Path,
    artefact: Path,
    http: aiohttp.ClientSession,
    start: int,
    turns: int,
    parts: frozenset[str],
) -> tuple[Found, float]:
    """Values by system and what was measured, one for each turn; CPU s per hour of the monitor."""
    async with (
        system_of(base, directory, artefact, http, f"on{start}", parts=parts) as on,
        system_of(base, directory, artefact, http, f"off{start}", parts=frozenset()) as off,
    ):
        await measured([on, off], http, 0)  # caches, connections, the collector's first rounds
        began_s, watching_s = time.monotonic(), on.monitor_cpu_s()
        found: Found = {"on": {}, "off": {}}
        for turn in range(1, turns + 1):
            both = await measured([on, off], http, start * turns + turn)
            for name, told in zip(found, both, strict=True):
                for what, value in told.items():
                    found[name].setdefault(what, []).append(value)
                print(start, turn, name, told, file=sys.stderr)
        return found, (on.monitor_cpu_s() - watching_s) / (time.monotonic() - began_s) * 3600


async def run(directory: Path, starts: int, turns: int, parts: frozenset[str]) -> dict[str, Any]:
    artefact = await asyncio.to_thread(untrained, directory / "model")
    jars = await KafkaJars.fetch()
    async with (
        KafkaCluster(1, jars, directory / "kafka") as kafka,
        aiohttp.ClientSession() as http,
    ):
        base = dataclasses.replace(Settings(), kafka_bootstrap=kafka.bootstrap, kafka_session_timeout_ms=6000)
        told = [await one_start(base, directory, artefact, http, start, turns, parts) for start in range(starts)]
    values = {
        name: {what: [found[name][what] for found, _ in told] for what in told[0][0][name]} for name in ("on", "off")
    }
    return {
        **{what: compared(each, values["off"][what]) for what, each in values["on"].items()},
        "monitor_cpu_s_per_hour": round(float(np.mean([monitor for _, monitor in told])), 1),
        "on": sorted(parts),
        "load_1m": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--turns", type=int, default=4, help="turns of both per start")
    parser.add_argument("--parts", default=",".join(PARTS), help="what is on")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/watching_cost.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aif-cost-") as scratch:
        found = asyncio.run(
            run(Path(scratch), args.starts, args.turns, frozenset(args.parts.split(",")) & frozenset(PARTS))
        )
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    worst = max(each["more_percent"] for name, each in found.items() if name.startswith("per_"))
    sys.exit(3 if worst > 3 else 0)


if __name__ == "__main__":
    main()
