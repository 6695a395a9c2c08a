"""Whether what is served is what was trained: the split form against the joint form in float32.

Three forms of it: rows that keep float32 (the algebra of the split alone), the served f16 rows, and the served rows
with products in bfloat16 (``AIF_COMPUTE=bf16``), where this CPU has them and the version a compiled scorer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import has_bf16
from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Served
from aif_stream.training.metrics import check_finite

_REQUESTS: Final = 8
_ITEMS: Final = 2000
_TOP: Final = 100

Scores = NDArray[np.floating]


def parity(version: ModelVersion, data: Dataset) -> dict[str, dict[str, float]]:
    """By form (``float32 rows``, ``f16 rows``, ``bf16 products``), of 8 test requests over the same 2,000 items (the
    whole catalogue where it is smaller):

    ``score_error_max``, beside ``score_deviation`` (mean over requests), and the overlap of both top 100, mean and
    smallest. Empty for a model that is never served.
    """
    if version.config.offline:
        return {}
    test = data.requests.of(Split.TEST)
    requests = test[np.linspace(0, len(test) - 1, min(_REQUESTS, len(test))).astype(np.int64)].tolist()
    some = np.random.default_rng(0).permutation(len(data.items))[:_ITEMS]
    joint = [_joint(version, data, request, some) for request in requests]
    served = Served(version, data)
    unrounded = Served(version, data, version.layout.dtype_f32)
    found = {
        "float32 rows": _compared(joint, (unrounded(request, some) for request in requests)),
        "f16 rows": _compared(joint, (served(request, some) for request in requests)),
    }
    if version.compiled and has_bf16():
        before, version.bf16 = version.bf16, True
        try:
            found["bf16 products"] = _compared(joint, (served(request, some) for request in requests))
        finally:
            version.bf16 = before
    return found


def _joint(version: ModelVersion, data: Dataset, request: int, some: NDArray[np.int64]) -> Scores:
    history, seen = data.history(request)
    profile = data.profiles[data.requests.user[request]]
    own, items = (data.states_at(at, int(data.requests.time_ms[request])) for at in (seen, some))
    return version.joint(profile, history, [data.states[i] for i in own], [data.states[i] for i in items])


def _compared(joint: list[Scores], split: Iterable[Scores]) -> dict[str, Any]:
    errors, overlaps = [], []
    for exact, scores in zip(joint, split, strict=True):
        check_finite(exact, "joint scores")
        check_finite(scores, "split scores")
        errors.append(float(np.abs(scores - exact).max()))
        top = min(_TOP, len(exact))
        best, same = (set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (exact, scores))
        overlaps.append(len(best & same) / top)
    return {
        "score_error_max": round(max(errors), 7),
        "score_deviation": round(float(np.mean([exact.std() for exact in joint])), 4),
        "top100_overlap_mean": round(float(np.mean(overlaps)), 4),
        "top100_overlap_min": round(min(overlaps), 4),
    }
