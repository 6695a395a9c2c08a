"""Does asking for explanations slow answers down? Blocks with and without, in turn, at the same open load.

    python -m experiments.explain_latency URL [--rate 50] [--block-s 20] [--blocks 6] [--explain 2] [--out FILE]

URL: a running system with `aif explain` beside it (`aif up`; AIF_EXPLAIN_NICE=19 is the default). Latency counts from
the moment when a request was due. Prints medians and p99 of both, and their differences.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

_USERS = 50
_QUANTILES = (("p50", 0.5), ("p99", 0.99))


async def block(session: aiohttp.ClientSession, url: str, options: argparse.Namespace, explain: int) -> list[float]:
    """Latencies in ms of one block."""
    loop = asyncio.get_running_loop()
    begin_s, found = loop.time() + 0.1, list[float]()

    async def one(due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        body = {"user_id": random.randint(1, _USERS), "k": 50, "explain": explain}
        async with session.post(f"{url}/v1/rank", json=body) as reply:
            await reply.read()
            found.append((loop.time() - due_s) * 1000.0 if reply.status == 200 else float("inf"))

    count = int(options.rate * options.block_s)
    await asyncio.gather(*(one(begin_s + number / options.rate) for number in range(count)))
    return found


async def main(options: argparse.Namespace) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"without": [], "with": []}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await block(session, options.url, argparse.Namespace(rate=20, block_s=3), 0)  # warm
        for number in range(options.blocks):
            name = "with" if number % 2 else "without"
            spent[name] += await block(session, options.url, options, options.explain if number % 2 else 0)
    figures = {
        name: {
            "p50": round(float(np.quantile(ms, 0.5)), 3),
            "p99": round(float(np.quantile(ms, 0.99)), 3),
            "n": len(ms),
        }
        for name, ms in spent.items()
    }
    return {
        "rate": options.rate,
        "explain": options.explain,
        "ms": figures,
        "difference_ms": {q: round(figures["with"][q] - figures["without"][q], 3) for q in ("p50", "p99")},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--block-s", type=float, default=20.0)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--explain", type=int, default=2)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    result = json.dumps(asyncio.run(main(arguments)), indent=2)
    sys.stdout.write(result + "\n")
    if arguments.out:
        Path(arguments.out).write_text(result + "\n")
