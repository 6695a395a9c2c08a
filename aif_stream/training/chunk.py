"""Consecutive rows of one table on disk, read by what a column is: ids, labels, numbers, times, tags or vectors.

Each format has its own ``Chunk`` (text: records.py, Parquet: parquet.py). A caller never asks which one it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import TrainingDataError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_Numbers = TypeVar("_Numbers", bound=F64 | I64)

# Units of times per millisecond, or milliseconds per unit.
_PER_MS: Final = {"us": 1_000, "ns": 1_000_000}
_MS_PER: Final = {"s": 1_000, "ms": 1}
# Beyond: a time in another unit than the one named. The year 2100 in ms.
_LATEST_MS: Final = 4_102_444_800_000


class Chunk(ABC):
    """Rows of ``path`` from ``first_line`` on (of Parquet: from that row, counted from 1)."""

    path: Path
    first_line: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def texts(self, name: str) -> Sequence[str]:
        """A column of labels; the empty string where there is none."""

    @abstractmethod
    def numbers(self, name: str) -> F64:
        """A column of finite numbers; anything else is refused."""

    @abstractmethod
    def tags(self, name: str, separator: str) -> list[list[str]]:
        """A column of sets of labels; text is split at ``separator``, a list is taken as it is."""

    @abstractmethod
    def vectors(self, content: str | Sequence[str]) -> list[list[float] | None]:
        """Vectors of finite numbers: of one column, or with one number from each of several. None: no vector."""

    @abstractmethod
    def ticks(self, name: str, unit: str) -> tuple[F64 | I64, str]:
        """A column of times, and their unit: ``unit``, or the column's own where it has one."""

    @abstractmethod
    def value(self, name: str, at: int) -> object:
        """One value as it is in the file, for messages; None: null."""

    def refuse(self, at: int, what: str, mend: str = "correct or remove it") -> NoReturn:
        """Raise ``TrainingDataError`` for row ``at``."""
        raise TrainingDataError(f"{self.path}:{self.first_line + at}: {what}", mend=mend)

    def ids(self, name: str) -> Sequence[str]:
        """A column of labels of which none is empty."""
        return self.filled(name, self.texts(name))

    def filled(self, name: str, values: Sequence[str]) -> Sequence[str]:
        """The column's values, if none is empty; else the first that is empty is refused."""
        if "" in values:
            self.refuse(list(values).index(""), f"{name} is empty")
        return values

    def times_ms(self, name: str, unit: str) -> I64:
        """A column of times as ms; one before 1970 or after 2100 is refused."""
        ticks, unit = self.ticks(name, unit)
        times = ticks.astype(np.float64) * _MS_PER.get(unit, 1) / _PER_MS.get(unit, 1)
        odd = np.flatnonzero((times < 0) | (times > _LATEST_MS))
        if len(odd):
            at = int(odd[0])
            self.refuse(at, f"{name} {self.value(name, at)} is no time in {unit} between 1970 and 2100")
        if ticks.dtype == np.int64:  # a float holds no nanoseconds of today: the millisecond could be off by one
            return ticks.astype(np.int64) * _MS_PER.get(unit, 1) // _PER_MS.get(unit, 1)
        return times.astype(np.int64)

    def finite(self, name: str, values: _Numbers) -> _Numbers:
        """The column's values, if each is finite; else the first that is not is refused."""
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            at = int(odd[0])
            value = self.value(name, at)
            quoted = "null" if value is None else repr(value) if isinstance(value, str) else value
            self.refuse(at, f"{name} is {quoted}, not a number")
        return values

    def finite_vectors(
        self, content: str | Sequence[str], vectors: list[list[float] | None]
    ) -> list[list[float] | None]:
        """The vectors, if each number is finite in 32 bits; else the first row that has one is refused."""
        with np.errstate(over="ignore"):
            for at, vector in enumerate(vectors):
                if vector is not None and not np.isfinite(np.array(vector, dtype=np.float64).astype(np.float32)).all():
                    what = f"content holds a number that is not finite (column {columns_of(content)})"
                    self.refuse(at, what, "correct the vector, or leave it empty")
        return vectors

    def vectors_of_text(self, content: str) -> list[list[float] | None]:
        """Vectors written as numbers with spaces between."""
        return [self.parsed(at, text.split(), content) for at, text in enumerate(self.texts(content))]

    def parsed(self, at: int, parts: Sequence[str], content: str | Sequence[str]) -> list[float] | None:
        """A vector of texts; None where all of them are empty."""
        try:
            return [float(part) for part in parts] if any(parts) else None
        except ValueError as error:
            self.refuse(at, f"content: {error} (column {columns_of(content)})")


def columns_of(content: str | Sequence[str]) -> str:
    """The columns of a vector, for messages."""
    return content if isinstance(content, str) else ", ".join(content)


def numbers_of(texts: Sequence[str]) -> F64:
    """Texts as numbers; NaN where one is none."""
    try:
        values: F64 = np.array(texts, dtype=np.str_).astype(np.float64)
    except ValueError:
        values = np.array([_float(text) for text in texts], dtype=np.float64)
    return values


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
