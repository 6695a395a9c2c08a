"""``aif experiment latency``: sequential against overlapped requests on real servers, and CPU against COLD.

Two servers of the same model, one with the user side beside retrieval, one with it after retrieval, get the same
requests in alternating blocks, so that a busy moment of the machine falls on both. One request at a time: what is
measured is a request's own time, not a queue. User sides are not reused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from aif_stream.clock import cpu_s, elapsed_ms, monotonic_s
from aif_stream.errors import AifError
from aif_stream.runtime.latency_stack import CLASSIC, USERS, filled, off_the_first_core, upstream

OnStep = Callable[[str, int, int], None]

STAGES: Final = ("user", "retrieval", "join", "score", "total", "overlap_saved")
_BLOCKS: Final = 4
_WARM: Final = 20
_RESAMPLES: Final = 1000
# The paper's cost claim is of all parts on the usual request.
_COST_MS: Final = 10.0
_LEAST_CPU_MS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is crossed, and how often each cell is asked. ``models``: whose CPU is compared (``latency_stack.MODELS``);
    ``aif`` is always measured."""

    retrieval_ms: Sequence[int]
    histories: Sequence[int]
    candidates: Sequence[int]
    requests: int
    items: int
    models: Sequence[str]
    k: int = 500


@dataclass(slots=True)
class Heard:
    """Answers of one server in one cell: latencies at the client, and stages as the server tells them, in ms."""

    latency: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    degraded: int = 0
    cpu_ms: list[float] = field(default_factory=list)  # per answer, one value a block


@dataclass(frozen=True, slots=True)
class Client:
    """Asks servers and paces the upstream."""

    session: aiohttp.ClientSession
    upstream: str
    plan: Plan

    async def pace(self, ms: float, candidates: int) -> None:
        async with self.session.post(f"{self.upstream}/pace", json={"ms": ms, "candidates": candidates}) as reply:
            reply.raise_for_status()

    async def block(self, server: tuple[str, int], group: int, count: int, heard: Heard) -> None:
        """So many requests, one after the other, of users with the ``group``-th length of history."""
        url, pid = server
        cpu = cpu_s(pid)
        for number in range(count):
            user = group * USERS + number % USERS
            body = {"user_id": user, "k": self.plan.k, "deadline_ms": 2000}
            began = monotonic_s()
            async with self.session.post(f"{url}/v1/rank", json=body) as reply:
                data = await reply.read()
            spent = elapsed_ms(began)
            if reply.status != 200:
                raise AifError(f"the server answered {reply.status}: {data[:300].decode(errors='replace')}")
            answer = msgspec.json.decode(data)
            heard.latency.append(spent)
            heard.degraded += bool(answer["degraded"])
            for stage in STAGES:
                heard.stages[stage].append(answer["timings_ms"][stage])
        heard.cpu_ms.append((cpu_s(pid) - cpu) * 1000 / count)


async def run_latency(plan: Plan, on_step: OnStep) -> dict[str, Any]:
    """Cells (retrieval × history × candidates) with both modes, and CPU per answer by model."""
    models = dict.fromkeys(("aif", *plan.models))
    with tempfile.TemporaryDirectory(prefix="aif-latency-") as name, off_the_first_core():
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            home = Path(name)
            on_step("starting servers", 0, 1)
            url = await stack.enter_async_context(upstream(plan.items, home, session))
            client, servers = Client(session, url, plan), {}
            for model in models:
                index = await stack.enter_async_context(filled(model, plan.items, plan.histories, home, url))
                own = {"AIF_RETRIEVAL_K": str(max(plan.candidates))}
                servers[model] = await stack.enter_async_context(index.server("overlapped", session, **own))
                if model == "aif":
                    own["AIF_OVERLAP"] = "false"
                    servers["sequential"] = await stack.enter_async_context(index.server("sequential", session, **own))
            modes = {"overlapped": servers["aif"], "sequential": servers["sequential"]}
            cells = await _cells(client, modes, on_step)
            costs = await _costs(client, {model: servers[model] for model in models}, on_step)
    return {"cells": cells, "costs": costs}


async def _cells(client: Client, servers: dict[str, tuple[str, int]], on_step: OnStep) -> list[dict[str, Any]]:
    plan = client.plan
    found: list[dict[str, Any]] = []
    total = len(plan.retrieval_ms) * len(plan.histories) * len(plan.candidates)
    for candidates in plan.candidates:
        for group, history in enumerate(plan.histories):
            for ms in plan.retrieval_ms:
                on_step(f"{candidates:,} candidates, history {history:,}, retrieval {ms} ms", len(found), total)
                await client.pace(ms, candidates)
                heard = await _alternating(client, servers, group, plan.requests)
                cell = {"retrieval_ms": ms, "history": history, "candidates": candidates, "requests": plan.requests}
                found.append(cell | _compared(heard["overlapped"], heard["sequential"]))
    return found


