"""Ids of a request that are their own keys: 10,000 in .02 ms (as text .04), where Python takes 3."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose


def direct_keys(ids: list[Any], *, level: Level | None = None) -> NDArray[np.uint64] | None:
    """The keys u64 (B) of ids (int, or canonical decimals of at most 18 digits), in their order. None where one of them
    is anything else, or there is no C library: then ``domain.candidates.keys_and_names`` has them all, more slowly."""
    native, _ = choose(level)
    if native is None or native.objects is None:
        return None
    keys = np.empty(len(ids), np.uint64)
    return keys if native.objects.ids_read(ids, address(keys)) else None
