"""The report of ``aif experiment latency``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aif_stream.training.plots import Plot, Point, Series
from aif_stream.training.report import Report, Table
from aif_stream.training.summary import shown

Cells = Sequence[Mapping[str, Any]]


def latency_report(found: Mapping[str, Any]) -> Report:
    """Latency by mode, what is saved, what is hidden; CPU by model."""
    cells, costs = found["cells"], found["costs"]
    plots = [_latencies(cells, candidates) for candidates in dict.fromkeys(cell["candidates"] for cell in cells)]
    plots += [
        _by_retrieval(
            cells, "hidden_share", "hidden", "Share of the user side that retrieval hid", "share of its time"
        ),
        _by_retrieval(cells, "saved_ms", "saved", "What overlapping saves", "ms, sequential less overlapped (p50)"),
    ]
    return Report(
        title="Latency: the user side beside retrieval, or after it",
        question="Whole requests on real servers, by retrieval latency, length of history and number of candidates.",
        verdict=[_saved(cells), _cost(costs)],
        plots=[plot for plot in plots if plot.series],
        tables=[_cells_table(cells), _costs_table(costs)],
        notes=[
            "One request at a time, servers on the first core, all else on the others; blocks of"
            " both modes alternate; no user side is reused; weights are untrained (shapes decide the cost). Intervals:"
            " 95 % bootstrap over requests, of CPU over blocks. hidden: overlap saved / time of the user side, median.",
        ],
    )


def _saved(cells: Cells) -> str:
    most = max(cells, key=lambda cell: cell["saved_ms"]["value"])
    slow = [cell for cell in cells if cell["retrieval_ms"] >= 10]
    hidden = [cell["hidden_share"]["value"] for cell in slow]
    lost = [cell for cell in cells if cell["saved_ms"]["high"] < 0]
    said = (
        f"Overlapping saves up to {shown(most['saved_ms'], 1)} ms of the median ({most['sequential_ms']['p50']:.1f} →"
        f" {most['overlapped_ms']['p50']:.1f} ms; history {most['history']:,}, {most['candidates']:,} candidates,"
        f" retrieval {most['retrieval_ms']} ms)."
    )
    if hidden:
        said += (
            f" Beside retrievals of 10 ms and more, {min(hidden):.0%} to {max(hidden):.0%} of the user side is hidden."
        )
    return said + (
        f" It costs time in {len(lost)} of {len(cells)} cells." if lost else " In no cell does it cost time."
    )


def _cost(costs: Sequence[Mapping[str, Any]]) -> str:
    by = {line["model"]: line for line in costs}
    said = [f"CPU of the server per answer, {by['aif']['candidates']:,} candidates, history {by['aif']['history']:,}:"]
    said.append(f"AIF with all parts {shown(by['aif']['cpu_ms'], 2)} ms.")
    if "classic" in by:
        said.append(
            f"COLD in the sequential way, every tower at request time: {shown(by['classic']['cpu_ms'], 2)} ms; AIF"
            f" {_percent(by['aif']['over_classic'])} (the paper says less than 15 % more); {_after(by, 'classic')}."
            " It is at its best: features encoded beforehand and in memory, 32 bits, no request log, metrics or"
            " deadlines."
        )
    if "cold" in by:
        said.append(
            "COLD split as AIF is, rows precomputed and user side beside retrieval, a harder one to stand beside:"
            f" {shown(by['cold']['cpu_ms'], 2)} ms; AIF {_percent(by['aif']['over_cold'])}; {_after(by, 'cold')}."
        )
        if "coded" in by:
            cpu_ms, over = shown(by["coded"]["cpu_ms"], 2), _percent(by["coded"]["over_cold"])
            said.append(f"With coded tiers {cpu_ms} ms, {over} beside split COLD.")
    return " ".join(said)


def _after(by: Mapping[str, Mapping[str, Any]], base: str) -> str:
    """What is left to do after retrieval."""
    one, other = (by[name]["after_retrieval_ms"]["p50"] for name in ("aif", base))
    return f"after retrieval {one} ms against {other} ms, {by['aif'][f'after_retrieval_over_{base}']:+.0%}"


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['value']:+.0%} [{value['low']:+.0%}, {value['high']:+.0%}]"


def _latencies(cells: Cells, candidates: int) -> Plot:
    series = []
    for number, history in enumerate(dict.fromkeys(cell["history"] for cell in cells)):
        mine = [cell for cell in cells if cell["history"] == history and cell["candidates"] == candidates]
        for mode in ("overlapped", "sequential"):
            points = [
                Point(cell["retrieval_ms"], p["value"], p["low"], p["high"])
                for cell in mine
                for p in (cell[f"{mode}_p50"],)
            ]
            name = f"history {history:,}, {mode}"
            series.append(Series(name, points, dashed=mode == "sequential", colour=number))
    title = f"Latency of a request, {candidates:,} candidates"
    return Plot(f"latency_{candidates}", title, "retrieval, ms", "ms at the client (p50)", series)


def _by_retrieval(cells: Cells, key: str, name: str, title: str, y: str) -> Plot:
    series: dict[str, list[Point]] = {}
    for cell in cells:
        value = cell[key]
        label = f"history {cell['history']:,}, {cell['candidates']:,} cand."
        series.setdefault(label, []).append(Point(cell["retrieval_ms"], value["value"], value["low"], value["high"]))
    return Plot(name, title, "retrieval, ms", y, [Series(label, points) for label, points in series.items()])


def _cells_table(cells: Cells) -> Table:
    names = ["candidates · history · retrieval", "overlapped p50", "p99", "sequential p50", "p99", "saved (p50), ms"]
    rows = [
        [
            f"{cell['candidates']:,} · {cell['history']:,} · {cell['retrieval_ms']} ms",
            cell["overlapped_ms"]["p50"],
            cell["overlapped_ms"]["p99"],
            cell["sequential_ms"]["p50"],
            cell["sequential_ms"]["p99"],
            shown(cell["saved_ms"], 2),
            cell["stages_p50_ms"]["user"],
            f"{cell['hidden_share']['value']:.0%}",
            cell["stages_p50_ms"]["join"],
            cell["stages_p50_ms"]["score"],
            cell["degraded"],
        ]
        for cell in cells
    ]
    note = f"{cells[0]['requests']} requests in each cell and mode; stages are medians of the overlapped server."
    return Table("Latency, ms", [*names, "user side", "hidden", "join", "score", "degraded"], rows, note)


def _costs_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    names = [
        "model",
        "CPU ms per answer",
        "over classic COLD",
        "over split COLD",
        "latency p50",
        "p99",
        "user side p50",
        "join + score p50",
    ]
    rows = [
        [
            line["model"],
            shown(line["cpu_ms"], 2),
            *(_percent(line[f"over_{base}"]) if f"over_{base}" in line else None for base in ("classic", "cold")),
            line["latency_ms"]["p50"],
            line["latency_ms"]["p99"],
            line["user_ms"]["p50"],
            line["after_retrieval_ms"]["p50"],
        ]
        for line in costs
    ]
    line = costs[0]
    note = f"{line['requests']} requests each, {line['candidates']:,} candidates, history {line['history']:,}."
    return Table("CPU of the server", names, rows, note)
