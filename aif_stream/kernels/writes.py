"""A micro-batch as Redis commands, one per bucket, put together byte by byte in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose


class Batch(Protocol):
    """n events as ``index.writes.Writes`` has them."""

    @property
    def keys(self) -> NDArray[np.uint64]: ...
    @property
    def times(self) -> NDArray[np.uint64]: ...
    @property
    def offsets(self) -> NDArray[np.uint64]: ...
    @property
    def payloads(self) -> list[bytes | None]: ...
    @property
    def names(self) -> list[bytes] | None: ...


class _CBatch(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("keys", "times", "offsets")],
        ("payloads", ctypes.py_object),
        ("names", ctypes.py_object),
        ("now_ms", ctypes.c_uint64),
        ("versions", ctypes.c_int64),
        ("labels", ctypes.py_object),
        ("rows", ctypes.c_void_p),
        ("row_bytes", ctypes.c_void_p),
    ]


def pack_commands(
    batch: Batch,
    heads: list[bytes],
    labels: list[bytes],
    rows: Sequence[NDArray[np.uint8]],
    groups: tuple[NDArray[np.intp], Sequence[int], Sequence[int]],
    now_ms: int,
    level: Level | None = None,
) -> list[bytes] | None:
    """Each head with the items order[starts[j] : ends[j]] of ``groups`` = (order, starts, ends) behind it: entries as
    ``item_codec.pack_write`` makes them, then of each version its label and rows (n, bytes). None: no C library."""
    native, _ = choose(level)
    if native is None or native.objects is None:
        return None
    arrays = [np.ascontiguousarray(array, np.uint64) for array in (batch.keys, batch.times, batch.offsets)]
    order, starts, ends = (np.ascontiguousarray(array, np.int64) for array in groups)
    at = np.array([address(matrix) for matrix in rows] or [0], np.uint64)
    widths = np.array([matrix.shape[1] for matrix in rows] or [0], np.int64)
    c = _CBatch(
        *(*map(address, arrays), batch.payloads, batch.names, now_ms, len(labels), labels, address(at), address(widths))
    )
    return native.objects.writes_pack(ctypes.addressof(c), heads, address(order), address(starts), address(ends))
