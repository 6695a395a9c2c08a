"""Results of experiments as files: ``results.json`` and ``report.html``."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from aif_stream import __version__
from aif_stream.errors import TrainingDataError
from aif_stream.training.chart import Point, Series, chart, page, table

Records = Sequence[Mapping[str, Any]]
BRIDGE_FIGURES: Final = ("perplexity", "used", "readout_cosine")


def prepare(out: Path) -> None:
    """Make the directory before the work begins. Raises ``TrainingDataError`` where it holds results already."""
    if (out / "results.json").exists():
        raise TrainingDataError(f"{out} holds results already", mend="choose another --out")
    out.mkdir(parents=True, exist_ok=True)


def about() -> dict[str, Any]:
    """How results came about: the command and what it ran on."""
    return {
        "command": " ".join(["aif", *sys.argv[1:]]),
        "aif_stream": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def write(out: Path, results: Mapping[str, Any], html: str) -> None:
    """Both files."""
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "report.html").write_text(html, encoding="utf-8")


def means(records: Records) -> list[dict[str, Any]]:
    """One line per model over its seeds, in the order of first sight.

    GAUC and its difference to the first model: the mean over seeds; ``low`` and ``high`` are the smallest and largest
    seed where there are several, the bootstrap interval where there is one.
    """
    lines = []
    for name in dict.fromkeys(record["model"] for record in records):
        mine = [record for record in records if record["model"] == name]
        line = {
            "model": name,
            "choices": mine[0]["choices"],
            "seeds": len(mine),
            "gauc": _spread([record["metrics"]["gauc"] for record in mine]),
            "gain": _spread([record["difference"]["gauc"] for record in mine]),
            "online_ms_per_10k": statistics.median(record["online_ms_per_10k"] for record in mine),
            "online_mflop_per_10k": mine[0]["online_mflop_per_10k"],
        }
        reports = [record["bridges"] for record in mine if record["bridges"]]
        for key in BRIDGE_FIGURES:
            values = [report[key] for report in reports if report[key] is not None]
            line[key] = round(statistics.mean(values), 4) if values else None
        lines.append(line)
    return lines


def bridges_page(title: str, about: str, records: Records) -> str:
    """Gain, perplexity and read-out cosine by the number of bridges, a line for each start."""
    lines = [line for line in means(records) if "bridges" in line["choices"]]
    charts = []
    names = {"gain": "GAUC less COLD's", "perplexity": "perplexity of an item's weights", "readout_cosine": "cosine"}
    for key, name in names.items():
        series: dict[str, list[Point]] = {}
        for line in lines:
            value = line[key]
            if value is not None:
                value = value if isinstance(value, dict) else {"value": value, "low": value, "high": value}
                point = Point(line["choices"]["bridges"], value["value"], value["low"], value["high"])
                series.setdefault(line["model"].rpartition(" ")[0], []).append(point)
        charts.append(f"<h2>{name}</h2>")
        charts.append(chart("bridges", name, [Series(start, points) for start, points in series.items()], log_x=2))
    return page(title, about, [*charts, _table(records)])


def frontier_page(title: str, about: str, records: Records) -> str:
    """GAUC against online milliseconds, a series for each form; the table below."""
    series: dict[str, list[Point]] = {}
    for line in means(records):
        form, _, label = line["model"].rpartition(" ")
        form, label = (form, label) if label.isdigit() else (line["model"], "")
        gauc = line["gauc"]
        point = Point(line["online_ms_per_10k"], gauc["value"], gauc["low"], gauc["high"], label)
        series.setdefault(form, []).append(point)
    drawn = [Series(name, points, line=len(points) > 1) for name, points in series.items()]
    return page(title, about, [chart("ms per 10,000 candidates", "GAUC", drawn, log_x=2), _table(records)])


def crosses_page(title: str, about: str, results: Mapping[str, Any]) -> str:
    """Memory, fill time and hit rate."""
    fills, hits = results["fill"], results["hits"]
    charts = []
    for key, name, scale in (("bytes", "KiB of a user side", 1024), ("ms", "ms to fill a user side", 1)):
        drawn = []
        for form in ("with", "without"):
            values = [(fill["categories"], fill[f"{key}_{form}"] / scale) for fill in fills]
            drawn.append(Series(f"{form} crosses", [Point(x, y, y, y) for x, y in values]))
        charts += [f"<h2>{name}</h2>", chart("categories", name, drawn, log_x=10)]
    series: dict[str, list[Point]] = {}
    for hit in hits:
        name = f"{hit['categories']} categories, {hit['cache_mb']} MiB"
        series.setdefault(name, []).append(Point(hit["users"], *[hit["hit_rate"]] * 3))
    lines = [Series(name, points) for name, points in series.items()]
    charts += ["<h2>hit rate</h2>", chart("users", "hit rate", lines, log_x=10)]
    charts += [table(list(rows[0]), [list(row.values()) for row in rows]) for rows in (fills, hits)]
    return page(title, about, charts)


def _table(records: Records) -> str:
    names = ["model", "seeds", "GAUC", "less the first", "ms / 10k", "MFLOP / 10k"]
    lines, rows = means(records), []
    said = any(line["perplexity"] is not None for line in lines)
    for line in lines:
        gauc, gain = line["gauc"], line["gain"]
        rows.append(
            [
                line["model"],
                line["seeds"],
                f"{gauc['value']:.4f} [{gauc['low']:.4f}, {gauc['high']:.4f}]",
                f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain else "",
                line["online_ms_per_10k"],
                line["online_mflop_per_10k"],
                *(("" if line[key] is None else line[key] for key in BRIDGE_FIGURES) if said else ()),
            ]
        )
    return table([*names, *BRIDGE_FIGURES] if said else names, rows)


def _spread(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values = [metric["value"] for metric in metrics]
    if len(values) == 1:
        return dict(metrics[0])
    return {"value": statistics.mean(values), "low": min(values), "high": max(values)}
