"""The near cache: the refined part of a like user's explanation of the same item, as long as it is found to agree.

The user's signature is what the parts of the user add to this very item: its score, the score without profile, without
recent and without older behaviors, the mean score of the answer's other items for this user and for nobody, each in
steps of ``STEP`` logits. The Shapley values are made of such differences, so users who agree in all of them
(and in the item's row) have like values. Coarse part and counterfactual name the user's own behaviors and are always
computed.

Nothing is taken on trust: the first hits of a version are computed all the same and compared, then a share of them for
ever; when the mean disagreement passes the bound, the cache of that version switches itself off for a while.
"""

from __future__ import annotations

import logging
import random
from enum import Enum, auto
from hashlib import blake2b
from statistics import fmean
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from aif_stream.explain.shapley import Game
from aif_stream.index.near_cache import NearStore
from aif_stream.telemetry import EXPLAIN_NEAR, EXPLAIN_NEAR_DISAGREEMENT, kv

log = logging.getLogger(__name__)

# Hits and disagreement by step: experiments/explain_cache.py.
STEP: Final = 0.05
# Compared before the first hit is told. A mean of .1 with a deviation as large is known to .05 (95 %) then.
TRIAL: Final = 16
WINDOW: Final = 64
OFF_S: Final = 3600.0


class Trust(Enum):
    """What a hit may be used for."""

    TRIAL = auto()  # to be compared, not yet to be told
    ON = auto()
    OFF = auto()


def trust(window: list[float], off: bool, bound: float) -> Trust:
    """Of disagreements that were measured (0: the same), by their mean."""
    if off or bound <= 0.0:
        return Trust.OFF
    if len(window) < TRIAL:
        return Trust.TRIAL
    return Trust.ON if fmean(window) <= bound else Trust.OFF


def near_digest(game: Game, step: float = STEP) -> str:
    """The key beside the version: the item's row, which groups there are, the user's signature."""
    users = [number for number, player in enumerate(game.players) if player.is_user]
    everybody, known = (1 << len(game.players)) - 1, sum(1 << number for number in users)
    others = range(len(game.others))
    lone = [everybody, *(everybody & ~(1 << number) for number in users)]
    game.evaluate({(mask, 0) for mask in lone} | {(mask, other) for mask in (0, known) for other in others})
    means = [float(np.mean([game.value(mask, other) for other in others])) for mask in (0, known)]
    steps = np.floor(np.array([*(game.value(mask, 0) for mask in lone), *means]) / step).astype(np.int64)
    digest = blake2b(digest_size=16)
    for part in (repr([player.name for player in game.players]).encode(), game.case.row.tobytes(), steps.tobytes()):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.hexdigest()


def disagreement(told: dict[str, Any], computed: dict[str, Any]) -> float:
    """Of two refined stages: Σ |difference of effects| / Σ |computed effects|; 0: the same, 1: as good as none."""
    effects = {group["name"]: group["effect"] for group in told["groups"]}
    apart = sum(abs(effects.get(group["name"], 0.0) - group["effect"]) for group in computed["groups"])
    return float(apart / max(sum(abs(group["effect"]) for group in computed["groups"]), 1e-9))


class Hit(NamedTuple):
    """``stage``: a like user's, or None. ``tell``: it may be told; else it is to be computed all the same, and
    compared when there is one."""

    digest: str
    stage: dict[str, Any] | None
    tell: bool


class Near:
    """``bound``: mean disagreement at which it switches itself off (0: it is never used); ``check``: share of hits
    that are compared when it is trusted. Methods raise ``IndexUnavailable`` or ``IndexRefused``."""

    def __init__(self, store: NearStore, *, bound: float, check: float) -> None:
        self._store = store
        self._bound, self._check = bound, check

    @property
    def used(self) -> bool:
        return self._bound > 0.0

    async def look(self, version: str, digest: str, score: float) -> Hit:
        """The stage under ``near_digest``; ``score``: the item's own, of which the stage then speaks."""
        found = await self._store.look(version, digest)
        standing = trust(found.window, found.off, self._bound)
        if standing is Trust.OFF or found.stage is None:
            EXPLAIN_NEAR.labels(outcome="off" if standing is Trust.OFF else "miss").inc()
            return Hit(digest, None, False)
        if standing is Trust.TRIAL or random.random() < self._check:
            return Hit(digest, orjson.loads(found.stage), False)
        EXPLAIN_NEAR.labels(outcome="hit").inc()
        return Hit(digest, _told(orjson.loads(found.stage), score, found.window), True)

    async def computed(self, version: str, hit: Hit, stage: dict[str, Any]) -> None:
        """Compare with what would have been told, and keep the new one."""
        if hit.stage is not None:
            await self._compare(version, disagreement(hit.stage, stage))
        await self._store.keep(version, hit.digest, orjson.dumps(stage))

    async def _compare(self, version: str, apart: float) -> None:
        window = await self._store.measured(version, apart)
        EXPLAIN_NEAR.labels(outcome="compared").inc()
        EXPLAIN_NEAR_DISAGREEMENT.set(fmean(window))
        if len(window) >= TRIAL and trust(window, False, self._bound) is Trust.OFF:
            await self._store.switch_off(version)
            log.warning(kv("explain.near_off", version=version, disagreement=f"{fmean(window):.3f}", bound=self._bound))


def _told(stage: dict[str, Any], score: float, window: list[float]) -> dict[str, Any]:
    """A like user's stage as an answer to somebody else: whose score it is, and how far such answers are off."""
    explained = score - stage["baseline_score"]
    residual = abs(sum(group["effect"] for group in stage["groups"]) - explained) / max(abs(explained), 1e-9)
    near = {
        "basis": "effects of a like user, from the near cache",
        "disagreement": fmean(window),
        "disagreement_basis": f"share of the effects that was elsewhere in the last {len(window)} comparisons",
        "their_score": stage["score"],
    }
    return {**stage, "score": score, "residual": residual, "cache": "near", "near": near}
