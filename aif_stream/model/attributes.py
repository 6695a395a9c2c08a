"""Attributes of users and items → arrays: tokens, sets of tokens, standardised numbers. numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute
from aif_stream.kernels.items import LABEL, NUMBER, SET, PlannedField
from aif_stream.model.config import Field

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CLIP: Final = 5.0  # standardised numbers beyond five deviations say no more than "extreme"


@dataclass(frozen=True, slots=True)
class Sets:
    """One ``labels`` field of N rows: ``flat`` tokens, row n has flat[offsets[n]:offsets[n + 1]]."""

    flat: I64
    offsets: I64

    def take(self, rows: I64) -> Sets:
        """The field of some rows, in their order."""
        starts = self.offsets[rows]
        counts = self.offsets[rows + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Sets(self.flat[np.repeat(starts, counts) + within], offsets)


@dataclass(frozen=True, slots=True)
class Attributes:
    """Encoded attributes: one token per ``label`` field (N, n), the sets, and standardised numbers (N, m)."""

    labels: I64
    sets: tuple[Sets, ...]
    numbers: F32

    def take(self, rows: I64) -> Attributes:
        return Attributes(self.labels[rows], tuple(s.take(rows) for s in self.sets), self.numbers[rows])


@dataclass(slots=True)
class Verdict:
    """Which of N rows a version can use, and why it cannot use the others (each counted once)."""

    usable: Bools
    problems: Counter[str]

    @classmethod
    def all_usable(cls, count: int) -> Verdict:
        return cls(np.ones(count, dtype=np.bool_), Counter())

    def refuse(self, at: int, reason: str) -> None:
        if self.usable[at]:
            self.usable[at] = False
            self.problems[reason] += 1


class AttributeEncoder:
    """Attribute mappings → ``Attributes``, by a fixed list of fields; stateless after construction.

    Token 0 of each field is its unknown value; ``tokens`` is the size of the shared table, whose first
    ``reserved`` rows belong to the caller.
    """

    def __init__(self, fields: Sequence[Field], reserved: int = 0) -> None:
        self.tokens = reserved
        self._labels: list[tuple[str, int, dict[str, int]]] = []
        self._sets: list[tuple[str, int, dict[str, int]]] = []
        self._numbers = [field for field in fields if field.kind == "number"]
        for field in fields:
            if field.kind == "number":
                continue
            known = {value: self.tokens + 1 + at for at, value in enumerate(field.vocabulary)}
            kept = self._labels if field.kind == "label" else self._sets
            kept.append((field.name, self.tokens, known))
            self.tokens += 1 + len(field.vocabulary)

    def label(self, name: str) -> tuple[int, int]:
        """Column of a label field (without the caller's own) and the token of its unknown value."""
        return next((at, unknown) for at, (field, unknown, _) in enumerate(self._labels) if field == name)

    @property
    def number_fields(self) -> int:
        return len(self._numbers)

    def planned(self) -> tuple[list[PlannedField], tuple[I64, NDArray[np.float64]]]:
        """The fields for ``kernels.items.EncodingPlan``, and what they are without a value: labels, numbers."""
        fields = [
            PlannedField(name, kind, column, known, unknown)
            for kind, kept in ((LABEL, self._labels), (SET, self._sets))
            for column, (name, unknown, known) in enumerate(kept)
        ]
        fields += [PlannedField(field.name, NUMBER, column, {}, 0) for column, field in enumerate(self._numbers)]
        labels = np.array([known.get("", unknown) for _, unknown, known in self._labels], dtype=np.int64)
        return fields, (labels, np.array([field.mean for field in self._numbers], dtype=np.float64))

    def from_columns(
        self, category: NDArray[np.int32], labels: I64, sets: Sequence[tuple[I64, I64]], numbers: F64
    ) -> Attributes:
        """What a plan's ``encode`` found, as ``encode`` gives it, with the category before the labels."""
        first = category.astype(np.int64)[:, None] + 1
        standard = np.empty(numbers.shape, dtype=np.float32)
        for at, field in enumerate(self._numbers):
            standard[:, at] = _standardised(numbers[:, at], field)
        return Attributes(
            np.concatenate([first, labels], axis=1),
            tuple(Sets(flat[: ends[-1]], ends) for flat, ends in sets),
            standard,
        )

    def encode(self, rows: Sequence[Mapping[str, Attribute]], verdict: Verdict, first: I64 | None = None) -> Attributes:
        """Encode N mappings; a value of the wrong type is refused in ``verdict`` and read as unknown.

        ``first`` is a column put before the labels (the category of items).
        """
        columns: list[I64] = [] if first is None else [first]
        for name, unknown, known in self._labels:
            columns.append(_label_column(rows, name, unknown, known, verdict))
        labels = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), dtype=np.int64)
        sets = tuple(_set_column(rows, name, unknown, known) for name, unknown, known in self._sets)
        numbers = np.zeros((len(rows), len(self._numbers)), dtype=np.float32)
        for at, field in enumerate(self._numbers):
            numbers[:, at] = _number_column(rows, field, verdict)
        return Attributes(labels, sets, numbers)


def _label_column(
    rows: Sequence[Mapping[str, Attribute]],
    name: str,
    unknown: int,
    known: dict[str, int],
    verdict: Verdict,
) -> I64:
    def odd(at: int, value: Attribute) -> int:
        if isinstance(value, list):
            verdict.refuse(at, f"attribute-type:{name}")
            return unknown
        return known.get(str(value), unknown)

    tokens = [
        known.get(value, unknown) if type(value := row.get(name, "")) is str else odd(at, value)
        for at, row in enumerate(rows)
    ]
    return np.array(tokens, dtype=np.int64)


def _set_column(rows: Sequence[Mapping[str, Attribute]], name: str, unknown: int, known: dict[str, int]) -> Sets:
    flat: list[int] = []
    ends: list[int] = [0]
    for row in rows:
        value = row.get(name)
        if isinstance(value, list):
            flat += [known.get(part, unknown) for part in value]
        elif value is not None:
            flat.append(known.get(value if isinstance(value, str) else str(value), unknown))
        ends.append(len(flat))
    return Sets(np.array(flat, dtype=np.int64), np.array(ends, dtype=np.int64))


def _number_column(rows: Sequence[Mapping[str, Attribute]], field: Field, verdict: Verdict) -> F32:
    values = [row.get(field.name, field.mean) for row in rows]
    try:
        column = np.array(values, dtype=np.float64)
        if column.shape != (len(rows),) or any(isinstance(value, str) for value in values):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        column = np.full(len(rows), field.mean)
        for at, value in enumerate(values):
            try:
                if isinstance(value, str | list):
                    raise TypeError
                column[at] = float(value)
            except (TypeError, OverflowError):
                verdict.refuse(at, f"attribute-type:{field.name}")
    for odd in np.flatnonzero(~np.isfinite(column)):
        column[odd] = field.mean
        verdict.refuse(int(odd), f"attribute-not-finite:{field.name}")
    return _standardised(column, field)


def _standardised(column: F64, field: Field) -> F32:
    standard: F32 = np.clip((column - field.mean) / field.scale, -_CLIP, _CLIP).astype(np.float32)
    return standard
