"""Our exact Shapley values are those that `shap` found of the same functions (made: experiments/explain_shap.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_stream.explain.shapley import Game, coalition_values, enumerated, exact_values
from experiments.explain_shap import case_of
from tests.precision import EPS64, assert_close, largest, sum_bound

CASES = json.loads((Path(__file__).parent / "shap_values.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("theirs", CASES, ids=[case["variant"] or "plain" for case in CASES])
def test_enumeration_is_what_shap_finds(theirs: dict[str, Any]) -> None:
    # The function is part of the file: computed here, its float32 scores and 16-bit rows would be this CPU's.
    table = np.array(theirs["table"])
    stored_to = 0.5e-9
    assert_close(exact_values(table), theirs["values"], stored_to + sum_bound(len(table), largest(table), EPS64))


def test_enumeration_reads_every_coalition_of_a_case() -> None:
    case = case_of(0, "")
    players, values = enumerated(case)
    assert len(players) == 8
    np.testing.assert_array_equal(values, exact_values(coalition_values(Game(case))))
