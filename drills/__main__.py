"""``python -m drills [SCENARIO …]``: break, wait, compare; results as JSON. Exit 3 when one row is wrong."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from aif_stream.clock import monotonic_s
from aif_stream.telemetry import configure_logging
from drills.load import Load
from drills.scenarios import SCENARIOS
from drills.stack import DrillStack, drill_stack
from drills.verify import WRONG, caught_up, compare

console = Console(stderr=True)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--rate", default=500, show_default=True, help="events/s of the live load")
@click.option("--items", default=5000, show_default=True, help="items that change")
@click.option("--times", type=int, help="how often each scenario strikes  [default: its own]")
@click.option("--seed", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/drill.json"))
@click.option("--keep", type=click.Path(path_type=Path), help="work here and keep the logs")
def drill(
    names: tuple[str, ...], rate: int, items: int, times: int | None, seed: int, out: Path, keep: Path | None
) -> None:
    """Run NAMES (default: all) on real Apache Kafka and Redis with two workers and a live load."""
    configure_logging("ERROR")
    with tempfile.TemporaryDirectory(prefix="aif-drill-") as scratch:
        directory = (keep or Path(scratch)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        results = asyncio.run(_run(directory, list(names) or list(SCENARIOS), rate, items, times, seed))
    known = orjson.loads(out.read_bytes()) if out.exists() else {}
    known.update(results)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(known, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    _show(results)
    if any(result[kind] for result in results.values() for kind in WRONG):
        sys.exit(3)


async def _run(
    directory: Path, names: list[str], rate: int, items: int, times: int | None, seed: int
) -> dict[str, dict[str, Any]]:
    artefact = directory / "model"
    if not artefact.exists():
        console.print("training a small model")
        data = "synthetic:users=200,items=2000,impressions=20000,seed=1"
        command = [sys.executable, "-m", "aif_stream", "train", data, "--out", str(artefact), "--preset", "quick"]
        await asyncio.to_thread(subprocess.run, command, check=True)
    results: dict[str, dict[str, Any]] = {}
    async with drill_stack(directory, model=artefact) as stack:
        load = Load(stack.settings, items, rate, stack.model.config.content_width, seed)
        for name in names:
            results[name] = await _one(stack, load, name, times, random.Random(seed))
            console.print(f"{name}: {results[name]}")
    return results


async def _one(stack: DrillStack, load: Load, name: str, times: int | None, chance: random.Random) -> dict[str, Any]:
    scenario, usual = SCENARIOS[name]
    console.print(f"[bold]{name}[/bold]")
    began, sent = monotonic_s(), load.sent
    running = asyncio.create_task(load.run())
    try:
        facts = await scenario(stack, chance, times or usual)
    finally:
        load.stop()
        await running
    while len(stack.workers) < 2:
        stack.start_worker()
    recovered_s = await caught_up(stack.settings)
    compared = await compare(stack.settings, stack.model, stack.model.name, load.truth)
    return {
        **facts,
        **compared,
        "events": load.sent - sent,
        "late_events": load.late,
        "rate_per_s": load.rate,
        "scenario_s": round(monotonic_s() - began, 1),
        "caught_up_s": round(recovered_s, 1),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _show(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="every row against its newest event", box=None)
    for column in ("scenario", "events", "compared", *WRONG):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for name, result in results.items():
        table.add_row(name, *(f"{result[column]:,}" for column in ("events", "compared", *WRONG)))
    Console().print(table)


if __name__ == "__main__":
    drill()
