"""Does a high one pass 5,000 low ones, do low ones keep moving, and how long does one take when nothing else waits?

    python -m experiments.explain_priorities [--low 5000] [--high 60] [--idle 40] [--out FILE]

Starts ``aif up`` (10,000 items, its one explanation worker at niceness 19). Idle: one explanation after the other.
Then ``--low`` low ones are asked for, and while they wait a high one every ``--every-s``. Times are a client's: from
sending the question to hearing the event on its SSE stream. Nothing is asked twice, so nothing comes from the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from experiments.explain_system import FINAL, Asker, System, aif_up, machine, quantiles, tell

BOUNDS_MS = {"idle_coarse": 150.0, "idle_refined": 2000.0, "high_coarse": 500.0}
_AT_ONCE = 16


async def one(asker: Asker, request_id: str, item_id: str, priority: str) -> dict[str, float]:
    """Seconds from the question to its coarse part (native), its refined one (shapley) and its end."""
    begin_s, found = time.perf_counter(), dict[str, float]()
    name = await asker.ask(request_id, item_id, priority=priority)
    async for _, told in asker.events(name):
        passed_s = time.perf_counter() - begin_s
        if "stage" in told:
            found[str(told["stage"])] = passed_s
        if told["state"] in FINAL:
            found[str(told["state"])] = passed_s
            break
    return found


async def material(asker: Asker, wanted: int, users: int) -> list[tuple[str, str]]:
    """(request, item) of so many different items of different answers."""
    found: list[tuple[str, str]] = []
    for user in range(10**9):
        if len(found) >= wanted:
            return found[:wanted]
        answer = await asker.rank(user_id=user % users + 1, k=100)
        found += [(answer["request_id"], item["item_id"]) for item in answer["items"]]
    return found


async def low_done(system: System) -> int:
    """Low ones that the worker has completed, by its own count."""
    async with system.http.get(f"http://127.0.0.1:{system.addresses['explain_port']}/metrics") as reply:
        found = re.search(r'^aif_explanation_gap_seconds_count{priority="low"} (\S+)$', await reply.text(), re.M)
    return int(float(found[1])) if found else 0


async def backlog(options: argparse.Namespace, system: System, pairs: Iterator[tuple[str, str]]) -> dict[str, Any]:
    asker, gate = Asker(system.http, system.url), asyncio.Semaphore(_AT_ONCE)

    async def low(request_id: str, item_id: str) -> str:
        async with gate:
            return await asker.ask(request_id, item_id, priority="low", deadline_ms=3_600_000)

    asked_s = time.perf_counter()
    names = list(await asyncio.gather(*(low(*next(pairs)) for _ in range(options.low))))
    asking_s = time.perf_counter() - asked_s
    steps: list[tuple[float, int]] = []

    async def look() -> None:
        steps.append((time.perf_counter(), await low_done(system)))

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            await look()

    await look()
    watching = asyncio.create_task(watch())
    before = steps[-1]
    highs: list[dict[str, float]] = []
    for _ in range(options.high):
        begin_s = time.perf_counter()
        highs.append(await one(asker, *next(pairs), "high"))
        await asyncio.sleep(max(0.0, options.every_s - (time.perf_counter() - begin_s)))
    watching.cancel()
    await look()
    after = steps[-1]
    moved = [at for at, (_, count) in enumerate(steps) if at == 0 or count > steps[at - 1][1]]
    stood = [steps[b][0] - steps[a][0] for a, b in zip(moved, [*moved[1:], len(steps) - 1], strict=True)]
    return {
        "low_asked": len(names),
        "asking_s": round(asking_s, 1),
        "low_waiting_at_the_end": len(names) - after[1],
        "low_done_per_s": round((after[1] - before[1]) / (after[0] - before[0]), 2),
        "low_stood_still_at_most_s": round(max(stood, default=0.0), 1),
        "high_coarse_ms": quantiles([each["native"] for each in highs if "native" in each]),
        "high_refined_ms": quantiles([each["shapley"] for each in highs if "shapley" in each]),
        "high_complete": sum("complete" in each for each in highs),
    }


async def drill(options: argparse.Namespace, system: System) -> dict[str, Any]:
    asker = Asker(system.http, system.url)
    pairs = iter(await material(asker, options.low + options.high + options.idle + 3, options.users))
    for _ in range(3):
        await one(asker, *next(pairs), "normal")  # the version is loaded, the consumers are warm
    idle = [await one(asker, *next(pairs), "normal") for _ in range(options.idle)]
    return {
        "machine": machine(),
        "items": options.items,
        "niceness": options.nice,
        "idle_coarse_ms": quantiles([each["native"] for each in idle if "native" in each]),
        "idle_refined_ms": quantiles([each["shapley"] for each in idle if "shapley" in each]),
        "idle_complete": sum("complete" in each for each in idle),
        **await backlog(options, system, pairs),
    }


def broken(options: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    late = [f"{name}: p95 above {most:g} ms" for name, most in BOUNDS_MS.items() if found[f"{name}_ms"]["p95"] > most]
    ended = found["idle_complete"] == options.idle and found["high_complete"] == options.high
    short = found["low_waiting_at_the_end"] < options.low // 2
    return [
        *late,
        *([] if ended else ["not all were complete"]),
        *(["low ones stand still"] if found["low_done_per_s"] <= 0 else []),
        *(["the low ones had nearly ended: ask for more"] if short else []),
    ]


async def main(options: argparse.Namespace) -> int:
    settings = {"explain_facts_mb": 1024, "explain_facts_s": 3600, "explain_nice": options.nice}
    async with aif_up(options.items, options.users, **settings) as system:
        found = await drill(options, system)
    found["broken"] = broken(options, found)
    return tell(found, options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--low", type=int, default=5_000)
    parser.add_argument("--high", type=int, default=60)
    parser.add_argument("--every-s", type=float, default=1.5)
    parser.add_argument("--idle", type=int, default=40)
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--out", default="")
    sys.exit(asyncio.run(main(parser.parse_args())))
