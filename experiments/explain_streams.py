"""Streams of explanations, cut at random and by the thousand.

    python -m experiments.explain_streams [--cuts 500] [--subscribers 1000] [--quiet-s 60] [--out FILE]

Starts ``aif up``. Cuts: subscribers of SSE and of WebSocket reach the server over a proxy that cuts each connection
after a random number of bytes or milliseconds, in the middle of an event, too; they come back with the last id that
they have heard. What each heard must be the whole stream: nothing missing, nothing twice, in order.

Then ``--subscribers`` at once on the one server, half SSE, half WebSocket, of explanations that nobody works on yet:
memory and CPU of the server without them, with them in silence, and while all are told everything.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from aif_stream.clock import cpu_s
from experiments.explain_system import FINAL, Asker, System, aif_up, machine, resident_mb, tell

_CHUNK_BYTES = 1_024
# A stage is one event of up to some 20 KB (a history of 100); less than that, and it never comes through.
_MOST_BYTES = 40_000
_AT_ONCE = 12
_WITHIN_S = 900.0


class Cutter:
    """A TCP proxy that resets each connection after some bytes of what the server says, or some time."""

    def __init__(self, port: int, *, most_bytes: int, most_s: float) -> None:
        self._port = port
        self._most_bytes, self._most_s = most_bytes, most_s
        self.cuts = 0
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far_in, far_out = await asyncio.open_connection("127.0.0.1", self._port)
        forward = asyncio.create_task(_copy(near_in, far_out))
        try:
            async with asyncio.timeout(random.uniform(0.02, self._most_s)):
                left = random.randint(1, self._most_bytes)
                while data := await far_in.read(min(left, _CHUNK_BYTES)):
                    near_out.write(data)
                    await near_out.drain()
                    left -= len(data)
                    if left <= 0:
                        raise TimeoutError
            near_out.close()
        except TimeoutError:
            self.cuts += 1
        except (ConnectionError, OSError):
            pass
        finally:
            forward.cancel()
            for writer in (near_out, far_out):
                if not writer.is_closing() or writer is far_out:
                    writer.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()


async def hear_sse(asker: Asker, name: str, after: str, heard: Callable[[str, str], None]) -> None:
    async for entry, told in asker.events(name, after):
        heard(entry, told["state"])


async def hear_ws(asker: Asker, name: str, after: str, heard: Callable[[str, str], None]) -> None:
    query = f"?last_event_id={after}" if after else ""
    async with asker.http.ws_connect(f"{asker.url}/v1/explanations/{name}/ws{query}") as socket:
        async for message in socket:
            told = json.loads(message.data)
            if "id" in told:
                heard(told["id"], told["state"])


HEAR = {"sse": hear_sse, "ws": hear_ws}


async def follow(asker: Asker, name: str, way: str) -> list[str]:
    """Ids of all events until the final one, over as many connections as it takes."""
    heard: list[tuple[str, str]] = []
    while not heard or heard[-1][1] not in FINAL:
        after = heard[-1][0] if heard else ""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            await HEAR[way](asker, name, after, lambda entry, state: heard.append((entry, state)))
        await asyncio.sleep(0.02)
    return [entry for entry, _ in heard]


async def cut_apart(options: argparse.Namespace, system: System, way: str) -> dict[str, Any]:
    """Subscribers over a cutting proxy, until it has cut often enough."""
    direct = Asker(system.http, system.url)
    cutter = Cutter(int(system.addresses["serve_port"]), most_bytes=_MOST_BYTES, most_s=2.0)
    found = {"explanations": 0, "events": 0, "missing": 0, "twice": 0, "out_of_order": 0}

    async def one(user: int) -> None:
        answer = await direct.rank(user_id=user % options.users + 1, k=20)
        item = random.choice(answer["items"])["item_id"]
        name = await direct.ask(answer["request_id"], item, priority=random.choice(["high", "normal", "low"]))
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            ids = await follow(Asker(http, cutter.url), name, way)
        whole = await follow(direct, name, "sse")
        found["explanations"] += 1
        found["events"] += len(whole)
        found["missing"] += len(set(whole) - set(ids))
        found["twice"] += len(ids) - len(set(ids))
        found["out_of_order"] += ids != whole

    users = itertools.count(0 if way == "sse" else 10_000)

    async def ever() -> None:
        while cutter.cuts < options.cuts:
            await one(next(users))

    async with cutter.open(), asyncio.timeout(_WITHIN_S):
        await asyncio.gather(*(ever() for _ in range(_AT_ONCE)))
    return {"cuts": cutter.cuts, **found}


async def crowd(options: argparse.Namespace, system: System) -> dict[str, Any]:
    """Many subscribers at once; the worker stands still until all are there and the silence was measured."""
    asker, server = Asker(system.http, system.url), await system.process_of("serve")
    worker = await system.process_of("explain")
    os.kill(worker, signal.SIGSTOP)
    try:
        names: list[str] = []
        for user in range(options.subscribers // 20):
            answer = await asker.rank(user_id=user % options.users + 1, k=20)
            for item in answer["items"][:10]:  # two subscribers each
                name = await asker.ask(answer["request_id"], item["item_id"], method="native", deadline_ms=3_600_000)
                names += [name, name]
        before = await _spent(server, options.quiet_s / 2)
        ways = ["sse" if number % 2 else "ws" for number in range(len(names))]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:
            opened = Asker(http, system.url)
            following = [asyncio.create_task(follow(opened, n, way)) for n, way in zip(names, ways, strict=True)]
            await _connected(system, len(names))
            silent = await _spent(server, options.quiet_s)
            begin_s, cpu_before_s = time.perf_counter(), cpu_s(server)
            os.kill(worker, signal.SIGCONT)
            async with asyncio.timeout(_WITHIN_S):
                heard = await asyncio.gather(*following)
            told_s, told_cpu_s = time.perf_counter() - begin_s, cpu_s(server) - cpu_before_s
    finally:
        os.kill(worker, signal.SIGCONT)
    whole = {name: await follow(asker, name, "sse") for name in dict.fromkeys(names)}
    return {
        "subscribers": len(names),
        "explanations": len(whole),
        "without": before,
        "silent": silent,
        "more_mb": round(silent["resident_mb"] - before["resident_mb"], 1),
        "kb_each": round((silent["resident_mb"] - before["resident_mb"]) * 1024 / len(names), 1),
        "telling": {"seconds": round(told_s, 1), "cpu_s": round(told_cpu_s, 2), "events": sum(map(len, heard))},
        "missing": sum(len(set(whole[name]) - set(ids)) for name, ids in zip(names, heard, strict=True)),
        "twice": sum(len(ids) - len(set(ids)) for ids in heard),
    }


async def _spent(pid: int, seconds: float) -> dict[str, float]:
    """CPU (percent of one core) over some seconds, and memory at their end."""
    before_s, begin_s = cpu_s(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (cpu_s(pid) - before_s) / (time.perf_counter() - begin_s)
    return {"cpu_percent": round(100 * share, 1), "resident_mb": round(resident_mb(pid), 1)}


async def _connected(system: System, count: int) -> None:
    """Wait until the server says that so many are there."""
    async with asyncio.timeout(_WITHIN_S):
        while True:
            async with system.http.get(f"{system.url}/metrics") as reply:
                there = re.search(r"^aif_explanation_subscribers (\S+)$", await reply.text(), re.M)
            if there and float(there[1]) >= count:
                return
            await asyncio.sleep(0.2)


async def main(options: argparse.Namespace) -> int:
    async with aif_up(options.items, options.users, explain_facts_mb=1024, explain_nice=0) as system:
        found: dict[str, Any] = {"machine": machine()}
        for way in HEAR:
            found[way] = await cut_apart(options, system, way)
            sys.stderr.write(f"{way}: {found[way]}\n")
        found["crowd"] = await crowd(options, system)
    wrong = ("missing", "twice", "out_of_order")
    found["broken"] = [f"{part}: {name}" for part in (*HEAR, "crowd") for name in wrong if found[part].get(name)]
    return tell(found, options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--quiet-s", type=float, default=60.0)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--out", default="")
    sys.exit(asyncio.run(main(parser.parse_args())))
