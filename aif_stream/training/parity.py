"""Whether what is served is what was trained: rows in 16 bits and the split form against the joint form in 32."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Served

_REQUESTS: Final = 8
_ITEMS: Final = 2000
_TOP: Final = 100


def parity(version: ModelVersion, data: Dataset) -> dict[str, Any]:
    """Of 8 test requests over the same 2,000 items (the whole catalogue where it is smaller):

    ``score_error_max``, beside ``score_deviation`` (mean over requests), and the overlap of both top 100, mean and
    smallest. Empty for a model that is never served.
    """
    if version.config.offline:
        return {}
    served, test = Served(version, data), data.requests.of(Split.TEST)
    requests = test[np.linspace(0, len(test) - 1, min(_REQUESTS, len(test))).astype(np.int64)]
    random = np.random.default_rng(0)
    some = random.permutation(len(data.items))[:_ITEMS]
    top = min(_TOP, len(some))
    errors, spreads, overlaps = [], [], []
    for request in requests.tolist():
        history, seen = data.history(request)
        profile = data.profiles[data.requests.user[request]]
        own, items = (data.states_at(at, int(data.requests.time_ms[request])) for at in (seen, some))
        joint = version.joint(profile, history, [data.states[i] for i in own], [data.states[i] for i in items])
        split = served(request, some)
        errors.append(float(np.abs(split - joint).max()))
        spreads.append(float(joint.std()))
        best, same = (set(np.argsort(-scores, kind="stable")[:top].tolist()) for scores in (joint, split))
        overlaps.append(len(best & same) / top)
    return {
        "score_error_max": round(max(errors), 6),
        "score_deviation": round(float(np.mean(spreads)), 4),
        "top100_overlap_mean": round(float(np.mean(overlaps)), 4),
        "top100_overlap_min": round(min(overlaps), 4),
    }
