"""An answered request, as the merger tells the request log of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aif_stream.domain.candidates import keys_and_names
from aif_stream.domain.request import AgeMs, Coverage, Freshness, RankAnswer, RankedItem, RankRequest, Timings
from aif_stream.domain.request_log import AnsweredRequest


def answered(
    candidates: list[str],
    *,
    request_id: str = "00ff",
    received_ms: int = 1_700_000_000_000,
    items: Sequence[RankedItem] = (RankedItem("7", 0.5),),
    **request: Any,
) -> AnsweredRequest:
    """``request`` are fields of the ``RankRequest``. The candidates come in three parts, as channels answer."""
    keys, names = keys_and_names(candidates)
    best, _ = keys_and_names([item.item_id for item in items])
    answer = RankAnswer(
        request_id=request_id,
        model_version="v1",
        items=list(items),
        coverage=Coverage(len(candidates), len(candidates), 0, 0),
        freshness=Freshness(AgeMs(1.0, 2.0), 0, 1_699_999_999_000),
        degraded=[],
        timings_ms=Timings(1.0, 0.0, 1.0, 1.0, 3.0, 0.0),
    )
    return AnsweredRequest(
        request=RankRequest(**{"user_id": "ann", **request}),
        answer=answer,
        received_ms=received_ms,
        keys=np.array_split(keys, 3),
        names=names,
        best=best.tolist(),
        scores=[item.score for item in items],
    )