async def _costs(client: Client, servers: dict[str, tuple[str, int]], on_step: OnStep) -> list[dict[str, Any]]:
    """CPU of the server per answer by model, at the median history and the most candidates."""
    plan = client.plan
    found: list[dict[str, Any]] = []
    group = sorted(range(len(plan.histories)), key=lambda at: plan.histories[at])[len(plan.histories) // 2]
    on_step("CPU by model", 0, 1)
    await client.pace(_COST_MS, max(plan.candidates))
    heard = await _alternating(client, servers, group, 2 * plan.requests, blocks=2 * _BLOCKS)
    for model, one in heard.items():
        cpu = np.array(one.cpu_ms)
        line = {
            "model": model,
            "history": plan.histories[group],
            "candidates": max(plan.candidates),
            "requests": 2 * plan.requests,
            "cpu_ms": _interval(cpu, np.mean),
            "latency_ms": quantiles(one.latency),
            "user_ms": quantiles(one.stages["user"]),
            "score_ms": quantiles(one.stages["score"]),
            "after_retrieval_ms": quantiles(after_retrieval(one)),
            "degraded": one.degraded,
        }
        for base in ("cold", CLASSIC):
            if base in heard and model != base:
                medians = [float(np.median(after_retrieval(each))) for each in (one, heard[base])]
                line[f"over_{base}"] = _over(cpu, np.array(heard[base].cpu_ms))
                line[f"after_retrieval_over_{base}"] = round(medians[0] / medians[1] - 1, 4)
        found.append(line)
    return found


def after_retrieval(heard: Heard) -> list[float]:
    """Join + score of each answer: what stands on the critical path, which is what the paper counts."""
    return [join + score for join, score in zip(heard.stages["join"], heard.stages["score"], strict=True)]


async def _alternating(
    client: Client, servers: dict[str, tuple[str, int]], group: int, requests: int, blocks: int = _BLOCKS
) -> dict[str, Heard]:
    heard = {name: Heard() for name in servers}
    for server in servers.values():
        await client.block(server, group, min(_WARM, requests), Heard())
    for _ in range(blocks):
        for name, server in servers.items():
            await client.block(server, group, max(1, requests // blocks), heard[name])
    return heard


def _compared(overlapped: Heard, sequential: Heard) -> dict[str, Any]:
    one, other = np.array(overlapped.latency), np.array(sequential.latency)
    hidden = np.array(overlapped.stages["overlap_saved"]) / np.maximum(np.array(overlapped.stages["user"]), 1e-3)
    return {
        "overlapped_ms": quantiles(overlapped.latency),
        "sequential_ms": quantiles(sequential.latency),
        "overlapped_p50": _interval(one, np.median),
        "sequential_p50": _interval(other, np.median),
        "saved_ms": _difference(other, one),
        "hidden_share": _interval(np.clip(hidden, 0.0, 1.0), np.median),
        "stages_p50_ms": {stage: round(float(np.median(values)), 3) for stage, values in overlapped.stages.items()},
        "degraded": overlapped.degraded + sequential.degraded,
    }


def _interval(values: np.ndarray[Any, np.dtype[np.float64]], of: Callable[..., Any]) -> dict[str, float]:
    """A statistic with its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    draws = of(values[random.integers(len(values), size=(_RESAMPLES, len(values)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": round(float(of(values)), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _over(one: np.ndarray[Any, np.dtype[np.float64]], other: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """How much more one is than other, on the mean, over the same blocks: the same moments of the machine. Where CPU
    comes in ticks of 10 ms, a few short requests may show none."""
    picks = np.random.default_rng(0).integers(len(one), size=(_RESAMPLES, len(one)))
    draws = one[picks].mean(axis=1) / np.maximum(other[picks].mean(axis=1), _LEAST_CPU_MS) - 1
    low, high = np.quantile(draws, [0.025, 0.975])
    value = one.mean() / max(float(other.mean()), _LEAST_CPU_MS) - 1
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _difference(
    one: np.ndarray[Any, np.dtype[np.float64]], other: np.ndarray[Any, np.dtype[np.float64]]
) -> dict[str, float]:
    """Median of one less median of other, with its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    draws = [np.median(random.choice(one, len(one))) - np.median(random.choice(other, len(other))) for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(np.median(one) - np.median(other))
    return {"value": round(value, 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99."""
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in (50, 90, 99)}
