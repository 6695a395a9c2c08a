"""The refined explanation: Shapley values of feature groups by antithetic permutations, with error bars.

The players are what the answer knew: of the user the profile, the recent behaviors and the older ones; of the item the
blocks of its row. A user group that is absent is absent (no profile, no such behavior); an item block that is absent is
another item's of the same answer, each of those in turn. So v(nobody) is the mean score that the answer's other items
have with an unknown user, v(all) is the score, and the values add up to the difference.

Permutation estimator: Castro, Gómez, Tejada 2009; antithetic pairs: Mitchell, Cooper, Frank, Holmes 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.row import HAS_CONTENT
from aif_stream.explain.bars import half_widths, rounds_for
from aif_stream.explain.case import Case
from aif_stream.model.config import Kind, Part
from aif_stream.model.split import UserSide

F64 = NDArray[np.float64]

_OTHERS: Final = 8  # items that stand in for an absent block
# Rounds of one antithetic pair per other item. The first ones decide how many there will be (bars.py).
_PILOT: Final = 8
_ROUNDS_MAX: Final = 24
_PRECISE: Final = 0.02  # the widest bar, as a share of the difference that is explained


class Player(NamedTuple):
    name: str
    is_user: bool
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values (P) in logits with half-widths (P) that hold the exact ones, all at once, in at least 95 % of cases;
    ``baseline`` v(nobody); ``evaluations`` of the model, each distinct one once; ``done`` 0 … 1."""

    players: list[Player]
    values: F64
    bars: F64
    baseline: float
    total: float
    permutations: int
    evaluations: int
    done: float

    @property
    def residual(self) -> float:
        """|Σ values − (score − baseline)|, as a share of the latter."""
        explained = self.total - self.baseline
        return float(abs(self.values.sum() - explained) / max(abs(explained), 1e-9))


class Game:
    """v(coalition, other item), remembered. A coalition is a bit mask over ``players``."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.others = _others(case)
        self.players = players_of(case)
        self._recent = np.arange(len(case.entries)) >= len(case.entries) - case.version.config.short
        self._sides: dict[int, UserSide] = {}
        self._known: dict[tuple[int, int], float] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    @property
    def baseline(self) -> float:
        """v(nobody), once it has been evaluated with every other item."""
        return float(np.mean([self._known[0, other] for other in range(len(self.others))]))

    @property
    def total(self) -> float:
        """v(all): the same with whichever other item."""
        return self._known[(1 << len(self.players)) - 1, 0]

    def value(self, coalition: int, other: int) -> float:
        return self._known[coalition, other]

    def evaluate(self, wanted: set[tuple[int, int]]) -> None:
        """Compute the values that are not known; one model call per user."""
        by_user: dict[int, list[tuple[int, int]]] = {}
        for coalition, other in sorted(wanted - self._known.keys()):
            by_user.setdefault(coalition & self._user_mask, []).append((coalition, other))
        for user, asked in by_user.items():
            rows = self.case.rows[[self.others[other] for _, other in asked]].copy()
            for number, player in enumerate(self.players):
                if player.is_user:
                    continue
                present = np.array([bool(coalition >> number & 1) for coalition, _ in asked])
                take_blocks(rows, present, self.case.row[0], player.fields)
            scores = self.case.scores(self._side(user), rows)
            self._known.update(zip(asked, map(float, scores), strict=True))

    @property
    def _user_mask(self) -> int:
        return sum(1 << number for number, player in enumerate(self.players) if player.is_user)

    def _side(self, user: int) -> UserSide:
        if user not in self._sides:
            present = {p.name for number, p in enumerate(self.players) if user >> number & 1}
            keep = np.where(self._recent, "recent behaviors" in present, "older behaviors" in present)
            self._sides[user] = self.case.side(keep, profile="profile" in present)
        return self._sides[user]


def take_blocks(rows: NDArray[np.void], present: NDArray[np.bool_], item: np.void, fields: tuple[str, ...]) -> None:
    """Copy the item's blocks into those of the rows that ``present`` (B) names."""
    for field in fields:
        rows[field][present] = item[field]
    if "sig" in fields:
        flags = rows["flags"][present] & ~np.uint8(HAS_CONTENT)
        rows["flags"][present] = flags | (item["flags"] & HAS_CONTENT)


