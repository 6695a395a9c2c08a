"""How often one address may ask: a bucket of tokens for each, filled at a steady rate."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from aif_stream.clock import monotonic_s

_ADDRESSES: Final = 10_000  # the one that was quiet longest is forgotten: its bucket is full again by then, or soon


class Flood:
    """``rate`` a second, twice that at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, 2.0 * rate)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """0 and a token is taken; or how long until there is one."""
        now_s = monotonic_s()
        tokens, seen_s = self._buckets.pop(address, (self._most, now_s))
        tokens = min(self._most, tokens + (now_s - seen_s) * self._rate)
        taken = tokens >= 1.0
        self._buckets[address] = (tokens - taken, now_s)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1.0 - tokens) / self._rate
