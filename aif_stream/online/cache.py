"""A bounded memory of values by key, least recently used out first, with the age of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from aif_stream.clock import monotonic_s

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class AgedCache(Generic[K, V]):
    """Holds at most ``limit_bytes`` of values (as their callers weigh them). Full: the least used are dropped."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[K, tuple[V, float, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, max_age_s: float = float("inf")) -> tuple[V, float] | None:
        """(value, seconds since it was put), or None when it is unknown or older."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = monotonic_s() - entry[1]
        if age_s > max_age_s:
            return None
        self._entries.move_to_end(key)
        return entry[0], age_s

    def put(self, key: K, value: V, weight_bytes: int, age_s: float = 0.0) -> None:
        """Remember a value that was true ``age_s`` ago."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.bytes -= old[2]
        self._entries[key] = (value, monotonic_s() - age_s, weight_bytes)
        self.bytes += weight_bytes
        while self.bytes > self._limit and len(self._entries) > 1:
            self.bytes -= self._entries.popitem(last=False)[1][2]
