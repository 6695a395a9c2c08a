"""Tables on disk as a stream of chunks of columns, each row with its file and line for what may be wrong in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import TrainingDataError
from aif_stream.training.parquet import parquet_columns

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CHUNK_ROWS: Final = 1 << 16  # 65,536 rows of five short columns: about 30 MB as Python strings
_TIME_UNITS_MS: Final = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
# Beyond: a time in another unit than the one named. The year 2100 in ms.
_LATEST_MS: Final = 4_102_444_800_000

OnRead = Callable[[str, int, int], None]
"""Called with (file name, bytes read, bytes of the file) after each chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows in a row: each column a list of strings. Of a Parquet file lines are rows, from 1.

    ``units``: of columns that say themselves in which unit their times are.
    """

    path: Path
    first_line: int
    names: tuple[str, ...]
    columns: tuple[Sequence[str], ...]
    units: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns[0])

    def column(self, name: str) -> Sequence[str]:
        return self.columns[self.names.index(name)]

    def refuse(self, at: int, what: str, mend: str = "mend or remove the line") -> NoReturn:
        """Raise for row ``at``. A quoted field may span lines: those before it are counted."""
        inside = 0
        if self.path.suffix != ".parquet":
            inside = sum(value.count("\n") for column in self.columns for value in column[:at])
        raise TrainingDataError(f"{self.path}:{self.first_line + at + inside}: {what}", mend=mend)

    def numbers(self, name: str) -> F64:
        """A column as finite numbers."""
        texts = self.column(name)
        try:
            values = np.array(texts, dtype=np.str_).astype(np.float64)
        except ValueError:
            values = np.array([_float(text) for text in texts])
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            at = int(odd[0])
            self.refuse(at, f"{name} is {texts[at]!r}, not a number")
        return values

    def times_ms(self, name: str, unit: str) -> I64:
        """A column of times as ms; one before 1970 or after 2100 is refused. Its own unit counts, where it has one."""
        unit = self.units.get(name, unit)
        times = self.numbers(name) * _TIME_UNITS_MS[unit]
        odd = np.flatnonzero((times < 0) | (times > _LATEST_MS))
        if len(odd):
            at = int(odd[0])
            self.refuse(at, f"{name} {self.column(name)[at]} is no time in {unit} between 1970 and 2100")
        return times.astype(np.int64)

    def filled(self, name: str) -> Sequence[str]:
        """A column of which no value is empty."""
        values = self.column(name)
        if "" in values:
            self.refuse(list(values).index(""), f"{name} is empty")
        return values


def read_chunks(
    path: Path,
    needed: Sequence[str],
    *,
    delimiter: str = ",",
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    joiner: str = "|",
    on_read: OnRead | None = None,
) -> Iterator[Chunk]:
    """Stream a delimited file, or one that ends in .parquet (lists of strings are joined by ``joiner``).

    ``header``: the columns of a file without one. ``::`` is a delimiter too.

    No more than a chunk is in memory. Raises ``TrainingDataError`` for a missing file or column, a line of another
    width, and bytes that are not of the encoding.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path, needed, joiner, on_read)
            return
        with path.open("rb") as raw:
            size = path.stat().st_size
            text = io.TextIOWrapper(raw, encoding=encoding, newline="")
            yield from _chunks(path, text, needed, delimiter, header, lambda: _told(on_read, path, raw, size))
    except OSError as error:
        raise TrainingDataError(f"{path}: {error.strerror}", mend="give a file that is there") from None
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path} is not {encoding}: {error.reason}", mend=f"convert it to {encoding}") from None


def _parquet(path: Path, needed: Sequence[str], joiner: str, on_read: OnRead | None) -> Iterator[Chunk]:
    size = path.stat().st_size

    def told(share: float) -> None:
        if on_read is not None:
            on_read(path.name, int(share * size), size)

    for first, columns, units in parquet_columns(path, needed, CHUNK_ROWS, joiner, told):
        if columns and columns[0]:
            yield Chunk(path, first, tuple(needed), columns, units)


def _chunks(
    path: Path,
    text: io.TextIOWrapper,
    needed: Sequence[str],
    delimiter: str,
    header: Sequence[str] | None,
    on_chunk: Callable[[], None],
) -> Iterator[Chunk]:
    reader: Any
    if len(delimiter) == 1:
        reader = csv.reader(text, delimiter=delimiter)
    else:
        reader = (line.rstrip("\r\n").split(delimiter) for line in text)
    first, names = 1, header
    if names is None:
        names, first = [name.strip().removeprefix("\ufeff") for name in next(reader, [])], 2
    missing = [name for name in needed if name not in names]
    if missing:
        raise TrainingDataError(
            f"{path}:1: no column {', '.join(missing)}", mend=f"the file has {', '.join(names) or 'no header'}"
        )
    while rows := _rows(path, reader, first):
        on_chunk()
        widths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        odd = np.flatnonzero(widths != len(names))
        good = rows[: odd[0]] if len(odd) else rows
        if good:
            chunk = Chunk(path, first, tuple(names), tuple(zip(*good, strict=True)))
            first += len(good) + sum(value.count("\n") for row in good for value in row if "\n" in value)
            yield chunk
        if len(odd):
            what = f"{path}:{first}: {widths[odd[0]]} columns, the file has {len(names)}"
            raise TrainingDataError(what, mend="mend or remove the line")


def _rows(path: Path, reader: Any, first: int) -> list[list[str]]:
    try:
        return list(islice(reader, CHUNK_ROWS))
    except csv.Error as error:
        raise TrainingDataError(f"{path}: after line {first}: {error}", mend="mend or remove the line") from None


def _told(on_read: OnRead | None, path: Path, raw: io.BufferedReader, size: int) -> None:
    if on_read is not None:
        on_read(path.name, min(raw.tell(), size), size)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
