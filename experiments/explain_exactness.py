"""Are the Shapley estimates within their bars of full enumeration? What does each stage cost?

    OMP_NUM_THREADS=1 python -m experiments.explain_exactness [--cases 500] [--first 20000] [--out FILE]

Untrained models with every weight random, so that no group is idle; users of 0 … 30 entries, answers of 20. Peer: the
exact values by all 2^P coalitions (at most 8 groups), of the same function. A case is within when every one of its
values is. Bars were designed on the cases 10,000 … 10,109; the default ones were not looked at before. ``shap`` is
asked by experiments/explain_shap.py. About 2 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from aif_stream.explain.case import open_case
from aif_stream.explain.counterfactual import counterfactual
from aif_stream.explain.native import native
from aif_stream.explain.shapley import Game, enumerated, shapley
from tests.explain_builders import make_facts
from tests.model_builders import VARIANTS, small_version

LENGTHS = (0, 3, 12, 24, 30)


def quantiles(values: list[float]) -> dict[str, float]:
    return {name: round(float(np.quantile(values, q)), 4) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def main(options: argparse.Namespace) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"native": [], "shapley": [], "counterfactual": [], "enumeration": []}
    inside = total = cases_inside = 0
    widths: list[float] = []
    residuals, evaluations = [], []
    variants = list(VARIANTS)
    models: dict[tuple[str, int], Any] = {}
    for number in range(options.first, options.first + options.cases):
        variant, seed = variants[number % len(variants)], number // 50
        model = models.setdefault((variant, seed), small_version(seed=seed, **VARIANTS[variant]))
        facts = make_facts(model, seed=number, history=LENGTHS[number % len(LENGTHS)], k=20)
        case = open_case(model, facts, facts.head.items[number % 20].item_id)

        def timed(name: str, work: Any) -> Any:
            begin_s = time.process_time()
            found = work()
            spent[name].append((time.process_time() - begin_s) * 1000.0)
            return found

        timed("native", lambda: native(case, {}))  # noqa: B023  # called at once
        *_, estimate = timed("shapley", lambda: list(shapley(Game(case), number)))  # noqa: B023
        timed("counterfactual", lambda: counterfactual(case, {}))  # noqa: B023
        _, exact = timed("enumeration", lambda: enumerated(case))  # noqa: B023
        within = np.abs(estimate.values - exact) <= estimate.bars + 1e-6
        inside, total = inside + int(within.sum()), total + len(exact)
        cases_inside += bool(within.all())
        widths.append(float(estimate.bars.max() / max(abs(estimate.total - estimate.baseline), 1e-9)))
        residuals.append(estimate.residual)
        evaluations.append(float(estimate.evaluations))
    return {
        "cases": options.cases,
        "first": options.first,
        "values": total,
        "values_within_bars": round(inside / total, 4),
        "cases_with_every_value_within_bars": round(cases_inside / options.cases, 4),
        "widest_bar_over_difference": quantiles(widths),
        "residual": quantiles(residuals),
        "evaluations": quantiles(evaluations),
        "cpu_ms": {name: quantiles(values) for name, values in spent.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=20_000, help="number of the first case")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    result = json.dumps(main(arguments), indent=2)
    sys.stdout.write(result + "\n")
    if arguments.out:
        Path(arguments.out).write_text(result + "\n")
