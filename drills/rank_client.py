"""An independent client: ``python -m drills.rank_client``. Open load over several servers; every answer is kept."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import msgspec

from aif_stream.clock import monotonic_s, now_ms

_TIMEOUT_S = 10.0


class Heard(msgspec.Struct):
    """One request and what came of it. ``ms`` counts from when it was due, so a late client hides no late server."""

    due_ms: int
    done_ms: int
    ms: float
    server: str
    user: str
    status: int
    answer: msgspec.Raw


async def ask(session: aiohttp.ClientSession, url: str, request: dict[str, Any], due_s: float, out: BinaryIO) -> None:
    due_ms = now_ms() - round((monotonic_s() - due_s) * 1000)
    try:
        async with session.post(f"{url}/v1/rank", data=msgspec.json.encode(request)) as reply:
            status, body = reply.status, await reply.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        status, body = 0, msgspec.json.encode(repr(error))
    if status != 200:
        body = msgspec.json.encode(body.decode(errors="replace"))
    took_ms = (monotonic_s() - due_s) * 1000
    heard = Heard(due_ms, now_ms(), took_ms, url, request["user_id"], status, msgspec.Raw(body))
    out.write(msgspec.json.encode(heard) + b"\n")


async def run(urls: list[str], requests: list[dict[str, Any]], rate: float, out: BinaryIO) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
        began_s, sent = monotonic_s(), 0
        while not stop.is_set():
            due_s = began_s + sent / rate
            await asyncio.sleep(max(0.0, due_s - monotonic_s()))
            request = requests[sent // len(urls) % len(requests)]
            tasks.create_task(ask(session, urls[sent % len(urls)], request, due_s, out))
            sent += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", required=True)
    parser.add_argument("--requests", type=Path, required=True, help="a JSON array of bodies")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.out.open("wb") as out:
        asyncio.run(run(options.urls.split(","), msgspec.json.decode(options.requests.read_bytes()), options.rate, out))


if __name__ == "__main__":
    main()
