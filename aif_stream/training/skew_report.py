"""The report of ``aif experiment skew``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aif_stream.training.plots import Plot, Point, Series
from aif_stream.training.report import Report, Table
from aif_stream.training.summary import INTERVALS, Records, own_data, shown, spread

Line = Mapping[str, Any]


def skew_lines(records: Records) -> list[dict[str, Any]]:
    """One line per road, mode and distance over the seeds."""
    own, lines = own_data(records), []
    for key in dict.fromkeys((r["road"], r["mode"], r["distance"]) for r in records):
        mine = [r for r in records if (r["road"], r["mode"], r["distance"]) == key]
        line = {"road": key[0], "mode": key[1], "distance": key[2], "seeds": len(mine)}
        line["gauc"] = spread([r["metrics"]["gauc"] for r in mine], own)
        line["change"] = spread([r["difference"]["gauc"] for r in mine], own)
        line["hr@100"] = spread([r["metrics"]["hr@100"] for r in mine], own)
        line["overlap"] = spread([r["overlap"] for r in mine], own)
        lines.append(line)
    return lines


def skew_report(records: Records) -> Report:
    """Quality by distance, a figure for each road."""
    lines = skew_lines(records)
    roads = list(dict.fromkeys(line["road"] for line in lines))
    plots = [_plot(lines, road, "gauc", "GAUC") for road in roads]
    plots += [_plot(lines, road, "overlap", "overlap of the first 100") for road in roads]
    names = ["versions", "mode", "behind", "seeds", "GAUC", "less the newest, paired", "HR@100", "overlap@100"]
    rows = [
        [
            line["road"],
            line["mode"],
            line["distance"],
            line["seeds"],
            shown(line["gauc"]),
            shown(line["change"], 4, True),
            shown(line["hr@100"], 3),
            shown(line["overlap"], 3),
        ]
        for line in lines
    ]
    return Report(
        title="Skew: what closed versions buy",
        question="Item rows and user side from versions that are one, two, … apart, against one closed version.",
        verdict=[_verdict(lines, road) for road in roads],
        plots=plots,
        tables=[Table("Figures", names, rows)],
        notes=[
            "closed: one version for everything, so many versions behind the newest; rows lag: the newest user side and"
            " scorer on older rows; user side lags: an older user side with the newest rows and scorer. anew: each"
            " version trained from its own random start; same start: from the same one; fine-tuned: from the version"
            " before it.",
            INTERVALS,
        ],
    )


def _verdict(lines: list[dict[str, Any]], road: str) -> str:
    of = {(line["mode"], line["distance"]): line for line in lines if line["road"] == road}
    lag, late, user = of["rows lag", 1], of["closed", 1], of["user side lags", 1]
    return (
        f"Versions {road}: rows one version behind change GAUC by {shown(lag['change'], 4, True)} and keep"
        f" {lag['overlap']['value']:.0%} of the first 100; a user side one behind, {shown(user['change'], 4, True)};"
        f" the version before, closed, {shown(late['change'], 4, True)}."
    )


def _plot(lines: list[dict[str, Any]], road: str, key: str, y: str) -> Plot:
    series: dict[str, list[Point]] = {}
    newest: Point | None = None
    for line in lines:
        if line["road"] == road:
            value = line[key]
            point = Point(line["distance"], value["value"], value["low"], value["high"])
            newest = newest or point
            series.setdefault(line["mode"], [newest]).extend([point] if line["distance"] else [])
    ticks = [(d, str(d)) for d in sorted({line["distance"] for line in lines})]
    drawn = [Series(mode, points) for mode, points in series.items()]
    level = (0.5, "by chance") if key == "gauc" else None
    name = f"{key}_{road.replace(' ', '_').replace('-', '_')}"
    return Plot(name, f"Versions {road}", "versions behind the newest", y, drawn, ticks=ticks, level=level)
