"""Item updates without a Python object per field: records → columns → what a version's towers read.

The C half reads only what it is sure of: an event of ``aif.item.upserted`` in the plain form (header names in small
letters, a time as ``clock.to_rfc3339`` writes it, an id that spells its key, JSON without escapes in what is used).
Whatever it refuses takes the careful way, ``bus.events.item_from_record`` and ``model.features.ItemEncoder``, which are
its twins: equal results, tested by hypothesis. Without the C library everything takes that way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, Objects, address, choose

LABEL, SET, NUMBER = 0, 1, 2
MAX_FIELDS: Final = 64  # of a version: one bit each while an item is read
_ENTRIES, _NUMBERS = 32, 320  # room per record, on average; a record that finds none left takes the careful way

COLUMN: Final = np.dtype(
    [
        *[(name, "<u8") for name in ("key", "offset", "event_time_ms")],
        *[(name, "<i8") for name in ("appended_ms", "entries_from", "entries_count", "content_from", "content_count")],
        *[(name, "<u4") for name in ("category_at", "category_size")],
    ]
)
_ENTRY: Final = np.dtype(
    [*[(name, "<u4") for name in ("name_at", "name_size", "at", "size")], ("number", "<f8"), ("kind", "<i8")]
)


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """Of n records: ``columns`` (n) of dtype COLUMN where ``read`` (n) is True; ``values`` (n) are the records' bytes.

    ``event_time_ms`` and ``offset`` are the event's order, ``appended_ms`` the record's time.
    """

    columns: NDArray[np.void]
    read: NDArray[np.bool_]
    values: list[Any]
    entries: NDArray[np.void]
    numbers: NDArray[np.float32]


def read_items(
    records: Sequence[Any], worker: bytes, max_ahead_ms: int, limit_bytes: int, *, level: Level | None = None
) -> ItemColumns | None:
    """Records of ``aif.item-updates`` → columns; None where there is no C library.

    A record is read when it is a tuple (topic, partition, offset, timestamp, timestamp type, key, value, headers) and
    an upsert that ``item_from_record`` would take: ``max_ahead_ms`` as there, key and value of at most ``limit_bytes``,
    not of the source ``worker``.
    """
    native, _ = choose(level)
    if native is None or native.objects is None:
        return None
    count = len(records)
    columns, read = np.empty(count, COLUMN), np.zeros(count, np.bool_)
    entries, numbers = np.empty(count * _ENTRIES, _ENTRY), np.empty(count * _NUMBERS, np.float32)
    used = np.zeros(2, np.int64)
    native.objects.items_read(
        *(list(records), worker, max_ahead_ms, limit_bytes, address(columns), address(read)),
        *(address(entries), len(entries), address(numbers), len(numbers), address(used)),
    )
    values = [record[6] if seen else None for record, seen in zip(records, read.tolist(), strict=True)]
    return ItemColumns(columns, read, values, entries[: used[0]], numbers[: used[1]])


class _CVocabulary(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("texts", "ends", "tokens", "slots")] + [
        (name, ctypes.c_int64) for name in ("words", "mask")
    ]


class _CPlan(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("names", "categories", "words", "kinds", "columns", "unknown")] + [
        (name, ctypes.c_int64) for name in ("fields", "labels", "numbers", "width")
    ]


class _CEncoded(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("category", "labels", "sets", "set_ends", "numbers", "content", "has_content")
    ]


class _Vocabulary:
    """Words → tokens by open addressing, half full at most."""

    def __init__(self, build: Any, tokens: dict[str, int]) -> None:
        words = [word.encode("utf-8", "surrogatepass") for word in tokens]
        self._texts = np.frombuffer(b"".join(words) or b"\0", np.uint8)
        self._ends = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)
        self._tokens = np.array(list(tokens.values()) or [0], np.int64)
        room = 1 << max(3, (2 * len(words)).bit_length())
        self._slots = np.full(room, -1, np.int32)
        arrays = (self._texts, self._ends, self._tokens, self._slots)
        self.c = _CVocabulary(*(address(array) for array in arrays), len(words), room - 1)
        build(ctypes.addressof(self.c))

    @property
    def place(self) -> int:
        return ctypes.addressof(self.c)


@dataclass(frozen=True, slots=True)
class PlannedField:
    """One attribute of a version: ``column`` among those of its ``kind`` (LABEL, SET, NUMBER); ``tokens`` of its words,
    ``unknown`` for the others."""

    name: str
    kind: int
    column: int
    tokens: dict[str, int]
    unknown: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """What ``ItemEncoder`` makes of N items; ``done`` (N) False: this row is to be encoded the careful way."""

    done: NDArray[np.bool_]
    category: NDArray[np.int32]
    labels: NDArray[np.int64]
    sets: list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # flat tokens and ends (N + 1)
    numbers: NDArray[np.float64]
    content: NDArray[np.float32]
    has_content: NDArray[np.bool_]


class EncodingPlan:
    """One version's fields for the C encoder. Immutable after construction, safe from several threads."""

    def __init__(
        self,
        native: Objects,
        fields: Sequence[PlannedField],
        categories: Sequence[str],
        missing: Sequence[NDArray[Any]],
        width: int,
    ) -> None:
        """``missing``: what a label (labels) and a number (numbers) is without a value, i64 and f64."""
        self._encode = native.items_encode
        self._missing_labels, self._missing_numbers = missing
        self._width = width
        self._sets = sum(field.kind == SET for field in fields)
        build = native.vocabulary_build
        self._names = _Vocabulary(build, {field.name: at for at, field in enumerate(fields)})
        self._categories = _Vocabulary(build, {name: at for at, name in enumerate(categories)})
        self._words = [_Vocabulary(build, field.tokens) for field in fields]
        self._arrays = [
            np.array([words.place for words in self._words], np.uint64),
            *(np.array([getattr(f, name) for f in fields], np.int64) for name in ("kind", "column", "unknown")),
        ]
        self._c = _CPlan(
            *(self._names.place, self._categories.place, *map(address, self._arrays)),
            *(len(fields), len(self._missing_labels), len(self._missing_numbers), width),
        )

    @classmethod
    def of(
        cls,
        fields: Sequence[PlannedField],
        categories: Sequence[str],
        missing: Sequence[NDArray[Any]],
        width: int,
        *,
        level: Level | None = None,
    ) -> Self | None:
        """None where there is no C library, or the version has more than 64 fields or a field twice."""
        native, _ = choose(level)
        names = {field.name for field in fields}
        if native is None or native.objects is None or len(fields) > MAX_FIELDS or len(names) < len(fields):
            return None
        return cls(native.objects, fields, categories, missing, width)

    def encode(self, items: ItemColumns, chosen: NDArray[np.int64]) -> Encoded:
        """Items at the places ``chosen`` (N) of ``items``, all of them read."""
        count = len(chosen)
        room = int(items.columns["entries_count"][chosen].sum()) or 1
        flat = [np.empty(room, np.int64) for _ in range(self._sets)]
        ends = [np.zeros(count + 1, np.int64) for _ in range(self._sets)]
        flat_at, ends_at = (np.array([address(a) for a in arrays] or [0], np.uint64) for arrays in (flat, ends))
        made = Encoded(
            np.zeros(count, np.bool_),
            np.full(count, -1, np.int32),
            np.tile(self._missing_labels, (count, 1)),
            list(zip(flat, ends, strict=True)),
            np.tile(self._missing_numbers, (count, 1)),
            np.zeros((count, self._width), np.float32),
            np.zeros(count, np.bool_),
        )
        out = _CEncoded(
            *(address(made.category), address(made.labels), address(flat_at), address(ends_at)),
            *(address(made.numbers), address(made.content), address(made.has_content)),
        )
        chosen = np.ascontiguousarray(chosen, np.int64)
        self._encode(
            *(ctypes.addressof(self._c), items.values, address(chosen), count, address(items.columns)),
            *(address(items.entries), address(items.numbers), ctypes.addressof(out), self._sets, address(made.done)),
        )
        return made
