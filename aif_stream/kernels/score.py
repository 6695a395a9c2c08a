"""The split scorer in one compiled call: candidates' rows -> scores. Its plain twin is `model.split.score_rows`.

Here are shapes and pointers only; what the numbers mean is said in model/split.py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.row import RowLayout, Rows
from aif_stream.kernels.native import Level, Native, address, choose
from aif_stream.kernels.slots import SlotTable
from aif_stream.kernels.tiers import packed_words

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

PAD: Final = 32  # two vectors of AVX-512: hidden units and head are filled up to a multiple of it
MAX_GROUPS: Final = 8
_SUM_ALIGN: Final = 64
_FOREVER_S: Final = 9e9  # fits a signed 64-bit number of nanoseconds


class _Scorer(ctypes.Structure):
    """struct aif_scorer of score.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("row_bytes", "at_h", "at_t", "at_w", "at_sig", "at_category")),
        *((name, ctypes.c_int64) for name in ("at_flags", "at_key2", "at_code")),
        *((name, ctypes.c_int64) for name in ("H", "Hp", "Fp", "D", "K", "at_x_t", "width")),
        *((name, ctypes.c_int64) for name in ("sig_bytes", "tiers", "groups", "categories", "keys2", "codes")),
        *((name, ctypes.c_float) for name in ("eps", "down_bias")),
        *((name, ctypes.c_void_p) for name in ("real", "norm", "bias", "up", "up_bias", "down", "edges")),
    ]


class _User(ctypes.Structure):
    """struct aif_user of score.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("u", "first", "bag", "category_row", "key2_row")),
        ("code_row", ctypes.c_int64),
        ("nibble_row", ctypes.c_int64),
        *((name, ctypes.c_void_p * MAX_GROUPS) for name in ("history", "gain")),
        ("n_history", ctypes.c_int64 * MAX_GROUPS),
    ]


class _Stored(ctypes.Structure):
    """struct aif_stored of score.h."""

    _fields_ = [
        ("table", ctypes.c_void_p),
        ("mask", ctypes.c_uint64),
        ("arena", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "at_event", "at_computed", "due_ns", "stop_if_unknown")),
    ]


class _Joined(ctypes.Structure):
    """struct aif_joined of score.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("done", "unknown", "join_ns")),
        ("newest_ms", ctypes.c_uint64),
    ]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where rows lie: key -> slot, and rows u8 (N, row bytes) by slot. Slots stay in place while a call reads."""

    table: SlotTable
    arena: U8


@dataclass(frozen=True, slots=True)
class Scored:
    """What ``ScoreKernel.score_keys`` made of B keys. ``done``: rows that scoring reached before the deadline (scores
    beyond are -inf). ``computed_ms`` u64 (B): 0 for an unknown key. ``newest_ms``: the newest event among the rows."""

    scores: F32
    computed_ms: NDArray[np.uint64]
    done: int
    newest_ms: int
    join_s: float


@dataclass(frozen=True, slots=True)
class Head:
    """What stands behind the first layer: layer norm (H), up (H, F), down (F)."""

    norm: F32
    bias: F32
    eps: float
    up: F32
    up_bias: F32
    down: F32
    down_bias: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers of a version: K is 0 without bridges, ``groups`` 0 without tiers of the item's own signature."""

    layout: RowLayout
    K: int
    groups: int
    tiers: int
    edges: U8  # (W + 1)
    categories: int
    keys2: int
    codes: int


@dataclass(frozen=True, slots=True)
class Group:
    """History of one group of kinds: signatures (L', W/8) and what a tier feature is for each count, f32 (L' + 1)."""

    signatures: U8
    gain: F32


@dataclass(frozen=True, slots=True)
class PackedUser:
    """One user as the C code reads it. ``kept`` owns the memory; read-only, may be shared between threads."""

    kept: tuple[NDArray[np.generic], ...]
    struct: _User

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.kept)

    def shares(self, where: int) -> bool:
        """Whether the memory at an address is read in place."""
        return any(address(array) == where for array in self.kept)


def padded(count: int) -> int:
    """The next multiple of PAD."""
    return count + -count % PAD


def widened(matrix: F32) -> F32:
    """(n, H) -> (n, padded H), contiguous, zeros beyond; the same array where nothing is missing."""
    missing = -matrix.shape[1] % PAD
    return np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, missing))) if missing else matrix, dtype=np.float32)


