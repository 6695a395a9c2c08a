"""What issue-level goals ask of `POST /v1/rank`, as loads for rank.py and a table of figure beside goal.

python benchmarks/rank.py --goals [--json]        about 7 minutes on a quiet machine of 2 cores
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

Run = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """``kind`` closed: ``amount`` clients; open: ``amount`` requests/s. ``cold``: share of requests of users whose side
    is computed anew."""

    name: str
    kind: str
    amount: float
    requests: int
    cold: float = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One index and one server. ``codes`` 0: exact tiers."""

    candidates: int
    history: int
    loads: tuple[Load, ...]
    bits: int = 64
    codes: int = 0
    user_cache_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Goal:
    """``at_most`` or at least (``up``) of ``figure`` in the run named so."""

    what: str
    run: str
    figure: Callable[[Run], float]
    bound: float
    up: bool = field(default=False)


def stage(name: str, quantile: str) -> Callable[[Run], float]:
    return lambda run: float(run["stages_ms"][name][quantile])


def latency(quantile: str) -> Callable[[Run], float]:
    return lambda run: float(run["latency_ms"][quantile])


def failed(run: Run) -> float:
    """Requests whose answer was neither 200 nor 503 with a time to come back."""
    return float(sum(count for status, count in run["statuses"].items() if status not in {"200", "503"}))


def refused(run: Run) -> float:
    """Share of the requests that were refused (503)."""
    return float(run["statuses"].get("503", 0) / run["requests"])


JOIN_SCORE = "join + score"
_SUSTAINED = 0.995
"""Of what was due. The 3,000 random gaps of this seed ask for 120.45/s, so this is not beyond what can be seen."""
CELLS = (
    Cell(10_000, 1_000, (Load("closed", "closed", 1, 1_000), Load("open 20/s", "open", 20, 1_000))),
    Cell(
        10_000,
        1_000,
        (
            Load("half cached 60/s", "open", 60, 1_000, cold=0.5),
            Load("half cached 120/s", "open", 120, 3_000, cold=0.5),
            Load("half cached 240/s", "open", 240, 3_000, cold=0.5),
        ),
        user_cache_s=10.0,
    ),
    Cell(2_000, 1_000, (Load("B=2,000", "open", 20, 1_000),)),
    Cell(10_000, 10_000, (Load("L=10,000", "open", 20, 1_000),)),
    Cell(10_000, 1_000, (Load("coded W=256", "open", 20, 1_000),), bits=256, codes=256),
    Cell(10_000, 10_000, (Load("coded W=256 L=10,000", "open", 20, 1_000),), bits=256, codes=256),
)
GOALS = (
    Goal("join + score p50, exact tiers", "open 20/s", stage(JOIN_SCORE, "p50"), 4.0),
    Goal("join + score p99, exact tiers", "open 20/s", stage(JOIN_SCORE, "p99"), 8.0),
    Goal("join + score p50, coded tiers", "coded W=256", stage(JOIN_SCORE, "p50"), 2.5),
    Goal("join + score p50, coded tiers, L = 10,000", "coded W=256 L=10,000", stage(JOIN_SCORE, "p50"), 2.5),
    Goal("join + score p50, B = 2,000", "B=2,000", stage(JOIN_SCORE, "p50"), 1.2),
    Goal("whole request p50", "open 20/s", latency("p50"), 18.0),
    Goal("whole request p99", "open 20/s", latency("p99"), 25.0),
    Goal(
        "answers/s at 120/s due, half cached",
        "half cached 120/s",
        lambda run: float(run["answers_per_s"]),
        120 * _SUSTAINED,
        True,
    ),
    Goal("share refused at 120/s due, half cached", "half cached 120/s", refused, 1 - _SUSTAINED),
    Goal("p99 at 120/s due, half cached", "half cached 120/s", latency("p99"), 50.0),
    Goal("p99 of the accepted at 240/s due", "half cached 240/s", latency("p99"), 60.0),
    Goal("answers that are neither 200 nor 503 at 240/s due", "half cached 240/s", failed, 0.0),
)


def sized(args: argparse.Namespace, cell: Cell) -> argparse.Namespace:
    """The command's arguments for one cell."""
    own = copy.copy(args)
    own.candidates, own.history = cell.candidates, cell.history
    own.bits, own.codes, own.user_cache = cell.bits, cell.codes, cell.user_cache_s
    # A cold user comes again when all the others have: at twice the usual load only after the cache has let go.
    most = max(load.amount * load.cold for load in cell.loads if load.kind == "open") if cell.user_cache_s else 0.0
    own.users = 64 + round(1.2 * most * cell.user_cache_s)
    return own


def scaled(loads: tuple[Load, ...], share: float) -> tuple[Load, ...]:
    """Fewer requests of each load, ten at least."""
    return tuple(replace(load, requests=max(10, round(load.requests * share))) for load in loads)


def judged(runs: list[Run]) -> list[dict[str, Any]]:
    """Each goal with what was seen."""
    by_name = {run["name"]: run for run in runs}
    found: list[dict[str, Any]] = []
    for goal in GOALS:
        run = by_name[goal.run]
        seen = goal.figure(run)
        # Nothing answered is nothing met, and what a degraded answer left out cost no time.
        whole = run["statuses"].get("200", 0) > 0 and run["degraded"] <= 0.01 * run["statuses"]["200"]
        met = whole and (seen >= goal.bound if goal.up else seen <= goal.bound)
        found.append(
            {
                "goal": goal.what,
                "bound": round(goal.bound, 4),
                "seen": round(seen, 4),
                "met": met,
                "degraded": run["degraded"],
            }
        )
    tiers = [by_name[name]["stages_ms"]["score"]["p50"] for name in ("open 20/s", "L=10,000")]
    grown = {"goal": "score at L = 10,000 over L = 1,000", "bound": 10.0, "seen": round(tiers[1] / tiers[0], 2)}
    return [*found, {**grown, "met": tiers[1] <= 10 * tiers[0]}]


def table(goals: list[dict[str, Any]]) -> str:
    lines = [f"{'goal':52} {'bound':>8} {'seen':>8}"]
    lines += [f"{g['goal']:52} {g['bound']:8g} {g['seen']:8g}  {'met' if g['met'] else 'MISSED'}" for g in goals]
    return "\n".join(lines)
