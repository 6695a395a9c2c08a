"""The report of ``aif experiment staleness``."""

from __future__ import annotations

import statistics
from typing import Any, Final

from aif_stream.training.plots import Plot, Point, Series
from aif_stream.training.report import Report, Table
from aif_stream.training.summary import INTERVALS, Records, own_data, shown, spread

_NAMES: Final = {"items": "item updates late", "histories": "histories late", "both": "both late"}


def staleness_lines(records: Records) -> list[dict[str, Any]]:
    """One line per what is late and delay, over the seeds."""
    own, lines = own_data(records), []
    for key in dict.fromkeys((r["late"], r["delay"]) for r in records):
        mine = [r for r in records if (r["late"], r["delay"]) == key]
        line = {"late": key[0], "delay": key[1], "delay_s": mine[0]["delay_s"], "seeds": len(mine)}
        line |= {name: statistics.mean(r[name] for r in mine) for name in ("changed", "missing")}
        for metric in ("gauc", "hr@100"):
            line[metric] = spread([r["metrics"][metric] for r in mine], own)
            line[f"{metric} change"] = spread([r["difference"][metric] for r in mine], own)
        lines.append(line)
    return lines


def staleness_report(records: Records) -> Report:
    """Change of GAUC and HR@100 by delay, a line for what is late."""
    lines = staleness_lines(records)
    kinds = list(dict.fromkeys(line["late"] for line in lines))
    names = ["late", "delay", "seeds", "GAUC", "change, paired", "HR@100", "change, paired", "changed", "missing"]
    rows = [
        [
            _NAMES[line["late"]],
            line["delay"],
            line["seeds"],
            shown(line["gauc"]),
            shown(line["gauc change"], 4, True),
            shown(line["hr@100"], 3),
            shown(line["hr@100 change"], 3, True),
            f"{line['changed']:.1%}",
            f"{line['missing']:.2f}",
        ]
        for line in lines
    ]
    note = "changed: impressions whose item had another state that long before; missing: entries of a history, mean."
    return Report(
        title="Staleness: what late updates cost",
        question="Ranking quality when item updates or histories reach the ranking so much later than they happened.",
        verdict=[_verdict([line for line in lines if line["late"] == kind]) for kind in kinds],
        plots=[_plot(lines, "gauc change", "change of GAUC"), _plot(lines, "hr@100 change", "change of HR@100")],
        tables=[Table("Figures", names, rows, note)],
        notes=[
            INTERVALS,
            "One model for all delays, trained without any: a system that is always late would train so.",
        ],
    )


def _verdict(lines: list[dict[str, Any]]) -> str:
    """From which delay on a loss is seen, and how much the longest costs."""
    name = _NAMES[lines[0]["late"]].capitalize()
    worst = lines[-1]
    lost = [line for line in lines if line["gauc change"]["high"] < 0]
    said = f"{worst['delay']}: {shown(worst['gauc change'], 4, True)} GAUC"
    if not lost:
        return f"{name}: no delay up to {worst['delay']} is shown to cost GAUC ({said})."
    first = lost[0]
    text = f"{name}: a loss is shown from {first['delay']} on ({shown(first['gauc change'], 4, True)} GAUC)"
    if first is not lines[0]:
        text += f", none at {lines[lines.index(first) - 1]['delay']}"
    if worst["late"] == "items" and worst["changed"]:
        slope = worst["gauc change"]["value"] / worst["changed"]
        said += f", where {worst['changed']:.0%} of the shown items have changed: {slope:+.3f} for each that has"
    return f"{text}; {said}."


def _plot(lines: list[dict[str, Any]], key: str, y: str) -> Plot:
    delays = list(dict.fromkeys(line["delay"] for line in lines))
    series: dict[str, list[Point]] = {}
    for line in lines:
        value = line[key]
        point = Point(delays.index(line["delay"]), value["value"], value["low"], value["high"])
        series.setdefault(_NAMES[line["late"]], []).append(point)
    drawn = [Series(name, points) for name, points in series.items()]
    ticks = [(float(at), delay) for at, delay in enumerate(delays)]
    name = key.partition(" ")[0].replace("@", "")
    return Plot(name, "What lateness costs", "delay", y, drawn, ticks=ticks, level=(0.0, "no delay"))
