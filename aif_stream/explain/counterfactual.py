"""What would have to be otherwise for the item to leave the answer: fewest behaviors, fewest blocks of its row.

"Leaves" means: its score falls below that of the best item that was left out (the cut), both recomputed for the changed
user. Other items that were left out could rise further still; they are not looked at.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import combinations
from typing import Any, Final

import numpy as np

from aif_stream.explain.case import Case
from aif_stream.explain.native import Names, behavior, nearest
from aif_stream.explain.shapley import Player, players_of, take_blocks

_MOST: Final = 8  # behaviors taken away at most: a longer list explains nothing
_TRIED: Final = 16


def counterfactual(case: Case, names: Names) -> dict[str, Any]:
    """The stage, all at once."""
    *_, stage = counterfactual_steps(case, names)
    assert stage is not None  # noqa: S101  # the last one is
    return stage


def counterfactual_steps(case: Case, names: Names) -> Iterator[dict[str, Any] | None]:
    """None after each part of the work (some 5 ms of 1,000 entries), then the stage."""
    if not len(case.cut):
        yield {
            "units": "logit",
            "possible": False,
            "why": "no candidate was left out of this answer, so there is no cut to fall below",
        }
        return
    margin = _margin(case, [])
    removed = yield from _behaviors(case, margin)
    blocks = _blocks(case)
    yield {
        "units": "logit",
        "baseline": "the best item that was left out, scored anew for the changed user",
        "possible": True,
        "cut_item": None if case.head.cut is None else case.head.cut.item_id,
        "margin": margin,
        "behaviors": None
        if removed is None
        else {
            "remove": [behavior(case, place, names) for place in removed],
            "margin": _margin(case, removed),
            "needed": "every one of them: with any one put back the item stays",
        },
        "behaviors_basis": f"greedy among the {min(_TRIED, len(case.entries))} nearest of {len(case.entries)}"
        f" behaviors, at most {_MOST}, then checked for ones that are not needed",
        "item_changes": None if blocks is None else {"replace": blocks[0], "margin": blocks[1], "by": "the cut item's"},
        "item_basis": "all sets of blocks, the smallest first",
    }


def _margin(case: Case, places: list[int]) -> float:
    """Score of the item less score of the cut, without these behaviors."""
    side = case.without(places) if places else case.whole
    own, cut = case.scores(side, np.concatenate([case.row, case.cut]))
    return float(own - cut)


def _behaviors(case: Case, best: float) -> Generator[None, None, list[int] | None]:
    """Places whose removal makes the margin (``best`` with all) negative, none of them needless; None when none were
    found. What to try next is compared in one pass; what is said has its own user side."""
    left, removed = nearest(case, _TRIED), list[int]()
    both = np.concatenate([case.row, case.cut])
    while left and best >= 0.0 and len(removed) < _MOST:
        own, cut = case.scores_without([[*removed, place] for place in left], both).T
        place = left.pop(int((own - cut).argmin()))
        removed.append(place)
        margin = _margin(case, removed)
        yield None
        if margin >= best:
            return None
        best = margin
    if best >= 0.0:
        return None
    for place in removed[:-1]:
        fewer = [other for other in removed if other != place]
        if _margin(case, fewer) < 0.0:
            removed = fewer
        yield None
    return removed


def _blocks(case: Case) -> tuple[list[str], float] | None:
    """The smallest set of row blocks that, taken from the cut item, makes the margin negative; of equally small ones
    the one that lowers it most."""
    blocks: list[Player] = [player for player in players_of(case) if not player.is_user]
    cut = float(case.scores(case.whole, case.cut)[0])
    for size in range(1, len(blocks)):
        sets = list(combinations(blocks, size))
        rows = np.repeat(case.row, len(sets))
        for number, chosen in enumerate(sets):
            here = np.arange(len(sets)) == number
            for player in chosen:
                take_blocks(rows, here, case.cut[0], player.fields)
        margins = case.scores(case.whole, rows) - cut
        least = int(margins.argmin())
        if margins[least] < 0.0:
            return [player.name for player in sets[least]], float(margins[least])
    return None
