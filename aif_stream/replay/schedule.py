"""When each request is due: fixed before the first is sent, whatever the server does (an open load model)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def original(received_ms: NDArray[np.int64], speed: float) -> NDArray[np.float64]:
    """Seconds after the beginning (n), as the requests arrived, ``speed`` times as fast. ``received_ms`` ascending."""
    due: NDArray[np.float64] = (received_ms - received_ms[0]) / (1000.0 * speed)
    return due


def constant(count: int, rate_per_s: float) -> NDArray[np.float64]:
    """Seconds after the beginning (n): every 1/rate. The i-th is due at i/rate exactly: no error adds up."""
    return np.arange(count) / rate_per_s
