"""Shapley values by `shap`, of games given as tables: runs in the environment of ``benchmarks/setup-peers shap``.

stdin: {"games": [{"players": P, "values": [v of coalition 0 … 2^P - 1]}]}; bit n of a coalition is player n.
stdout: {"shap": version, "games": [{"exact": [P], "permutation": [P]}]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import shap


def explain(players: int, values: list[float]) -> dict[str, list[float]]:
    """Features are 0 or 1 (absent or there), the background is nobody, the point is everybody."""
    table, places = np.array(values), 1 << np.arange(players)

    def function(there: Any) -> Any:
        return table[(np.asarray(there).round().astype(np.int64) * places).sum(axis=1)]

    masker = shap.maskers.Independent(np.zeros((1, players)))
    everybody = np.ones((1, players))
    found = {"exact": shap.explainers.ExactExplainer(function, masker)(everybody).values[0]}
    permutation = shap.explainers.PermutationExplainer(function, masker, seed=0)
    found["permutation"] = permutation(everybody, max_evals=100 * (2 * players + 1)).values[0]
    return {name: [float(value) for value in each] for name, each in found.items()}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    games = [explain(game["players"], game["values"]) for game in asked["games"]]
    json.dump({"shap": shap.__version__, "games": games}, sys.stdout)
