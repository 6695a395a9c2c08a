"""The N2O row: a fixed-size little-endian record per item and model version.

    prefix (32 bytes)   event_time_ms u64 · offset u64 · computed_ms u64 · category i32 · flags u8 · pad
    body                h f16[H] · t f16[D] · w f16[K] · sig u8[W/8] [· key2 i32] [· code u32]

A tombstone is stored as the prefix alone: removed items keep their order, not their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import ArtefactError

Rows = NDArray[np.void]

VALID: Final = 1
TOMBSTONE: Final = 2
HAS_CONTENT: Final = 4
NO_CATEGORY: Final = -1

_PREFIX: Final[list[tuple[str, str]]] = [
    ("event_time_ms", "<u8"),
    ("offset", "<u8"),
    ("computed_ms", "<u8"),
    ("category", "<i4"),
    ("flags", "u1"),
    ("_pad", "V3"),
]
PREFIX: Final = np.dtype(_PREFIX)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The widths that fix a row: H first hidden layer, D tower, K bridges, W signature bits.

    ``second_key``: the row carries the item's second SIM key; ``coded``: the codeword of its signature.
    """

    hidden: int
    width: int
    bridges: int
    signature_bits: int
    second_key: bool = False
    coded: bool = False

    def __post_init__(self) -> None:
        if self.signature_bits % 8:
            raise ArtefactError(f"signature_bits must be a multiple of 8, got {self.signature_bits}")
        if min(self.hidden, self.width, self.bridges, self.signature_bits) <= 0:
            raise ArtefactError(f"every width of a row must be positive: {self}")

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The structured dtype; fields ``h t w sig`` after the prefix, padded to 8 bytes."""
        body: list[Any] = [
            ("h", "<f2", (self.hidden,)),
            ("t", "<f2", (self.width,)),
            ("w", "<f2", (self.bridges,)),
            ("sig", "u1", (self.signature_bits // 8,)),
        ]
        body += [("key2", "<i4")] * self.second_key + [("code", "<u4")] * self.coded
        size = np.dtype([*_PREFIX, *body]).itemsize
        if size % 8:
            body.append(("_tail", f"V{8 - size % 8}"))
        return np.dtype([*_PREFIX, *body])

    @property
    def dtype_f32(self) -> np.dtype[np.void]:
        """The same fields with float32 numbers: never stored, it tells the rounding of rows from everything else."""
        served = self.dtype
        fields: list[Any] = [(name, served[name]) for name in served.names or ()]
        return np.dtype([(name, ("<f4", form.shape) if form.base == np.float16 else form) for name, form in fields])

    @property
    def record(self) -> np.dtype[np.void]:
        """One entry of the change log: ``key`` u64, then the row."""
        return np.dtype([("key", "<u8"), ("row", self.dtype)])


def empty_rows(layout: RowLayout, count: int) -> Rows:
    """Zeroed rows (count); a zero ``flags`` is an invalid row."""
    return np.zeros(count, dtype=layout.dtype)


def to_stored(row: np.void) -> bytes:
    """What Redis keeps of a row: all of it, or the prefix of a tombstone."""
    data = row.tobytes()
    return data[: PREFIX.itemsize] if int(row["flags"]) & TOMBSTONE else data


def from_stored(layout: RowLayout, data: bytes) -> np.void:
    """The reverse of ``to_stored``. Raises ``ArtefactError`` when the size fits neither form."""
    dtype = layout.dtype
    if len(data) == PREFIX.itemsize:
        data = data + bytes(dtype.itemsize - PREFIX.itemsize)
    if len(data) != dtype.itemsize:
        raise ArtefactError(f"a row has {len(data)} bytes, its version's layout says {dtype.itemsize}")
    row: np.void = np.frombuffer(data, dtype=dtype)[0]
    return row
