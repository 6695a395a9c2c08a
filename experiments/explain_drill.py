"""Explanations on Apache Kafka while workers are killed (-9), the broker and Redis start again, and streams are cut.

    python -m experiments.explain_drill [--count 10000] [--kills 30] [--followers 200] [--workers 2] [--out FILE]

Asked: does each explanation end in exactly one final state, is none lost, does no subscriber hear an event twice or
miss one? Prints and writes JSON; exit 3 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from aif_stream.bus import admin
from aif_stream.bus.topics import load_topics
from aif_stream.embedded.jars import KafkaJars
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.embedded.process import ServerProcess
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.online.role import serve_role
from aif_stream.runtime.roles import spawn_role
from aif_stream.settings import Settings, variables
from experiments.explain_system import FINAL, Asker, machine
from tests.model_builders import make_items, small_version
from tests.online_builders import Client, activate, online_settings, open_index, running

ITEMS = [str(i) for i in range(60)]


class Workers:
    """``aif explain`` processes; one that is killed is replaced at once."""

    def __init__(self, settings: Settings, directory: Path, count: int) -> None:
        names = ("kafka_bootstrap", "redis_url", "models_dir", "kafka_session_timeout_ms", "index_buckets")
        self._environ = variables(settings, names)
        self._environ |= {"AIF_EXPLAIN_NICE": "0", "AIF_EXPLAIN_PORT": "0"}
        self._directory, self._count, self._started = directory, count, 0
        self.running: list[ServerProcess] = []
        self.kills = 0

    def fill(self) -> None:
        while len(self.running) < self._count:
            self._started += 1
            log = self._directory / f"explain-{self._started}.log"
            self.running.append(spawn_role("explain", log, self._environ))

    async def kill_one(self) -> None:
        process = self.running.pop(random.randrange(len(self.running)))
        await process.kill9()
        self.kills += 1
        self.fill()

    async def keep(self) -> None:
        """What a supervisor does: a worker that ended (Redis away at its start) is started again."""
        while True:
            await asyncio.sleep(1.0)
            self.running = [process for process in self.running if process.running]
            self.fill()

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop(20.0) for process in self.running))


async def follow(asker: Asker, name: str, cut_s: float) -> list[tuple[str, str]]:
    """(id, state) of every event, over connections that are cut at random moments."""
    heard: list[tuple[str, str]] = []
    while not heard or heard[-1][1] not in FINAL:
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(random.uniform(0.05, cut_s)):
                async for entry, told in asker.events(name, heard[-1][0] if heard else ""):
                    heard.append((entry, told["state"]))
        await asyncio.sleep(0.05)
    return heard


async def states(asker: Asker, names: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in names:
        state = (await asker.look(name))["state"]
        while state.startswith("http 5"):  # Redis did not answer in time: that is no state
            await asyncio.sleep(0.5)
            state = (await asker.look(name))["state"]
        found[state] += 1
    return found


async def drill(
    options: argparse.Namespace, client: Client, workers: Workers, kafka: KafkaCluster, redis: EmbeddedRedis
) -> dict[str, Any]:
    begin_s = time.monotonic()
    wanted: list[tuple[str, str]] = []
    while len(wanted) < options.count:
        answer = await client.rank(f"u{len(wanted) % 7}", candidates=random.sample(ITEMS, 40), k=20, explain=True)
        wanted += [(answer["request_id"], item["item_id"]) for item in answer["items"]]
    wanted = wanted[: options.count]
    gate, asker = asyncio.Semaphore(16), Asker(client.session, client.url)

    async def one(request_id: str, item_id: str) -> str:
        async with gate:
            priority = random.choice(["high", "normal", "low"])
            return await asker.ask(request_id, item_id, priority=priority, deadline_ms=3_600_000)

    async def chaos() -> None:
        for number in range(options.kills):
            await asyncio.sleep(random.uniform(0.5, 1.5) * options.every_s)
            await workers.kill_one()
            if number == options.kills // 3:
                await kafka.kill9(kafka.node_ids[0])
                await kafka.start(kafka.node_ids[0])
            if number == 2 * options.kills // 3:
                await redis.stop()
                await redis.start()

    hitting = asyncio.create_task(chaos())
    keeping = asyncio.create_task(workers.keep())
    names = list(await asyncio.gather(*(one(*each) for each in wanted)))
    chosen = random.sample(names, min(options.followers, len(names)))
    following = [asyncio.create_task(follow(asker, name, options.cut_s)) for name in chosen]
    await hitting
    while True:
        found = await states(asker, names)
        sys.stderr.write(f"{time.monotonic() - begin_s:6.0f} s {dict(found)}\n")
        if all(state in FINAL or state.startswith("http") for state in found):
            break
        await asyncio.sleep(2.0)
    keeping.cancel()
    heard = await asyncio.gather(*following)
    whole = {name: await follow(asker, name, 1e6) for name in chosen}
    return {
        "asked": len(names),
        "distinct": len(set(names)),
        "states": dict(found),
        "workers": options.workers,
        "kills": workers.kills,
        "broker_restarts": 1,
        "redis_restarts": 1,
        "followers": len(chosen),
        "events_twice": sum(len(ids) - len({event for event, _ in ids}) for ids in heard),
        "events_missing": sum(len(set(whole[n]) - set(ids)) for n, ids in zip(chosen, heard, strict=True)),
        "finals_more_than_one": sum(sum(state in FINAL for _, state in ids) != 1 for ids in heard),
        "seconds": round(time.monotonic() - begin_s, 1),
        "machine": machine(),
    }


async def main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="explain-drill-") as scratch:
        directory = Path(scratch)
        async with (
            KafkaCluster(1, await KafkaJars.fetch(), directory / "kafka") as kafka,
            EmbeddedRedis(directory / "redis") as redis,
        ):
            settings = dataclasses.replace(
                online_settings(kafka.bootstrap, redis.url, directory, retrieval_urls="http://127.0.0.1:9"),
                kafka_session_timeout_ms=6000,
                explain_client_rate=1e6,
                explain_facts_s=21_600.0,
                explain_facts_mb=1024,
                explain_nice=0,
            )
            await admin.apply(settings, load_topics())
            model = small_version()
            workers = Workers(settings, directory, options.workers)
            async with open_index(settings, [model.name]) as index:
                await index.put(model, make_items(60))
                for number in range(7):
                    await index.click(f"u{number}", random.sample(ITEMS, 20))
                await activate(settings, model, 1)
                async with running(serve_role, settings) as client:
                    workers.fill()
                    try:
                        result = await drill(options, client, workers, kafka, redis)
                    finally:
                        await workers.stop()
    broken = [
        *([] if set(result["states"]) <= set(FINAL) else ["not all ended"]),
        *([name for name in ("events_twice", "events_missing", "finals_more_than_one") if result[name]]),
    ]
    result["broken"] = broken
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.out:
        await asyncio.to_thread(Path(options.out).write_text, text + "\n")
    return 3 if broken else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--every-s", type=float, default=20.0)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--cut-s", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="")
    sys.exit(asyncio.run(main(parser.parse_args())))
