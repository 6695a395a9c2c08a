"""Several seeds as one figure with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aif_stream.training.metrics import Metric

Records = Sequence[Mapping[str, Any]]
BRIDGE_FIGURES: Final = ("perplexity", "used", "readout_cosine")
# 97.5 % quantiles of Student's t for 1 … 10 degrees of freedom.
_STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

INTERVALS: Final = (
    "Intervals are 95 %. One seed: bootstrap over users. Several seeds that each draw their own data: Student's t over"
    " seeds. Several trainings on the same data: the width over seeds and the bootstrap's are added as squares, as all"
    " seeds are judged by the same users."
)


def spread(metrics: Sequence[Metric | Mapping[str, float]], own_data: bool) -> dict[str, float]:
    """Mean of one metric's values over seeds with its 95 % interval (``INTERVALS``); ``own_data``: seeds differ in
    their data as well."""
    found = [metric if isinstance(metric, Metric) else Metric(**metric) for metric in metrics]
    mean = statistics.mean(metric.value for metric in found)
    if len(found) == 1:
        return found[0]._asdict()
    half = student(len(found) - 1) * statistics.stdev(m.value for m in found) / math.sqrt(len(found))
    if not own_data:
        half = math.hypot(half, statistics.mean((m.high - m.low) / 2 for m in found))
    return {"value": mean, "low": mean - half, "high": mean + half}


def student(degrees: int) -> float:
    """How many standard errors a 95 % interval reaches to each side."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.4 / degrees


def own_data(records: Records) -> bool:
    """Whether each seed has data of its own."""
    pairs = {(record["seed"], record["data"]) for record in records}
    return len({data for _, data in pairs}) == len(pairs) > 1


def means(records: Records) -> list[dict[str, Any]]:
    """One line per model over its seeds, in the order of first sight: GAUC, AUC, HR@100, and ``gain``, the paired
    difference in GAUC to the first model, each with its interval; cost; bridge figures' means."""
    lines, own = [], own_data(records)
    for name in dict.fromkeys(record["model"] for record in records):
        mine = [record for record in records if record["model"] == name]
        line = {"model": name, "kind": mine[0]["kind"], "choices": mine[0]["choices"], "seeds": len(mine)}
        for metric in ("gauc", "auc", "hr@100"):
            line[metric] = spread([record["metrics"][metric] for record in mine], own)
        line["gain"] = spread([record["difference"]["gauc"] for record in mine], own)
        line["online_ms_per_10k"] = statistics.median(record["online_ms_per_10k"] for record in mine)
        line["online_mflop_per_10k"] = mine[0]["online_mflop_per_10k"]
        reports = [record["bridges"] for record in mine if record["bridges"]]
        for key in BRIDGE_FIGURES:
            values = [report[key] for report in reports if report[key] is not None]
            line[key] = _range(values) if values else None
        lines.append(line)
    return lines


def between(records: Records, one: str, other: str, metric: str = "gauc") -> dict[str, float]:
    """How much more ``one`` has than ``other``: differences within a seed, their mean and t interval over seeds; of a
    single seed without an interval (the draws are not kept)."""
    values = {
        name: {r["seed"]: r["metrics"][metric]["value"] for r in records if r["model"] == name} for name in (one, other)
    }
    gaps = [value - values[other][seed] for seed, value in values[one].items()]
    return spread([Metric(gap, gap, gap) for gap in gaps], own_data=True)


def shown(value: Mapping[str, float] | None, digits: int = 4, sign: bool = False) -> str:
    """``.7012 [.6931, .7090]``; an empty word for none."""
    if value is None:
        return ""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    return f"{form.format(value['value'])} [{form.format(value['low'])}, {form.format(value['high'])}]"


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"value": round(statistics.mean(values), 4), "low": min(values), "high": max(values)}
