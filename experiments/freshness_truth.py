"""Do the reported freshness lags tell the truth? An observer beside the system polls Redis and ``/v1/rank``.

    aif up --items 3000 --users 200 --port 0        # in another terminal
    python experiments/freshness_truth.py --rates 1,500,2000 --seconds 30 [--out FILE.json]

Item updates go out at each rate; eight times a second (at most the rate) one of them is of a watched item. The
observer asks Redis for that item's order and the server for its ``newest_event_ms`` every 3 ms, and notes when each
first showed the update. Against it: what ``aif lag`` says of the last minute (so a round is 62 s at least), the
quantiles of ``aif_freshness_lag_seconds`` over the round, read as Prometheus reads them, and the probe. ``--pause PID``
stops that process (the nearline worker) for 30 s in a last round; there an update that a newer one of its batch
replaced counts until Redis, not until the mirror, which never had it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from aif_stream import settings as settings_module
from aif_stream.bus.publisher import EventPublisher
from aif_stream.clock import now_ms
from aif_stream.domain.ids import key_of
from aif_stream.index.connection import open_redis
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.settings import Settings

WATCHED = "observer"
POLL_S = 0.003
PAUSE_S = 30.0


@dataclass(slots=True)
class Observer:
    """When each watched update was first seen at a stage: lags in seconds."""

    ask: Callable[[], Awaitable[int]]
    waiting: list[int] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            if self.waiting:
                newest_ms = await self.ask()
                at_ms = now_ms()
                seen = [event_ms for event_ms in self.waiting if event_ms <= newest_ms]
                self.lags_s += [(at_ms - event_ms) / 1000 for event_ms in seen]
                self.waiting = [event_ms for event_ms in self.waiting if event_ms > newest_ms]
            await asyncio.sleep(POLL_S)


async def publish(settings: Settings, rate: float, seconds: float, observers: list[Observer]) -> None:
    """Updates at a constant rate, open loop; every so many is the watched item's."""
    every = max(1, round(rate / 8))
    loop = asyncio.get_running_loop()
    async with EventPublisher(settings, source="observer") as publisher:
        began_s = loop.time()
        for number in itertools.count():
            due_s = began_s + number / rate
            if due_s > began_s + seconds:
                return
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            else:
                await asyncio.sleep(0)  # a publisher that is behind may not keep the observers from looking
            watched, event_ms = number % every == 0, now_ms()
            if watched:
                for observer in observers:
                    observer.waiting.append(event_ms)
            name = WATCHED if watched else str(random.randrange(1, 3000))
            await publisher.item(name, category="1", attributes={}, event_time_ms=event_ms)


Counts = dict[float, float]


async def counts(session: aiohttp.ClientSession, url: str, stage: str) -> Counts:
    """Upper bound -> cumulative count of one stage."""
    async with session.get(f"{url}/metrics") as reply:
        text = await reply.text()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "aif_freshness_lag_seconds_bucket" and sample.labels["stage"] == stage
    }


def quantile(after: Counts, before: Counts, q: float) -> float:
    """As ``histogram_quantile`` does."""
    bounds = sorted(after)
    grown = np.array([after[bound] - before.get(bound, 0.0) for bound in bounds])
    rank = q * grown[-1]
    at = int(np.searchsorted(grown, rank))
    low, below = (bounds[at - 1], grown[at - 1]) if at else (0.0, 0.0)
    if bounds[at] == float("inf"):
        return low
    return float(low + (bounds[at] - low) * (rank - below) / max(grown[at] - below, 1e-9))


async def round_of(
    settings: Settings, session: aiohttp.ClientSession, store: N2OStore, rate: float, seconds: float, pid: int | None
) -> dict[str, Any]:
    body = json.dumps({"user_id": "1", "candidates": [WATCHED], "k": 1})

    async def in_redis() -> int:
        (item,) = await store.read_items([key_of(WATCHED)])
        return item.order.event_time_ms if item else 0

    async def served() -> int:
        async with session.post(f"{settings.serve_url}/v1/rank", data=body) as reply:
            return int((await reply.json())["freshness"]["newest_event_ms"])

    stages = {"redis": Observer(in_redis), "mirror": Observer(served)}
    urls = {"redis": f"http://127.0.0.1:{settings.metrics_port}", "mirror": settings.serve_url}
    before = {stage: await counts(session, urls[stage], stage) for stage in stages}
    watching = [asyncio.create_task(observer.run()) for observer in stages.values()]
    publishing = asyncio.create_task(publish(settings, rate, seconds, list(stages.values())))
    if pid is not None:
        await asyncio.sleep(2)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
    await publishing
    async with asyncio.timeout(60):
        while any(observer.waiting for observer in stages.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for task in watching:
        task.cancel()
    found: dict[str, Any] = {"rate": rate, "paused_s": PAUSE_S if pid else 0}
    await asyncio.sleep(1.5)  # a worker's word in its lease is up to a second old
    async with session.get(f"http://127.0.0.1:{settings.monitor_port}/v1/lag") as reply:
        report = await reply.json()
    for stage, observer in stages.items():
        (exact,) = [said for said in report["freshness"] if said["stage"] == stage]
        after = await counts(session, urls[stage], stage)
        for q in (0.5, 0.99):
            seen = float(np.quantile(observer.lags_s, q))
            reported = quantile(after, before[stage], q)
            found[f"{stage} p{q * 100:.0f} ms"] = {
                "observed": round(seen * 1e3, 1),
                "aif lag": round(exact[f"p{q * 100:.0f}_s"] * 1e3, 1),
                "histogram": round(reported * 1e3, 1),
            }
        found[f"{stage} observed"] = len(observer.lags_s)
    found["probe"] = report["probe"]
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1,500,2000")
    parser.add_argument("--seconds", type=float, default=62)
    parser.add_argument("--pause", type=int, metavar="PID")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings, _ = settings_module.load()
    results = []
    async with aiohttp.ClientSession() as session, open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        plan: list[tuple[float, float, int | None]] = [(float(r), args.seconds, None) for r in args.rates.split(",")]
        if args.pause:
            plan.append((100.0, args.seconds, args.pause))
        for rate, seconds, pid in plan:
            results.append(await round_of(settings, session, store, rate, seconds, pid))
            print(json.dumps(results[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
