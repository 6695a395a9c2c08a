"""First occurrences among keys that come in parts: the candidates of one request."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose

Keys = NDArray[np.uint64]

_ENTRY = np.dtype([("key", "=u8"), ("stamp", "=u8")])
_LOAD = 0.5  # places for twice as many keys: a miss looks at two and a half entries


class DistinctKeys:
    """At most ``most`` keys between two calls of ``clear``. Not for several threads."""

    def __init__(self, most: int, *, level: Level | None = None) -> None:
        self.most = most
        self._native, _ = choose(level)
        capacity = 64
        while capacity * _LOAD < most + 1:
            capacity *= 2
        self._table = np.zeros(capacity, _ENTRY)
        self._stamp = 1
        self._seen: set[int] = set()  # the plain twin's

    def clear(self) -> None:
        """Forget all keys; costs nothing."""
        self._stamp += 1
        self._seen.clear()

    def take(self, keys: Keys, room: int, but: int | None = None) -> tuple[Keys, int]:
        """Unseen keys among keys u64 (n) but for ``but``, in order and each once, until there are ``room`` of them; how
        many of the n were looked at. The caller counts: no more than ``most`` in all."""
        keys = np.ascontiguousarray(keys, np.uint64)
        if self._native is None:
            return self._take_plain(keys, room, but)
        taken, consumed = np.empty(max(0, min(room, keys.size)), np.uint64), ctypes.c_int64()
        count = self._native.distinct(
            *(address(self._table), self._table.size - 1, self._stamp),
            *(
                address(keys),
                keys.size,
                taken.size,
                but is not None,
                but or 0,
                address(taken),
                ctypes.addressof(consumed),
            ),
        )
        return taken[:count], consumed.value

    def _take_plain(self, keys: Keys, room: int, but: int | None) -> tuple[Keys, int]:
        taken: list[int] = []
        looked = 0
        for key in keys.tolist():
            if len(taken) >= room:
                break
            looked += 1
            if key not in self._seen and key != but:
                self._seen.add(key)
                taken.append(key)
        return np.array(taken, np.uint64), looked
