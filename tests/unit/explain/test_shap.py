"""Our exact Shapley values are those that `shap` found of the same functions (made: experiments/explain_shap.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aif_stream.explain.shapley import enumerated
from experiments.explain_shap import case_of

CASES = json.loads((Path(__file__).parent / "shap_values.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("theirs", CASES, ids=[case["variant"] or "plain" for case in CASES])
def test_enumeration_is_what_shap_finds(theirs: dict[str, Any]) -> None:
    players, values = enumerated(case_of(theirs["number"], theirs["variant"]))
    ours = {player.name: value for player, value in zip(players, values, strict=True)}
    # Weights are drawn anew here; sums in another order are another CPU's.
    assert ours == pytest.approx(theirs["values"], abs=2e-4)
