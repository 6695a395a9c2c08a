"""``python -m drills.standstill``: who stands still is named, and no longer once it is mended; in seconds.

Real Kafka, Redis and workers. A topic without a consumer, a worker that is stopped (SIGSTOP), one that is killed, one
that cannot write (Redis away), a producer whose clock is 5 s ahead: for each, seconds from the deed until the watch
names it as it should, and from the mend (a worker's start included) until everybody is well. Then nothing happens for
``--quiet`` seconds, and every lag must be 0 all the time. Exit 3 when something took longer than 15 s to be named.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import click
import orjson

from aif_stream.clock import monotonic_s
from aif_stream.domain.freshness import Status
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.freshness.report import LagReport
from aif_stream.telemetry import configure_logging
from drills.stack import drill_servers
from drills.watched import SOURCE, Watched, lags, reasons, skewed, statuses, watching

WITHIN_S: Final = 15.0
AHEAD_MS: Final = 5_000
_QUIET_LOOK_S: Final = 1.0


async def measured(
    watched: Watched,
    named: Callable[[LagReport], bool],
    mend: Callable[[], Awaitable[object]],
    well: Callable[[LagReport], bool],
) -> dict[str, Any]:
    """Call it right after the deed."""
    report, named_s = await watched.until(named)
    says = {"status": sorted(statuses(report)), "reason": sorted(reasons(report) - {""}), "clocks": skewed(report)}
    await mend()
    return {**says, "named_s": round(named_s, 1), "cleared_s": round((await watched.until(well))[1], 1)}


def is_well(report: LagReport) -> bool:
    return statuses(report) == {Status.OK} and not skewed(report)


def is_said(status: Status, reason: str) -> Callable[[LagReport], bool]:
    """Of every partition of the items."""
    return lambda report: statuses(report) == {status} and all(said.startswith(reason) for said in reasons(report))


async def states(watched: Watched, redis: EmbeddedRedis) -> dict[str, Any]:
    """Every state once, each mended before the next."""
    found: dict[str, Any] = {}

    async def start() -> None:
        watched.start_worker()

    nobody = is_said(Status.STOP, "no consumer, and there never was one")
    found["no consumer"] = await measured(watched, lambda r: all(lags(r)) and nobody(r), start, is_well)
    worker = watched.workers[-1]

    async def go_on() -> None:
        os.kill(worker.pid, signal.SIGCONT)

    os.kill(worker.pid, signal.SIGSTOP)
    silent = is_said(Status.STALL, "the consumer's process is there but does not answer")
    found["stopped"] = await measured(watched, silent, go_on, is_well)
    await redis.kill9()
    stuck = is_said(Status.STALL, "no progress for")
    found["cannot write"] = await measured(watched, stuck, redis.start, is_well)
    await worker.kill9()
    found["killed"] = await measured(watched, is_said(Status.STOP, "no consumer"), start, is_well)
    watched.ahead_ms = AHEAD_MS

    async def mend_clock() -> None:
        watched.ahead_ms = 0

    found["clock ahead"] = await measured(watched, lambda r: skewed(r) == [SOURCE], mend_clock, is_well)
    return found


async def quiet(watched: Watched, seconds: float) -> dict[str, Any]:
    """The largest lag of any partition and the largest watermark age in a time without events."""
    await watched.all_well()

    async def done() -> None:
        while any(lags(await watched.watcher.look())):  # noqa: ASYNC110
            await asyncio.sleep(_QUIET_LOOK_S)

    await asyncio.wait_for(done(), 60)
    began_s, looks, worst_s, unknown = monotonic_s(), 0, 0.0, 0
    while monotonic_s() - began_s < seconds or not looks:
        report = await watched.watcher.look()
        ages = [report.watermark_age_s, *(part.lag_s for part in report.partitions)]
        worst_s = max([worst_s, *(age for age in ages if age is not None)])
        unknown += sum(age is None for age in ages)
        looks += 1
        await asyncio.sleep(_QUIET_LOOK_S)
    return {"seconds": round(seconds), "looks": looks, "largest_lag_s": worst_s, "unknown": unknown}


@click.command()
@click.option("--quiet", "quiet_s", default=60.0, show_default=True, help="seconds without events at the end")
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/standstill.json"))
def drill(quiet_s: float, out: Path) -> None:
    """Name every standstill. About three minutes, and what --quiet takes."""
    configure_logging("ERROR")
    with tempfile.TemporaryDirectory(prefix="aif-standstill-") as scratch:
        result = asyncio.run(_run(Path(scratch), quiet_s))
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    click.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    late = any(state["named_s"] > WITHIN_S for state in result["states"].values())
    sys.exit(3 if late or result["quiet"]["largest_lag_s"] or result["quiet"]["unknown"] else 0)


async def _run(directory: Path, quiet_s: float) -> dict[str, Any]:
    async with drill_servers(directory) as (settings, _, redis), watching(directory, settings) as watched:
        found = {"load_1m": round(os.getloadavg()[0], 1), "states": await states(watched, redis)}
        return {**found, "quiet": await quiet(watched, quiet_s)}


if __name__ == "__main__":
    drill()
