"""Parquet files as chunks whose values are read by their Arrow type (arrow_values.py); none passes through text.

A row group is in memory at a time (pyarrow's). Lists of any kind are tags or vectors: a null list is an empty one, a
null tag is left out, a null number of a vector is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import TrainingDataError
from aif_stream.training import arrow_values
from aif_stream.training.arrow_values import BadValueError, Lists, is_list, is_string, lists, plain
from aif_stream.training.chunk import F64, I64, Chunk

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC: Final = b"PAR1"
_SUFFIXES: Final = (".parquet", ".parq", ".pq")
_AGAIN: Final = "write the file again, or leave it out"
_AS_OTHER: Final = "write it as strings, numbers, times or lists of them"
_T = TypeVar("_T")


def is_parquet(path: Path) -> bool:
    """By the suffix in any case, or by the bytes at both ends. Raises ``OSError`` where there is no such file."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        file.seek(-len(_MAGIC), 2)
        return file.read() == _MAGIC


def parquet_chunks(path: Path, needed: Sequence[str], rows: int) -> Iterator[tuple[ArrowChunk, float]]:
    """Chunks of at most ``rows`` rows with the ``needed`` columns, and the share of the file that is read then.

    Raises ``TrainingDataError`` for a file that is none, damaged pages, and a column that is missing or duplicated;
    ``OSError`` for a file that cannot be opened.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TrainingDataError(
            f"{path}: Parquet needs pyarrow", mend="in a checkout: pip install '.[train]'"
        ) from None
    path.open("rb").close()
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(path, file.schema_arrow.names, needed)
            read, total = 0, max(file.metadata.num_rows, 1)
            for batch in _batches(path, file, list(dict.fromkeys(needed)), rows):
                chunk = ArrowChunk(path, read + 1, batch)
                read += len(batch)
                yield chunk, read / total
    except pa.ArrowInvalid as error:
        raise TrainingDataError(f"{path} is no Parquet file: {_line(error)}", mend=_AGAIN) from None
    except (pa.ArrowException, OSError) as error:
        raise TrainingDataError(f"{path} cannot be read: {_line(error)}", mend=_AGAIN) from None


def _batches(path: Path, file: pq.ParquetFile, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches that are not empty. Raises ``TrainingDataError`` naming rows and column of what cannot be read."""
    import pyarrow as pa

    first = 1
    # One row group at a time: over several of them Arrow does not read lists of dictionary values.
    for group in range(file.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows - 1
        try:
            yield from filter(len, file.iter_batches(batch_size=rows, row_groups=[group], columns=columns))
        except (pa.ArrowException, OSError):
            for name in columns:
                try:
                    file.read_row_group(group, columns=[name])
                except (pa.ArrowException, OSError) as error:
                    what = f"{path}: {name} of rows {first} to {last} cannot be read: {_line(error)}"
                    raise TrainingDataError(what, mend=_AGAIN) from None
            raise
        first = last + 1


def _line(error: Exception) -> str:
    """Arrow's message on one line."""
    return " ".join(str(error).split())


def _check_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise TrainingDataError(f"{path}: no column {', '.join(missing)}", mend=f"the file has {', '.join(names)}")
    for name in needed:
        if names.count(name) > 1:
            raise TrainingDataError(f"{path}: {names.count(name)} columns are named {name}", mend="rename all but one")


@dataclass(frozen=True, slots=True)
class ArrowChunk(Chunk):
    """Rows of a Parquet file, counted from 1."""

    path: Path
    first_line: int
    batch: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.batch)

    def texts(self, name: str) -> list[str]:
        return self._read(name, arrow_values.labels, self._column(name))

    def ids(self, name: str) -> Sequence[str]:
        return self.filled(name, self._read(name, arrow_values.ids, self._column(name)))

    def numbers(self, name: str) -> F64:
        return self.finite(name, self._read(name, arrow_values.numbers, self._column(name)))

    def ticks(self, name: str, unit: str) -> tuple[F64 | I64, str]:
        values, own = self._read(name, arrow_values.ticks, self._column(name))
        return self.finite(name, values), own or unit

    def tags(self, name: str, separator: str) -> list[list[str]]:
        column = self._column(name)
        if is_list(column.type):
            held = lists(column)
            values = self._read(name, arrow_values.labels, held.flat, held)
            return [[tag for tag in values[a:b] if tag] for a, b in zip(held.starts, held.ends, strict=True)]
        texts = self._read(name, arrow_values.labels, column)
        if is_string(column.type):
            return [[part for part in text.split(separator) if part] for text in texts]
        return [[text] if text else [] for text in texts]

    def vectors(self, content: str | Sequence[str]) -> list[list[float] | None]:
        if not isinstance(content, str):
            return self.finite_vectors(content, self._spread(content))
        column = self._column(content)
        if is_string(column.type):
            return self.finite_vectors(content, self.vectors_of_text(content))
        if not is_list(column.type):
            return self.finite_vectors(content, self._spread([content]))
        held = lists(column)
        values = self._read(content, arrow_values.numbers, held.flat, held).tolist()
        if held.flat.null_count:
            at = arrow_values.null_at(held.flat)
            row = held.row(at)
            what = f"content: number {at - held.starts[row] + 1} of {content} is null"
            self.refuse(row, what, "write a number, or leave the whole list null")
        found = [values[a:b] or None for a, b in zip(held.starts, held.ends, strict=True)]
        return self.finite_vectors(content, found)

    def value(self, name: str, at: int) -> object:
        found: object = self.batch.column(name)[at].as_py()
        return found

    def _column(self, name: str) -> pa.Array:
        return plain(self.batch.column(name))

    def _read(self, name: str, convert: Callable[[pa.Array], _T], values: pa.Array, held: Lists | None = None) -> _T:
        """Convert; a value that cannot be is refused with its row: of ``held``, where the values are those of lists."""
        import pyarrow as pa

        try:
            return convert(values)
        except pa.ArrowException as error:
            kind = self.batch.column(name).type
            raise TrainingDataError(f"{self.path}: {name} is of type {kind}: {error}", mend=_AS_OTHER) from None
        except BadValueError as bad:
            if bad.at < 0:
                whole = f"{name} is of type {self.batch.column(name).type}"
                raise TrainingDataError(f"{self.path}: {whole}", mend=bad.hint) from None
            self.refuse(bad.at if held is None else held.row(bad.at), f"{name} {bad}", bad.hint)

    def _spread(self, names: Sequence[str]) -> list[list[float] | None]:
        """One number of each column; None where all of them are null."""
        columns = [self._column(name) for name in names]
        table = np.stack([self._read(n, arrow_values.numbers, c) for n, c in zip(names, columns, strict=True)], axis=1)
        null = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in columns], axis=1)
        empty: NDArray[np.bool_] = np.all(null, axis=1)
        part = np.flatnonzero(null.any(axis=1) & ~empty)
        if len(part):
            at = int(part[0])
            name = names[int(np.flatnonzero(null[at])[0])]
            self.refuse(at, f"content: {name} is null", "write a number, or leave all of them null")
        return [None if none else row for row, none in zip(table.tolist(), empty.tolist(), strict=True)]
