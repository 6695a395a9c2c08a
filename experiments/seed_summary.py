"""Records of five_seeds.py as means with intervals, and as the claims that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aif_stream.training.summary import student


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with t intervals, and what is claimed as differences paired by seed."""
    table: dict[str, dict[int, float]] = {}
    for record in records:
        table.setdefault(record["model"], {})[record["seed"]] = record["metrics"]["gauc"][0]

    def paired(*terms: tuple[str, float]) -> list[float]:
        """Of each seed that all the models have, the weighted sum of their GAUC."""
        if not all(name in table for name, _ in terms):
            return []
        seeds = sorted(set.intersection(*(set(table[name]) for name, _ in terms)))
        return [sum(weight * table[name][seed] for name, weight in terms) for seed in seeds]

    lines = {
        name: {"gauc": interval(paired((name, 1.0))), "less_cold": interval(paired((name, 1.0), ("cold", -1.0)))}
        for name in table
    }
    claims = {
        "exact less aif": interval(paired(("exact", 1.0), ("aif", -1.0))),
        "aif less cold": interval(paired(("aif", 1.0), ("cold", -1.0))),
        "cold less two-tower": interval(paired(("cold", 1.0), ("twotower", -1.0))),
        "aif's gain less 95 % of exact's": interval(paired(("aif", 1.0), ("exact", -0.95), ("cold", -0.05))),
    }
    gain, bound = paired(("aif", 1.0), ("cold", -1.0)), paired(("exact", 1.0), ("cold", -1.0))
    kept = round(sum(gain) / sum(bound), 4) if bound and len(gain) == len(bound) else None
    return {"models": lines, "claims": claims, "kept": kept}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of Student's t; nothing beyond the mean for a single value."""
    if not values:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return {"mean": round(mean, 5), "low": None, "high": None, "seeds": 1}
    half = student(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    low, high = round(mean - half, 5), round(mean + half, 5)
    return {"mean": round(mean, 5), "low": low, "high": high, "seeds": n}


def shown(line: dict[str, Any], digits: int = 4) -> str:
    if line["mean"] is None:
        return "–"
    mean, low, high = (None if line[key] is None else f"{line[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return str(mean) if low is None else f"{mean} [{low}, {high}]"
