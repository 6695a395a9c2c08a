"""Rows of an arena by slot: the join's second step."""

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose

Rows = NDArray[np.uint8]


def gather_rows(arena: Rows, slots: NDArray[np.int32], out: Rows | None = None, *, level: Level | None = None) -> Rows:
    """arena (N, R bytes), slots (B) -> rows (B, R); a negative slot gives zeros. All contiguous.

    For a structured arena pass `arena.view(np.uint8).reshape(N, R)`: no copy. Rows that another
    thread writes meanwhile may come torn; the caller keeps written rows apart (mirror).
    IndexError for a slot beyond the arena (its row in `out` is zeros then), ValueError for shapes.
    """
    native, _ = choose(level)
    shape = (len(slots), arena.shape[1])
    rows = np.empty(shape, np.uint8) if out is None else out
    if not all(array.flags.c_contiguous for array in (arena, slots, rows)):
        raise ValueError("arena, slots and out must be contiguous")
    if rows.shape != shape or not rows.flags.writeable:
        raise ValueError(f"out must be writeable and {shape}, not {rows.shape}")
    if arena.dtype != np.uint8 or slots.dtype != np.int32 or rows.dtype != np.uint8:
        raise ValueError("arena and out must be uint8, slots int32")
    if native is None:
        beyond = _gather_numpy(arena, slots, rows)
    else:
        beyond = native.gather(
            *(address(arena), arena.shape[0], arena.shape[1]),
            *(address(slots), len(slots), address(rows)),
        )
    if beyond:
        raise IndexError(f"{beyond} of {len(slots)} slots lie beyond the arena of {len(arena)} rows")
    return rows


def _gather_numpy(arena: Rows, slots: NDArray[np.int32], rows: Rows) -> int:
    """The plain twin; returns the number of slots beyond the arena."""
    inside = (slots >= 0) & (slots < len(arena))
    rows[...] = 0
    if inside.all():
        np.take(arena, slots, axis=0, out=rows, mode="clip")
    else:
        rows[inside] = arena[slots[inside]]
    return int((slots >= len(arena)).sum())