class ScoreKernel:
    """The scorer of one version. Stateless after construction but for scratch memory of its own in each thread."""

    def __init__(self, shape: Shape, head: Head) -> None:
        self._shape = shape
        self._columns = shape.K + shape.groups * shape.tiers + shape.layout.width
        self._kept: tuple[NDArray[np.generic], ...] = _weights(shape, head)
        self._struct = self._packed(head)
        self._scratch = threading.local()

    def _packed(self, head: Head) -> _Scorer:
        shape, layout, dtype = self._shape, self._shape.layout, self._shape.layout.dtype
        offsets = {name: offset for name, (_, offset, *_) in (dtype.fields or {}).items()}
        places = {f"at_{name}": offsets.get(name, -1) for name in ("h", "t", "w", "sig", "category", "flags", "key2")}
        names = ("real", "norm", "bias", "up", "up_bias", "down", "edges")
        return _Scorer(
            row_bytes=dtype.itemsize,
            **places,
            at_code=offsets.get("code", -1),
            H=layout.hidden,
            Hp=padded(layout.hidden),
            Fp=padded(head.up.shape[1]),
            D=layout.width,
            K=shape.K,
            at_x_t=self._columns - layout.width,
            width=self._columns + self._columns % 2,
            sig_bytes=layout.signature_bits // 8,
            tiers=shape.tiers,
            groups=shape.groups,
            categories=shape.categories,
            keys2=shape.keys2,
            codes=shape.codes,
            eps=head.eps,
            down_bias=head.down_bias,
            **{name: address(array) for name, array in zip(names, self._kept, strict=True)},
        )

    def user(
        self,
        *,
        u: F32,
        first: F32,
        bag: F32,
        category_row: I32,
        key2_row: I32,
        code_row: int,
        nibble_row: int,
        groups: Sequence[Group],
    ) -> PackedUser:
        """u (D), first (K + tiers + D, H), bag (rows, padded H) as in ``model.split.UserSide``; as many groups as the
        shape has.

        Once per request, beside retrieval: nothing of it waits for candidates. ValueError for other shapes.
        """
        shape = self._shape
        if first.shape != (self._columns, shape.layout.hidden) or len(groups) != shape.groups:
            raise ValueError(f"first {first.shape} and {len(groups)} groups are not of {shape}")
        if bag.shape[1] != padded(shape.layout.hidden):
            raise ValueError(f"bag {bag.shape} is not filled up to {padded(shape.layout.hidden)} columns")
        if u.shape != (shape.layout.width,) or category_row.shape != (shape.categories + 1,):
            raise ValueError(f"u {u.shape} and category_row {category_row.shape} are not of {shape}")
        spare = np.zeros((self._columns % 2, first.shape[1]), np.float32)
        kept: list[NDArray[np.generic]] = [
            np.ascontiguousarray(u, np.float32),
            widened(np.concatenate([first, spare])),
            np.ascontiguousarray(bag, np.float32),
            *(np.ascontiguousarray(rows, np.int32) for rows in (category_row, key2_row)),
        ]
        struct = _User(
            u=address(kept[0]),
            first=address(kept[1]),
            bag=address(kept[2]),
            category_row=address(kept[3]),
            key2_row=address(kept[4]) if key2_row.size else None,
            code_row=code_row,
            nibble_row=nibble_row,
        )
        for number, group in enumerate(groups):
            if group.gain.shape != (len(group.signatures) + 1,):
                raise ValueError(f"gain {group.gain.shape} for {len(group.signatures)} entries")
            words, gain = packed_words(group.signatures), np.ascontiguousarray(group.gain, np.float32)
            struct.history[number], struct.gain[number] = address(words), address(gain)
            struct.n_history[number] = len(words)
            kept += [words, gain]
        return PackedUser(tuple(kept), struct)

    def score(self, user: PackedUser, rows: Rows, *, level: Level | None = None, bf16: bool = False) -> F32:
        """Rows (B) of the layout -> scores f32 (B), -inf where a row is not valid. Releases the GIL.

        A score depends on user and row alone: the same bits in any batch (of one level and precision). ``bf16``:
        factors of the two products rounded to bfloat16, sums in float32. ValueError where there is no compiled
        library, for another row layout, or for a level or precision that this machine lacks.
        """
        native, level = choose(level)
        if native is None:
            raise ValueError("the compiled scorer is not here: score with the plain twin")
        if bf16 and (level is not Level.AVX512 or not native.has_bf16):
            raise ValueError("products in bfloat16 need a CPU with AVX512_BF16")
        if rows.dtype != self._shape.layout.dtype or rows.ndim != 1:
            raise ValueError(f"rows {rows.shape} are not of this version's layout")
        rows = np.ascontiguousarray(rows)
        scores = np.empty(len(rows), np.float32)
        native.score(
            *(level, int(bf16), ctypes.addressof(self._struct), ctypes.addressof(user.struct)),
            *(address(rows), len(rows), self._scratch_of(native), address(scores)),
        )
        return scores

    def score_keys(
        self,
        user: PackedUser,
        stored: Stored,
        keys: NDArray[np.uint64],
        due_s: float,
        *,
        stop_if_unknown: bool,
        level: Level | None = None,
        bf16: bool = False,
    ) -> Scored | None:
        """Join and score in one call, rows read where they lie: the same bits as ``score`` of gathered rows.

        None where there is no compiled library for the table or here, and for a key that the table does not know when
        ``stop_if_unknown``. ``due_s``: monotonic; looked at every 64 rows. Releases the GIL. ValueError as ``score``.
        """
        native, level = choose(level)
        place = stored.table.place()
        if native is None or place is None:
            return None
        if bf16 and (level is not Level.AVX512 or not native.has_bf16):
            raise ValueError("products in bfloat16 need a CPU with AVX512_BF16")
        dtype = self._shape.layout.dtype
        if stored.arena.ndim != 2 or stored.arena.shape[1] != dtype.itemsize or not stored.arena.flags.c_contiguous:
            raise ValueError(f"an arena {stored.arena.shape} does not hold this version's rows")
        keys = np.ascontiguousarray(keys, np.uint64)
        offsets = {name: offset for name, (_, offset, *_) in (dtype.fields or {}).items()}
        where = _Stored(
            table=place.address,
            mask=place.mask,
            arena=address(stored.arena),
            rows=len(stored.arena),
            at_event=offsets["event_time_ms"],
            at_computed=offsets["computed_ms"],
            due_ns=int(min(max(due_s, 0.0), _FOREVER_S) * 1e9),
            stop_if_unknown=stop_if_unknown,
        )
        scores, computed_ms = np.empty(keys.size, np.float32), np.empty(keys.size, np.uint64)
        slots, found = np.empty(keys.size, np.int32), _Joined()
        native.score_keys(
            *(level, int(bf16), ctypes.addressof(self._struct), ctypes.addressof(user.struct)),
            *(ctypes.addressof(where), address(keys), keys.size, self._scratch_of(native)),
            *(address(slots), address(scores), address(computed_ms), ctypes.addressof(found)),
        )
        if found.unknown and stop_if_unknown:
            return None
        return Scored(scores, computed_ms, found.done, found.newest_ms, found.join_ns / 1e9)

    def _scratch_of(self, native: Native) -> int:
        """Address of this thread's scratch memory, aligned to a cache line."""
        found: tuple[F32, int] | None = getattr(self._scratch, "memory", None)
        if found is None:
            memory = np.empty(native.score_scratch(ctypes.addressof(self._struct)) + _SUM_ALIGN // 4, np.float32)
            found = self._scratch.memory = (memory, address(memory) + -address(memory) % _SUM_ALIGN)
        return found[1]


def _weights(shape: Shape, head: Head) -> tuple[NDArray[np.generic], ...]:
    """real, norm, bias, up, up_bias, down, edges: padded, contiguous."""
    H, F = shape.layout.hidden, head.up.shape[1]
    if head.up.shape[0] != H or head.norm.shape != (H,) or shape.edges.shape != (shape.layout.signature_bits + 1,):
        raise ValueError(f"head {head.up.shape}, norm {head.norm.shape}, edges {shape.edges.shape} of H = {H}")
    if shape.groups > MAX_GROUPS:
        raise ValueError(f"at most {MAX_GROUPS} groups of kinds, not {shape.groups}")

    def row(values: F32) -> F32:
        return np.pad(values, (0, -values.size % PAD)).astype(np.float32)

    up = np.zeros((padded(H), padded(F)), np.float32)
    up[:H, :F] = head.up
    ones = np.ones(H, np.float32)
    edges = np.ascontiguousarray(shape.edges, np.uint8)
    return row(ones), row(head.norm), row(head.bias), up, row(head.up_bias), row(head.down), edges
