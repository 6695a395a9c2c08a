"""Does asking for explanations slow answers down? Blocks with and without, in turn, at the same open load.

    python -m experiments.explain_latency [URL] [--rate 50] [--block-s 20] [--blocks 12] [--explain 2] [--out FILE]

URL: a running system with `aif explain` beside it; without one, `aif up` with 10,000 items is started (its explanation
worker at niceness 19). Latency counts from the moment when a request was due. Two explanations a request are many times
what a worker can do: it is busy all the time, in the blocks without, too. Prints medians and p99 of both, their
differences, and the server's CPU for a request.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import Any

import aiohttp
import numpy as np

from aif_stream.clock import cpu_s
from experiments.explain_system import aif_up, machine, tell

BOUNDS_MS = {"p50": 0.5, "p99": 3.0}
_USERS = 50
_ITEMS = 10_000
_WARM_S = 5.0


async def block(session: aiohttp.ClientSession, url: str, rate: float, seconds: float, explain: int) -> list[float]:
    """Latencies in ms of one block; a request that failed counts as infinite."""
    loop = asyncio.get_running_loop()
    begin_s, found = loop.time() + 0.1, list[float]()

    async def one(due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        body = {"user_id": random.randint(1, _USERS), "k": 50, "explain": explain}
        async with session.post(f"{url}/v1/rank", json=body) as reply:
            await reply.read()
            found.append((loop.time() - due_s) * 1000.0 if reply.status == 200 else float("inf"))

    await asyncio.gather(*(one(begin_s + number / rate) for number in range(int(rate * seconds))))
    return found


async def measure(options: argparse.Namespace, url: str) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, float] = {"without": 0.0, "with": 0.0}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(f"{url}/v1/status") as reply:
            pid = int((await reply.json())["pid"])
        await block(session, url, options.rate, _WARM_S, options.explain)
        for number in range(options.blocks):
            name = "with" if number % 2 else "without"
            before_s = cpu_s(pid)
            explain = options.explain if number % 2 else 0
            spent[name] += await block(session, url, options.rate, options.block_s, explain)
            cpu[name] += cpu_s(pid) - before_s
    figures = {
        name: {
            # Not interpolated: between a number and a request that failed lies none.
            **{
                q: round(float(np.quantile(ms, share, method="higher")), 3)
                for q, share in (("p50", 0.5), ("p99", 0.99))
            },
            "n": len(ms),
            "failed": sum(value == float("inf") for value in ms),
            "server_cpu_ms_each": round(1000.0 * cpu[name] / len(ms), 3),
        }
        for name, ms in spent.items()
    }
    difference = {q: round(figures["with"][q] - figures["without"][q], 3) for q in BOUNDS_MS}
    finite = {q: value if np.isfinite(value) else None for q, value in difference.items()}
    return {
        "machine": machine(),
        "rate": options.rate,
        "explain": options.explain,
        "ms": {  # null: more requests than that failed
            name: {q: value if np.isfinite(value) else None for q, value in each.items()}
            for name, each in figures.items()
        },
        "difference_ms": finite,
        "broken": [f"{q} + {difference[q]:g} ms" for q, most in BOUNDS_MS.items() if not difference[q] <= most],
    }


async def main(options: argparse.Namespace) -> int:
    if options.url:
        found = await measure(options, options.url)
    else:
        async with aif_up(_ITEMS, 2 * _USERS) as system:
            found = await measure(options, system.url)
    return tell(found, options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--block-s", type=float, default=20.0)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--explain", type=int, default=2)
    parser.add_argument("--out", default="")
    sys.exit(asyncio.run(main(parser.parse_args())))
