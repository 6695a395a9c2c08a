"""Does `shap` find the same values of the same function?

    OMP_NUM_THREADS=1 python -m experiments.explain_shap [--cases 100] [--out FILE] [--fixture FILE]

The function of each case (every coalition of groups, mean over the other items that stand in) is evaluated by
``explain.shapley.Game`` and handed to shap's exact and permutation explainers, which live in an environment of their
own (benchmarks/setup-peers shap: their numba does not fit the locked numpy). Compared: our enumeration, our estimate
with its bars. ``--fixture`` writes the function of one case per variant of the model with shap's exact values, for
tests/unit/explain/test_shap.py. About 1 minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from aif_stream.explain.case import Case, open_case
from aif_stream.explain.shapley import Game, coalition_values, exact_values, shapley
from tests.explain_builders import make_facts
from tests.model_builders import VARIANTS, small_version

SHAP = Path(__file__).parents[1] / "benchmarks"
LENGTHS = (24, 0, 30, 3, 12)


def case_of(number: int, variant: str) -> Case:
    """One item of one answer, the same for the same number and variant."""
    model = small_version(seed=number % 5, **VARIANTS[variant])
    facts = make_facts(model, seed=number, history=LENGTHS[number % len(LENGTHS)], k=20)
    return open_case(model, facts, facts.head.items[number % 20].item_id)


def asked_of_shap(tables: list[list[float]]) -> dict[str, Any]:
    """What oracle.py answers."""
    python = subprocess.check_output([SHAP / "setup-peers", "shap"], text=True).strip()
    games = [{"players": len(values).bit_length() - 1, "values": values} for values in tables]
    done = subprocess.run(
        [python, SHAP / "shap" / "oracle.py"],
        input=json.dumps({"games": games}).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(options: argparse.Namespace) -> dict[str, Any]:
    variants = [list(VARIANTS)[number % len(VARIANTS)] for number in range(options.cases)]
    cases = [case_of(number, variant) for number, variant in enumerate(variants)]
    # Rounded first, so that the fixture's values are those of its tables.
    tables = [[round(v, 7) for v in coalition_values(Game(case)).tolist()] for case in cases]
    found = asked_of_shap(tables)
    exact, within, lines = [], 0, []
    apart: dict[str, list[float]] = {"estimate": [], "shap_permutation": []}
    for number, (variant, case, table, theirs) in enumerate(zip(variants, cases, tables, found["games"], strict=True)):
        ours = exact_values(np.array(table))
        *_, estimate = shapley(Game(case), number)
        exact.append(float(np.abs(ours - theirs["exact"]).max()))
        for name, values in (("estimate", estimate.values), ("shap_permutation", np.array(theirs["permutation"]))):
            apart[name].append(float(np.abs(values - theirs["exact"]).max()))
        within += bool((np.abs(estimate.values - theirs["exact"]) <= estimate.bars + 1e-6).all())
        if number < len(VARIANTS):
            values = [round(v, 9) for v in theirs["exact"]]
            lines.append(json.dumps({"number": number, "variant": variant, "table": table, "values": values}))
    if options.fixture:
        made = "OMP_NUM_THREADS=1 python -m experiments.explain_shap --fixture FILE"
        head = json.dumps({"shap": found["shap"], "made_by": made})
        Path(options.fixture).write_text(f'{head[:-1]}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
    return {
        "shap": found["shap"],
        "cases": options.cases,
        "values": sum(len(theirs["exact"]) for theirs in found["games"]),
        "enumeration_less_shap_exact_max_logit": max(exact),
        **{
            f"{name}_less_shap_exact_logit": {"p50": round(float(np.median(far)), 5), "max": round(max(far), 5)}
            for name, far in apart.items()
        },
        "cases_with_shap_exact_within_every_bar": round(within / options.cases, 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", default="")
    parser.add_argument("--fixture", default="")
    arguments = parser.parse_args()
    result = json.dumps(main(arguments), indent=2)
    sys.stdout.write(result + "\n")
    if arguments.out:
        Path(arguments.out).write_text(result + "\n")
