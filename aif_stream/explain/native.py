"""The coarse explanation: what the model itself shows, and the past behaviors that mattered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import kinds, times_ms
from aif_stream.domain.row import HAS_CONTENT
from aif_stream.explain.case import Case
from aif_stream.model.attribution import FirstLayer, first_layer, short_attention

KINDS: Final = tuple(BehaviorKind)
# Behaviors that are left out one at a time, all in one pass (model/subsets.py).
_TRIED: Final = 24
_BY_SIGNATURE, _BY_VECTOR, _BY_CATEGORY, _BY_TIME = 10, 8, 8, 6

Names = Mapping[int, str]


def nearest(case: Case, most: int = _TRIED) -> list[int]:
    """Places of the entries that can matter most to this item: by signature, vector, category, and the newest; each
    once."""
    rows, item, count = case.history_rows, case.row[0], len(case.entries)
    if not count:
        return []
    newest_first = np.arange(count)[::-1]
    similarity = similarities(case)
    vectors = rows["t"].astype(np.float32) @ item["t"].astype(np.float32)
    same = newest_first[rows["category"][newest_first] == item["category"]]
    by_vector = np.argsort(-vectors, kind="stable").tolist()
    found = [
        *np.argsort(-np.nan_to_num(similarity, nan=-1.0), kind="stable")[:_BY_SIGNATURE].tolist(),
        *by_vector[:_BY_VECTOR],
        *same[:_BY_CATEGORY].tolist(),
        *newest_first[:_BY_TIME].tolist(),
        *by_vector,  # where those overlap, more by vector
    ]
    return list(dict.fromkeys(found))[:most]


def similarities(case: Case) -> NDArray[np.float64]:
    """Signature similarity of each entry to the item, 0 … 1 (n); nan where one has no content."""
    rows, item = case.history_rows, case.row[0]
    bits = np.bitwise_count(rows["sig"] ^ item["sig"]).sum(axis=1)
    found = 1.0 - bits / (8.0 * rows["sig"].shape[1])
    found[(rows["flags"] & HAS_CONTENT) == 0] = np.nan
    if not int(item["flags"]) & HAS_CONTENT:
        found[:] = np.nan
    return np.asarray(found, np.float64)


def left_out(case: Case, places: list[int]) -> dict[int, float]:
    """What each entry adds: the score less the score without it, everything else as it was."""
    scores = case.scores_without([[], *([place] for place in places)], case.row)[:, 0]
    return dict(zip(places, (scores[0] - scores[1:]).tolist(), strict=True))


def native(case: Case, names: Names) -> dict[str, Any]:
    """The stage. ``names``: ids of hashed keys in the history."""
    layer = first_layer(case.version, case.whole, case.rows, case.at)
    places = nearest(case)
    effects = left_out(case, places)
    ranked = sorted(places, key=lambda place: -abs(effects[place]))
    similar = similarities(case)
    total = sum(map(abs, layer.terms.values())) or 1.0
    return {
        "units": "logit",
        "score": case.given,
        "recomputed": case.recomputed,
        "difference": case.recomputed - case.given,
        "rank": case.at + 1,
        "of": len(case.rows),
        "baseline": "the mean item of this answer, same user",
        "basis": "first-layer terms times the head's gradient: exact for match, first order for the others",
        "terms": [
            {"name": name, "effect": effect, "share": abs(effect) / total}
            for name, effect in sorted(layer.terms.items(), key=lambda pair: -abs(pair[1]))
            if name != "user"
        ],
        "bridges": _bridges(layer),
        "tiers": _tiers(case, layer),
        "categories": _categories(case, layer),
        "attention": _attention(case, names),
        "behaviors": [
            {**behavior(case, place, names), "similarity": _or_none(similar[place]), "effect": effects[place]}
            for place in ranked
        ],
        "attention_basis": "share of the profile's attention, oldest first; the same for every item of this answer",
        "behaviors_basis": f"score less the score without it; {len(places)} nearest of {len(case.entries)} were tried",
    }


def behavior(case: Case, place: int, names: Names) -> dict[str, Any]:
    """One entry for people: item, kind, seconds before the newest."""
    entry = case.entries[place : place + 1]
    key = int(entry["key"][0])
    newest = case.newest if len(case.newest) else case.entries[-1:]
    return {
        "item_id": names.get(key, str(key)),
        "kind": KINDS[int(kinds(entry)[0])].value,
        "age_s": float(times_ms(newest)[0] - times_ms(entry)[0]) / 1000.0,
        "same_category": bool(case.history_rows["category"][place] == case.row["category"][0]),
    }


def _bridges(layer: FirstLayer) -> list[dict[str, float]]:
    return [
        {"bridge": number, "weight": float(weight), "effect": float(effect)}
        for number, (weight, effect) in enumerate(zip(layer.weights, layer.bridges, strict=True))
    ]


def _tiers(case: Case, layer: FirstLayer) -> list[dict[str, Any]]:
    """From the least similar part of the history to the most."""
    config = case.version.config
    edges = [0.0, *config.bounds.tolist(), 1.0]
    effects: list[float | None] = [float(e) for e in layer.tiers] or [None] * len(layer.tier_features)
    return [
        {
            "kinds": [KINDS[code].value for code in config.tier_groups[place // config.tiers]]
            if config.tier_groups
            else "all",
            "from": edges[place % config.tiers],
            "to": edges[place % config.tiers + 1],
            "share": float(np.expm1(feature)) / 100.0,
            "effect": effect,
        }
        for place, (feature, effect) in enumerate(zip(layer.tier_features, effects, strict=True))
    ]


def _categories(case: Case, layer: FirstLayer) -> list[dict[str, Any]]:
    """What the user's history of the item's own category (and second key) adds; ``behaviors``: how many there are."""
    config, found = case.version.config, []
    second = next((field.vocabulary for field in config.item_fields if field.name == config.second_key), ())
    for term, field, names in (("category", "category", config.categories), ("second_key", "key2", second)):
        if term in layer.terms:
            number = int(case.row[field][0])
            found.append(
                {
                    "by": "category" if term == "category" else config.second_key,
                    "name": names[number] if 0 <= number < len(names) else None,
                    "behaviors": int((case.history_rows[field] == number).sum()),
                    "effect": layer.terms[term],
                }
            )
    return found


def _attention(case: Case, names: Names) -> list[dict[str, Any]]:
    weights = short_attention(case.version, case.head.attributes, case.entries, case.history_rows)
    first = len(case.entries) - len(weights)
    return [{**behavior(case, first + n, names), "weight": float(weight)} for n, weight in enumerate(weights)]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
