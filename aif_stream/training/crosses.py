"""What the pre-computed crosses of a user cost: memory and time by categories, and how often a bounded cache has them.

No data set: histories over C categories drawn by Zipf's law, requests of users drawn by it too. The cache is the
least-recently-used one, in which a user side is one entry.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.clock import cpu_ms
from aif_stream.domain.history import ENTRY
from aif_stream.domain.row import HAS_CONTENT, VALID, empty_rows
from aif_stream.model.config import ModelConfig, Part
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.training.cost import one_thread

I64 = NDArray[np.int64]

_RUNS: Final = 15
_REQUESTS: Final = 60_000
_WARM: Final = 20_000  # requests before hits are counted


def fill_cost(categories: int, history: int, seed: int) -> dict[str, Any]:
    """Bytes and CPU milliseconds (median, p10, p90) of a user side with and without crosses, history of so many."""
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {"categories": categories, "history": history}
    for name, parts in (("with", tuple(Part)), ("without", tuple(p for p in Part if p is not Part.SIM))):
        config = ModelConfig(categories=tuple(f"c{n}" for n in range(categories)), content_width=8, parts=parts)
        version = ModelVersion.init(config, seed)
        rows = empty_rows(version.layout, history)
        rows["category"] = zipf(random, categories, history)
        rows["flags"] = VALID | HAS_CONTENT
        for field in ("t", "w", "h"):
            rows[field] = random.standard_normal(rows[field].shape) * 0.5
        rows["sig"] = random.integers(0, 256, size=rows["sig"].shape)
        entries = np.zeros(history, dtype=ENTRY)
        entries["time_kind"] = (np.arange(history, dtype=np.uint64) * np.uint64(60_000)) << np.uint64(3) | np.uint64(1)
        everything = np.ones(history, dtype=np.bool_)
        spent = []
        with one_thread():
            side = version.user_side(None, entries, rows, everything)
            for _ in range(_RUNS):
                began = cpu_ms()
                side = version.user_side(None, entries, rows, everything)
                spent.append(cpu_ms() - began)
        found[f"ms_{name}"] = round(statistics.median(spent), 3)
        for share in (10, 90):
            found[f"ms_{name}_p{share}"] = round(float(np.percentile(spent, share)), 3)
        found[f"bytes_{name}"] = side_bytes(side)
        if name == "with":
            found["categories_in_history"] = len(np.unique(rows["category"]))
    return found


def side_bytes(side: UserSide) -> int:
    """Memory of a user side's arrays."""
    tensors = sum(part.nbytes for part in (side.u, side.first, side.bag) if isinstance(part, torch.Tensor))
    arrays = (side.category_row, side.key2_row, side.signatures, side.kinds)
    return tensors + sum(array.nbytes for array in arrays)


def hit_rate(users: int, entries: int, seed: int) -> float:
    """Share of requests whose user side a least-recently-used cache of so many entries still has."""
    asked = zipf(np.random.default_rng(seed), users, _REQUESTS)
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number, user in enumerate(asked.tolist()):
        if user in cache:
            hits += number >= _WARM
            cache.move_to_end(user)
            continue
        cache[user] = None
        if len(cache) > entries:
            cache.popitem(last=False)
    return round(hits / (_REQUESTS - _WARM), 4)


def zipf(random: np.random.Generator, kinds: int, count: int) -> I64:
    """``count`` draws from 0 … kinds - 1, the n-th with weight 1/n."""
    weights = np.cumsum(1.0 / np.arange(1, kinds + 1))
    drawn: I64 = np.searchsorted(weights, random.random(count) * weights[-1]).astype(np.int64)
    return drawn


def run_crosses(
    categories: Sequence[int], users: Sequence[int], cache_mb: Sequence[int], history: int, seed: int
) -> dict[str, Any]:
    """Both tables."""
    fills = [fill_cost(count, history, seed) for count in categories]
    hits = []
    for fill in fills:
        for megabytes in cache_mb:
            entries = max(1, megabytes * 2**20 // fill["bytes_with"])
            hits += [
                {
                    "categories": fill["categories"],
                    "users": count,
                    "cache_mb": megabytes,
                    "entries": entries,
                    "hit_rate": hit_rate(count, entries, seed),
                }
                for count in users
            ]
    return {"fill": fills, "hits": hits}
