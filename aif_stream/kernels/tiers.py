"""SimTier: how much of a user's long history lies in each tier of similarity to an item.

The part of AIF that needs B x L popcounts (design: model, "SimTier histogram"; paper: AIF, arXiv
2511.12934). Signatures are packed bits, sim = popcount(XNOR(a, b)) / W. Masked history entries are
taken out before the loop: padding is not similarity 1/2.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

MAX_BITS = 256
MAX_TIERS = 64  # W / 4 at W = 256: finer tiers than one per few bits only count noise
_TWIN_PAIRS = 1 << 20  # pairs per step of the twin: about 20 MB


def tier_edges(bounds: Sequence[float], bits: int) -> Bytes:
    """Similarity bounds (T - 1, ascending) -> edges (W + 1): the tier 0..T-1 by number of equal
    bits. A similarity equal to a bound lies above it. ValueError if bounds do not ascend."""
    if any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"tier bounds must ascend: {list(bounds)}")
    similarity = np.arange(bits + 1) / bits
    return np.searchsorted(np.asarray(bounds, np.float64), similarity, side="right").astype(np.uint8)


def tiers(
    sig_items: Bytes,
    sig_history: Bytes,
    history_mask: Mask,
    edges: Bytes,
    n_tiers: int,
    *,
    item_mask: Mask | None = None,
    out: Floats | None = None,
    level: Level | None = None,
) -> Floats:
    """sig_items (B, W/8), sig_history (L, W/8), history_mask (L, True = counts), edges (W + 1,
    see `tier_edges`) -> shares (B, n_tiers), float32.

    Row i, column t: the share of counted history entries whose similarity to item i lies in tier
    t. Zeros without a counted entry, and for items whose item_mask (B) is False (no content).
    sig_items may be a field of wider rows (row stride free) and `out` a column block of a wider
    float32 matrix; neither is copied. W: a multiple of 8 up to 256. Repeatable; every level gives
    the same bits. ValueError for shapes, decreasing edges, more than 64 tiers, or a level that
    this machine lacks.
    """
    _check(sig_items, sig_history, history_mask, edges, n_tiers)
    native, level = choose(level)
    shape = (len(sig_items), n_tiers)
    shares = np.empty(shape, np.float32) if out is None else out
    if shares.shape != shape or shares.dtype != np.float32 or not shares.flags.writeable:
        raise ValueError(f"out must be writeable float32{shape}, not {shares.dtype}{shares.shape}")
    history = sig_history[history_mask]
    if not shares.size or not len(history):
        shares[...] = 0
        return shares
    if native is None:
        shares[...] = _tiers_numpy(sig_items, history, edges, n_tiers)
    else:
        row, column = shares.strides
        if row % 4 or (column != 4 and n_tiers > 1):
            raise ValueError(f"columns of out must be adjacent, not {column} bytes apart")
        if sig_items.shape[1] > 1 and sig_items.strides[1] != 1:
            sig_items = np.ascontiguousarray(sig_items)
        words, edges = packed_words(history), np.ascontiguousarray(edges)
        native.tiers(
            *(level, address(sig_items), sig_items.strides[0], len(sig_items), sig_items.shape[1]),
            *(address(words), len(words), address(edges), n_tiers, None),
            *(address(shares), row // 4),
        )
    if item_mask is not None:
        shares[~item_mask] = 0
    return shares


def _check(items: Bytes, history: Bytes, mask: Mask, edges: Bytes, n_tiers: int) -> None:
    if items.dtype != np.uint8 or history.dtype != np.uint8 or edges.dtype != np.uint8:
        raise ValueError("signatures and edges must be uint8")
    if items.ndim != 2 or history.ndim != 2 or items.shape[1] != history.shape[1]:
        raise ValueError(f"signatures of items {items.shape} and history {history.shape} differ")
    bits = items.shape[1] * 8
    if not 0 < bits <= MAX_BITS or not 0 < n_tiers <= MAX_TIERS:
        raise ValueError(f"{bits} bits and {n_tiers} tiers: at most {MAX_BITS} and {MAX_TIERS}")
    if mask.dtype != np.bool_ or mask.shape != history.shape[:1]:
        raise ValueError(f"history mask {mask.dtype}{mask.shape} for {len(history)} entries")
    if edges.shape != (bits + 1,) or edges[-1] >= n_tiers or (edges[1:] < edges[:-1]).any():
        raise ValueError(f"edges must name tiers below {n_tiers}, never decreasing, for 0..{bits} bits")


def packed_words(packed: Bytes) -> NDArray[np.uint64]:
    """(N, bytes) -> (N, ceil(bytes / 8)) words, zero-padded: zeros on both sides do not differ."""
    padding = -packed.shape[1] % 8
    if padding:
        packed = np.pad(packed, ((0, 0), (0, padding)))
    return np.ascontiguousarray(packed).view(np.uint64)


def _tiers_numpy(sig_items: Bytes, history: Bytes, edges: Bytes, n_tiers: int) -> Floats:
    """The plain twin: all pairs, then one histogram; `history` holds counted entries only."""
    bits = sig_items.shape[1] * 8
    items, seen = packed_words(sig_items), packed_words(history)
    counts = np.empty((len(items), n_tiers), np.int64)
    step = max(1, _TWIN_PAIRS // len(seen))
    for first in range(0, len(items), step):
        block = items[first : first + step]
        differing = np.zeros((len(block), len(seen)), np.uint16)
        for word in range(items.shape[1]):
            differing += np.bitwise_count(block[:, None, word] ^ seen[None, :, word])
        cells = edges[bits - differing] + n_tiers * np.arange(len(block))[:, None]  # (b, L)
        flat = np.bincount(cells.ravel(), minlength=len(block) * n_tiers)
        counts[first : first + step] = flat.reshape(len(block), n_tiers)
    return counts.astype(np.float32) / np.float32(len(seen))
