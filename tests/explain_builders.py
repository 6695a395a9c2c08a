"""Facts of an answer as a server would keep them, made directly from a small model."""

from __future__ import annotations

import numpy as np

from aif_stream.domain.facts import FactItem, Facts, FactsHead, UserInputs, pack_facts, pack_user, unpack_facts
from aif_stream.domain.history import ENTRY
from aif_stream.model.config import Kind
from aif_stream.model.version import ModelVersion
from tests.model_builders import make_history, make_items, small_version

PROFILE = {"city": "oslo", "age": 31}


def make_facts(model: ModelVersion, *, seed: int = 0, history: int = 24, k: int = 10, request_id: str = "r1") -> Facts:
    """The answer to a user with a history, of 60 candidates; ``history`` 0: to somebody unknown."""
    return unpack_facts(*pack_answer(model, seed=seed, history=history, k=k, request_id=request_id))


def pack_answer(
    model: ModelVersion, *, seed: int = 0, history: int = 24, k: int = 10, request_id: str = "r1"
) -> tuple[bytes, bytes]:
    """The answer's own part and the user's."""
    items = make_items(60, seed)
    none = np.zeros(len(items), np.uint64)
    rows = model.item_rows(items, none, none, 0).rows
    entries = make_history(items[30 : 30 + history], seed) if history else np.empty(0, ENTRY)
    used = rows[30 : 30 + history]
    profile = PROFILE if history else None
    side = model.user_side(profile, entries, used, np.ones(len(used), np.bool_))
    scores = model.score(side, rows)
    order = np.argsort(-scores, kind="stable")[: k + 1]
    named = [FactItem(str(items[at].item_id), float(scores[at])) for at in order]
    head = FactsHead(
        request_id=request_id,
        user_id="u",
        version=model.name,
        answered_ms=1_700_000_000_000,
        k=k,
        items=named[:k],
        cut=named[k],
        attributes=profile,
        context={},
        entries=len(entries),
        newest=0,
        row_bytes=model.layout.dtype.itemsize,
    )
    return pack_facts(head, rows[order]), pack_user(UserInputs(profile, entries, used, entries[:0]))


def small(kind: Kind = Kind.AIF, seed: int = 0, **choices: object) -> ModelVersion:
    return small_version(kind, seed, **choices)
