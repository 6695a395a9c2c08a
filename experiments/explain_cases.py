"""Answers of a trained version over a data set, with their facts: what the experiments on explanations explain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute
from aif_stream.domain.facts import FactItem, Facts, FactsHead, UserInputs, pack_facts, pack_user, unpack_facts
from aif_stream.domain.history import History
from aif_stream.training.evaluate import Served

I64 = NDArray[np.int64]


def answer(
    served: Served,
    profile: Mapping[str, Attribute] | None,
    history: History,
    seen: I64,
    candidates: I64,
    *,
    k: int = 20,
    first: int | None = None,
    request_id: str = "r",
) -> Facts:
    """The facts of an answer: ``candidates`` (indices) scored for a user with ``history`` (L) of items ``seen`` (L).
    ``first``: an item that leads the answer whatever its score."""
    version = served.version
    side = version.user_side(profile, history, served.rows[seen], np.ones(len(seen), np.bool_))
    scores = version.score(side, served.rows[candidates])
    order = np.argsort(-scores, kind="stable")
    if first is not None:
        own = int(np.flatnonzero(candidates == first)[0])
        order = np.concatenate([[own], order[order != own]])
    order = order[: k + 1]
    named = [FactItem(str(candidates[at]), float(scores[at])) for at in order]
    head = FactsHead(
        request_id=request_id,
        user_id="u",
        version=version.name,
        answered_ms=0,
        k=k,
        items=named[:k],
        cut=named[k] if len(named) > k else None,
        attributes=None if profile is None else dict(profile),
        context={},
        entries=len(history),
        newest=0,
        row_bytes=version.layout.dtype.itemsize,
    )
    inputs = UserInputs(head.attributes, history, served.rows[seen], history[:0])
    return unpack_facts(pack_facts(head, served.rows[candidates[order]]), pack_user(inputs))