def _others(case: Case) -> list[int]:
    """Places of the other items, spread over the answer; the item itself where it is alone."""
    rest = [place for place in range(len(case.rows)) if place != case.at]
    if not rest:
        return [case.at]
    step = max(1, len(rest) // _OTHERS)
    return rest[::step][:_OTHERS]


def players_of(case: Case) -> list[Player]:
    """The groups that this case has."""
    config, count = case.version.config, len(case.entries)
    found = []
    if case.head.attributes:
        found.append(Player("profile", True))
    if count:
        found.append(Player("recent behaviors", True))
    if count > config.short:
        found.append(Player("older behaviors", True))
    found.append(Player("item vector", False, ("t",)))
    if config.kind is not Kind.TWOTOWER:
        found.append(Player("item's own share", False, ("h",)))
    if config.has(Part.BEA):
        found.append(Player("bridges", False, ("w",)))
    if config.has(Part.LSH) or config.has(Part.TIERS):
        found.append(Player("signature", False, ("sig", "code") if config.codes else ("sig",)))
    if config.has(Part.SIM):
        found.append(Player("category", False, ("category", "key2") if config.second_key else ("category",)))
    return found


def shapley(game: Game, seed: int = 0) -> Iterator[Estimate]:
    """Ever better estimates, one per round; the last one is the result. Repeatable: the seed decides."""
    P, R = len(game.players), len(game.others)
    random = np.random.default_rng(seed)
    rounds: list[F64] = []
    needed = _ROUNDS_MAX
    while len(rounds) < needed:
        orders = [(random.permutation(P), other) for other in range(R)]
        pairs = [(walk, other) for order, other in orders for walk in (order, order[::-1])]
        game.evaluate({(mask, other) for walk, other in pairs for mask in _masks(walk)})
        marginals = [_marginals(game, walk, other) for walk, other in pairs]
        rounds.append(np.array([(a + b) / 2 for a, b in zip(marginals[0::2], marginals[1::2], strict=True)]))
        samples = np.array(rounds)  # (rounds, R, P)
        if len(rounds) == _PILOT:
            needed = rounds_for(samples, _PRECISE * abs(game.total - game.baseline), _ROUNDS_MAX)
        yield _estimate(game, samples, len(rounds) / needed)


def _masks(walk: NDArray[np.int64]) -> list[int]:
    masks = [0]
    for player in walk:
        masks.append(masks[-1] | 1 << int(player))
    return masks


def _marginals(game: Game, walk: NDArray[np.int64], other: int) -> F64:
    values = [game.value(mask, other) for mask in _masks(walk)]
    found = np.zeros(len(walk))
    found[walk] = np.diff(values)
    return found


def _estimate(game: Game, samples: F64, done: float) -> Estimate:
    """``samples`` (rounds, others, P). Every other item has as many samples as any: what they differ by is no error."""
    rounds, others, _ = samples.shape
    return Estimate(
        players=game.players,
        values=samples.mean(axis=(0, 1)),
        bars=half_widths(samples),
        baseline=game.baseline,
        total=game.total,
        permutations=2 * rounds * others,
        evaluations=game.evaluations,
        done=done,
    )


def enumerated(case: Case) -> tuple[list[Player], F64]:
    """The exact values, from all 2^P coalitions with each other item: what the estimate is tested against."""
    game = Game(case)
    return game.players, exact_values(coalition_values(game))


def coalition_values(game: Game) -> F64:
    """v of each of the 2^P coalitions, the mean over the other items."""
    masks, others = range(1 << len(game.players)), range(len(game.others))
    game.evaluate({(mask, other) for mask in masks for other in others})
    return np.array([np.mean([game.value(mask, other) for other in others]) for mask in masks])


def exact_values(worth: F64) -> F64:
    """Shapley values (P) of a game by v (2^P) of its coalitions; bit n of a coalition is player n."""
    P = len(worth).bit_length() - 1
    factorial = np.cumprod([1.0, *range(1, P + 1)])
    found = np.zeros(P)
    for mask in range(1 << P):
        size = mask.bit_count()
        for player in range(P):
            if not mask >> player & 1:
                weight = factorial[size] * factorial[P - size - 1] / factorial[P]
                found[player] += weight * (worth[mask | 1 << player] - worth[mask])
    return found


def shapley_stage(estimate: Estimate) -> dict[str, Any]:
    """The stage for people and programs."""
    order = np.argsort(-np.abs(estimate.values), kind="stable")
    return {
        "units": "logit",
        "baseline": "an unknown user and, in turn, other items of this answer: their mean score",
        "baseline_score": estimate.baseline,
        "score": estimate.total,
        "groups": [
            {"name": estimate.players[n].name, "effect": float(estimate.values[n]), "bar": float(estimate.bars[n])}
            for n in order
        ],
        "bars": "half-widths: all of them at once hold the exact values in at least 95 % of explanations",
        "residual": estimate.residual,
        "permutations": estimate.permutations,
        "evaluations": estimate.evaluations,
    }
