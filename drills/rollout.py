"""``python -m drills.rollout``: versions rolled out, back and away under load, then the same with everything breaking.

Real Kafka, two workers, two servers, live updates and an independent client throughout. Each answer is checked offline
against the joint scores of the version that it names (drills/answers.py); after each disturbance every row of the
version that was rebuilt meanwhile is compared with the item side of the newest features (drills/verify.py).
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from aif_stream.clock import monotonic_s
from aif_stream.embedded.process import run_tool
from aif_stream.errors import BusUnavailable, IndexUnavailable
from aif_stream.model.artefact import load, save
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout as product
from aif_stream.telemetry import configure_logging
from drills import answers
from drills.catalogue import Catalogue
from drills.serving import Operator, Phases, asking, console, served, serving
from drills.stack import DrillStack, drill_stack
from drills.verify import WRONG, caught_up, compare

KILLS = 20
Disturb = Callable[[DrillStack, asyncio.Task[Any], random.Random], Awaitable[dict[str, Any]]]


async def train(directory: Path) -> list[Path]:
    """Two trainings of the same data by different seeds: versions that agree about little more than the items."""
    data = "synthetic:users=200,items=2000,impressions=20000,seed=1"
    made = []
    for seed, name in ((0, "v1"), (1, "v2")):
        out = directory / name
        if not out.exists():
            command = [sys.executable, "-m", "aif_stream", "train", data, "--out", str(out), "--preset", "quick"]
            await run_tool([*command, "--seed", str(seed)], directory=directory, deadline_s=600, mend="see its log")
        made.append(out)
    return made


def renamed(directory: Path, model: ModelVersion, name: str) -> Path:
    """The same weights under another version name."""
    if not (directory / name).exists():
        save(directory / name, ModelVersion(name, model.net))
    return directory / name


async def under_load(
    stack: DrillStack, catalogue: Catalogue, artefacts: list[Path], rate: float, calm_s: float
) -> dict[str, Any]:
    """v2 published, rebuilt, activated, rolled back, activated again; v1 retired. v1 answers at the beginning."""
    operator, phases, facts = Operator(stack), Phases(), {}
    live = asyncio.create_task(catalogue.run())
    try:
        async with serving(stack) as urls, asking(stack, urls, catalogue, rate) as heard:
            await asyncio.sleep(5)
            phases.begin("before")
            await asyncio.sleep(calm_s)
            phases.begin("rebuild")
            began_s = monotonic_s()
            await operator.model("publish", str(artefacts[1]), "--wait")
            facts["rebuild_s"] = round(monotonic_s() - began_s, 1)
            phases.begin("calm with two versions")
            await asyncio.sleep(calm_s / 2)
            phases.begin("switch")
            facts["activate"] = await operator.activate("v2")
            facts["activated_s"] = await served(urls, "v2", catalogue.requests)
            await asyncio.sleep(5)
            await operator.model("rollback")
            facts["rolled_back_s"] = await served(urls, "v1", catalogue.requests)
            await asyncio.sleep(5)
            await operator.activate("v2")
            facts["activated_again_s"] = await served(urls, "v2", catalogue.requests)
            await asyncio.sleep(5)
            phases.begin("retire")
            facts["retire"] = (await operator.model("retire", "v1"))[1][-300:]
            phases.begin("after")
            await asyncio.sleep(calm_s)
    finally:
        catalogue.stop()
        await live
    return {**facts, "latency": phases.latencies(heard), **await checked(stack, catalogue, artefacts, heard)}


async def checked(stack: DrillStack, catalogue: Catalogue, artefacts: list[Path], heard: Path) -> dict[str, Any]:
    console.print("checking every answer")
    models = [await asyncio.to_thread(load, path) for path in artefacts]
    users = await answers.askers(stack.settings, catalogue)
    truth = await answers.truth_of(catalogue, users, models)
    found = await asyncio.to_thread(answers.judge_all, truth, heard)
    return {
        "answers": {kind: found.answers[kind] for kind in (answers.OK, answers.STALE, answers.MIXED)},
        "errors": sum(count for status, count in found.statuses.items() if status != 200),
        "statuses": {str(status): count for status, count in found.statuses.items()},
        "answered_by": dict(found.versions),
        "degraded": dict(found.degraded),
        "scores_checked": found.scores,
        "states_known": sum(map(len, catalogue.states.values())),
        "largest_distance": found.worst,
        "tolerance": answers.TOLERANCE,
        "window_ms": answers.WINDOW_MS,
        "planted": await asyncio.to_thread(answers.planted, catalogue, users, truth, models, heard),
        "examples": found.examples[:10],
    }


async def rebuild_while(
    stack: DrillStack, catalogue: Catalogue, artefact: Path, disturb: Disturb, chance: random.Random
) -> dict[str, Any]:
    """Publish and rebuild a version while something breaks; then compare every row with its newest event."""
    console.print(f"[bold]{artefact.name}: {disturb.__name__}[/bold]")
    model = await asyncio.to_thread(load, artefact)
    live = asyncio.create_task(catalogue.run())
    began_s = monotonic_s()
    try:
        rebuilding = asyncio.create_task(published(stack, artefact))
        facts = await disturb(stack, rebuilding, chance)
        facts["publish_called"] = await rebuilding
        facts["rebuild_s"] = round(monotonic_s() - began_s, 1)
    finally:
        catalogue.stop()
        await live
    while len(stack.workers) < 2:
        stack.start_worker()
    facts["caught_up_s"] = round(await caught_up(stack.settings), 1)
    facts.update(await compare(stack.settings, model, model.name, catalogue.truth))
    console.print(facts)
    return facts


async def published(stack: DrillStack, artefact: Path) -> int:
    """`aif model publish --wait`, called again when Redis or Kafka was away; how often it was called."""
    calls = 0
    while True:
        calls += 1
        try:
            await product.publish_version(stack.settings, artefact, wait=True)
        except (IndexUnavailable, BusUnavailable) as error:
            console.print(f"publish, again: {error}")
            await asyncio.sleep(1.0)
        else:
            return calls


async def workers_killed(stack: DrillStack, rebuilding: asyncio.Task[Any], chance: random.Random) -> dict[str, Any]:
    """kill -9 at random moments while it rebuilds, another worker in its place."""
    kills = 0
    while not rebuilding.done():
        await asyncio.wait([rebuilding], timeout=chance.uniform(3.0, 9.0))
        if rebuilding.done():
            break
        if kills < KILLS:
            await stack.kill9(chance.choice(stack.workers))
            stack.start_worker()
            kills += 1
    return {"kills": kills}


async def broker_restarted(stack: DrillStack, rebuilding: asyncio.Task[Any], chance: random.Random) -> dict[str, Any]:
    """The only broker stopped for 5 s in the middle of the rebuild."""
    (node,) = stack.kafka.node_ids
    await asyncio.sleep(chance.uniform(3.0, 6.0))
    inside = not rebuilding.done()
    await stack.kafka.stop(node)
    await asyncio.sleep(5.0)
    await stack.kafka.start(node)
    return {"restarts": 1, "in_the_rebuild": inside}


async def redis_restarted(stack: DrillStack, rebuilding: asyncio.Task[Any], chance: random.Random) -> dict[str, Any]:
    """Redis killed (up to a second forgotten) and started from its AOF, three times, the first time at once."""
    inside = 0
    for pause_s in (0.5, chance.uniform(2.0, 4.0), chance.uniform(2.0, 4.0)):
        await asyncio.sleep(pause_s)
        inside += not rebuilding.done()
        await stack.redis.kill9()
        await stack.redis.start()
    return {"restarts": 3, "in_the_rebuild": inside}


# Held back so that what breaks breaks in the middle: two minutes at least for the kills, half a minute else.
BROKEN = {
    f.__name__: (f, least_s) for f, least_s in ((workers_killed, 120), (broker_restarted, 30), (redis_restarted, 30))
}
PARTS = ("under_load", *BROKEN)


async def run(directory: Path, parts: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    artefacts = await train(directory)
    chance = random.Random(options["seed"])
    results: dict[str, Any] = {}
    async with drill_stack(directory, model=artefacts[0], index_buckets=options["buckets"]) as stack:
        catalogue = Catalogue(
            stack.settings, options["items"], options["updates"], stack.model.config.content_width, options["seed"]
        )
        catalogue.plan()
        began_s = monotonic_s()
        await catalogue.fill()
        await caught_up(stack.settings)
        results["filled_s"] = round(monotonic_s() - began_s, 1)
        if "under_load" in parts:
            asked = options["rate"], options["calm"]
            results["under_load"] = await under_load(stack, catalogue, artefacts, *asked)
            console.print(results["under_load"])
        v2 = await asyncio.to_thread(load, artefacts[1])
        catalogue.rate = options["updates"] // 2
        for number, (disturb, least_s) in enumerate(BROKEN.values(), start=3):
            if disturb.__name__ not in parts:
                continue
            await stack.replace_workers(rebuild_rate=max(1, options["items"] // len(stack.workers) // least_s))
            artefact = renamed(directory, v2, f"v{number}")
            results[disturb.__name__] = await rebuild_while(stack, catalogue, artefact, disturb, chance)
    return results


@click.command()
@click.option("--items", default=200_000, show_default=True)
@click.option("--buckets", default=256, show_default=True, help="of the index")
@click.option("--updates", default=1_000, show_default=True, help="live updates per second")
@click.option("--rate", default=50.0, show_default=True, help="rank requests per second")
@click.option("--calm", default=30.0, show_default=True, help="seconds of each quiet phase")
@click.option("--seed", default=7, show_default=True)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="[default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/rollout_drill.json"))
@click.option("--keep", type=click.Path(path_type=Path), help="work here and keep logs and answers")
def main(out: Path, keep: Path | None, parts: Sequence[str], **options: Any) -> None:
    """Run the drill, or parts of it beside what ``--out`` holds of the others.

    Exit 3 when a score was mixed, an answer missing or a row wrong.
    """
    configure_logging("ERROR")
    began_s = monotonic_s()
    with tempfile.TemporaryDirectory(prefix="aif-rollout-") as scratch:
        directory = (keep or Path(scratch)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        results = asyncio.run(run(directory, parts, options))
    results |= {"options": options, "seconds": round(monotonic_s() - began_s)}
    if len(parts) < len(PARTS) and out.exists():
        results = orjson.loads(out.read_bytes()) | results
    results["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    rows = [found for name, found in results.items() if isinstance(found, dict) and "compared" in found]
    load_ = results.get("under_load", {"answers": {answers.MIXED: 0}, "errors": 0})
    console.print_json(orjson.dumps(load_).decode())
    if load_["answers"][answers.MIXED] or load_["errors"] or any(found[kind] for found in rows for kind in WRONG):
        sys.exit(3)


if __name__ == "__main__":
    main()
