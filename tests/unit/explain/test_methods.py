"""Explanations say what is so: scores are found again, effects are what leaving out shows, estimates meet the truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from aif_stream.errors import Unexplainable
from aif_stream.explain.case import Case, open_case
from aif_stream.explain.counterfactual import counterfactual
from aif_stream.explain.native import left_out, native, nearest
from aif_stream.explain.shapley import Game, enumerated, shapley, shapley_stage
from aif_stream.model.attribution import _terms
from aif_stream.model.config import Kind
from tests.explain_builders import make_facts
from tests.model_builders import VARIANTS, small_version
from tests.precision import EPS64, assert_close, score_bound, sum_bound


def case_of(kind: Kind = Kind.AIF, *, seed: int = 0, place: int = 2, history: int = 24, **choices: object) -> Case:
    model = small_version(kind, seed, **choices)
    facts = make_facts(model, seed=seed, history=history)
    return open_case(model, facts, facts.head.items[place].item_id)


def test_the_facts_make_the_very_score_that_was_given() -> None:
    for place in range(10):
        case = case_of(place=place)
        assert case.recomputed == case.given


def test_another_history_row_is_told_and_not_explained_away() -> None:
    model = small_version()
    facts = make_facts(model)
    rows = np.frombuffer(facts.history_rows, model.layout.dtype).copy()
    rows["t"] += 1
    with pytest.raises(Unexplainable, match="not found again"):
        open_case(model, dataclasses.replace(facts, history_rows=rows.tobytes()), facts.head.items[0].item_id)
    with pytest.raises(Unexplainable, match="not in the answer"):
        open_case(model, facts, "absent")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_terms_are_the_sum_that_scoring_makes(variant: str) -> None:
    case = case_of(**VARIANTS[variant])
    terms = _terms(case.version, case.whole, case.rows)
    hidden = torch.from_numpy(np.sum([term.sum(1) for term in terms.values()], axis=0).astype(np.float32))
    with torch.inference_mode():
        head = case.version.net.scorer.head(hidden).numpy()
    dots = case.rows["t"].astype(np.float32) @ case.whole.u.numpy()
    scores = [item.score for item in case.head.items]
    assert_close(head + dots, scores, score_bound(case.version.config, scores))


@pytest.mark.parametrize("kind", [Kind.AIF, Kind.COLD, Kind.TWOTOWER])
@pytest.mark.parametrize("history", [0, 3, 24])
def test_every_served_model_and_user_is_explained(kind: Kind, history: int) -> None:
    case = case_of(kind, history=history)
    stage = native(case, {})
    assert stage["score"] == stage["recomputed"]
    assert np.isfinite([term["effect"] for term in stage["terms"]]).all()
    if history:
        assert sum(entry["weight"] for entry in stage["attention"]) == pytest.approx(1.0, abs=sum_bound(history))
        assert len(stage["behaviors"]) == min(history, 24)
    else:
        assert stage["behaviors"] == stage["attention"] == []
    assert np.isfinite([*shapley(Game(case))][-1].values).all()
    assert counterfactual(case, {})["possible"]


def test_categories_are_named_with_what_the_history_of_them_adds() -> None:
    for place in range(10):
        case = case_of(place=place, second_key="brand")
        stage = native(case, {})
        effects = {term["name"]: term["effect"] for term in stage["terms"]}
        for found, term, field in zip(
            stage["categories"], ("category", "second_key"), ("category", "key2"), strict=True
        ):
            assert found["effect"] == effects[term]
            assert found["behaviors"] == (case.history_rows[field] == case.row[field][0]).sum()
        assert stage["categories"][0]["name"] in {"tea", "books", "lamps", None}
        assert stage["categories"][1]["by"] == "brand"
    assert native(case_of(Kind.TWOTOWER), {})["categories"] == []


def test_every_stage_says_against_what_and_in_which_unit() -> None:
    case = case_of()
    *_, estimate = shapley(Game(case))
    for stage in (native(case, {}), shapley_stage(estimate), counterfactual(case, {})):
        assert stage["units"] == "logit"
        assert stage["baseline"]


def test_what_a_behavior_adds_is_the_score_less_the_score_of_a_user_without_it() -> None:
    case = case_of()
    effects = left_out(case, nearest(case))
    place = max(effects, key=lambda each: abs(effects[each]))
    keep = np.arange(len(case.entries)) != place
    rows = case.history_rows[keep]
    side = case.version.user_side(case.head.attributes, case.entries[keep], rows, np.ones(len(rows), np.bool_))
    without = float(case.version.score(side, case.row)[0])
    bound = score_bound(case.version.config, [case.given, without])  # left_out computes both in another order
    assert effects[place] == pytest.approx(case.given - without, abs=2 * bound)
    assert abs(effects[place]) > 100 * bound


def test_estimated_values_meet_full_enumeration_within_their_bars_and_add_up() -> None:
    inside = total = 0
    for seed in range(12):
        case = case_of(seed=seed, place=seed % 10)
        *_, estimate = shapley(Game(case), seed)
        players, exact = enumerated(case)
        assert [p.name for p in players] == [p.name for p in estimate.players]
        bound = score_bound(case.version.config, case.given)
        # The same scores, summed in 64 bits over all coalitions and over two of them.
        in_64_bits = sum_bound(1 << len(players), abs(case.given), EPS64)
        assert exact.sum() == pytest.approx(estimate.total - estimate.baseline, abs=in_64_bits)
        assert estimate.residual <= 0.01
        assert estimate.total == pytest.approx(case.given, abs=bound)
        inside += int((np.abs(estimate.values - exact) <= estimate.bars + bound).sum())
        total += len(exact)
    assert inside / total >= 0.9, f"{inside} of {total} values inside 95 % bars"


def test_a_counterfactual_moves_the_item_below_the_cut_and_needs_every_part_of_it() -> None:
    found = 0
    for seed in range(8):
        case = case_of(seed=seed, place=9)
        stage = counterfactual(case, {})
        assert stage["margin"] >= 0
        if stage["item_changes"] is not None:
            assert stage["item_changes"]["margin"] < 0
        if stage["behaviors"] is None:
            continue
        found += 1
        assert stage["behaviors"]["margin"] < 0
        items = {str(key): place for place, key in enumerate(case.entries["key"].tolist())}
        places = [items[each["item_id"]] for each in stage["behaviors"]["remove"]]
        both = np.concatenate([case.row, case.cut])
        for spared in range(len(places)):
            own, cut = case.scores(case.without(places[:spared] + places[spared + 1 :]), both)
            assert own >= cut
    assert found >= 3
