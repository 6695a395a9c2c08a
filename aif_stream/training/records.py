"""Tables on disk as a stream of chunks, each row with its file and line for what may be wrong in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from aif_stream.errors import TrainingDataError
from aif_stream.training.chunk import F64, Chunk, numbers_of
from aif_stream.training.parquet import is_parquet, parquet_chunks

CHUNK_ROWS: Final = 1 << 16  # 65,536 rows of five short columns: about 30 MB as Python strings

OnRead = Callable[[str, int, int], None]
"""Called with (file name, bytes read, bytes of the file) after each chunk."""


@dataclass(frozen=True, slots=True)
class TextChunk(Chunk):
    """Rows of a delimited file: each column a list of strings."""

    path: Path
    first_line: int
    names: tuple[str, ...]
    columns: tuple[Sequence[str], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def texts(self, name: str) -> Sequence[str]:
        return self.columns[self.names.index(name)]

    def numbers(self, name: str) -> F64:
        return self.finite(name, numbers_of(self.texts(name)))

    def ticks(self, name: str, unit: str) -> tuple[F64, str]:
        return self.numbers(name), unit

    def tags(self, name: str, separator: str) -> list[list[str]]:
        return [[part for part in text.split(separator) if part] for text in self.texts(name)]

    def vectors(self, content: str | Sequence[str]) -> list[list[float] | None]:
        if isinstance(content, str):
            return self.finite_vectors(content, self.vectors_of_text(content))
        rows = zip(*(self.texts(name) for name in content), strict=True)
        return self.finite_vectors(content, [self.parsed(at, parts, content) for at, parts in enumerate(rows)])

    def value(self, name: str, at: int) -> str:
        return self.texts(name)[at]

    def refuse(self, at: int, what: str, mend: str = "correct or remove it") -> NoReturn:
        """Raise for row ``at``. A quoted field may span lines: those before it are counted."""
        inside = sum(value.count("\n") for column in self.columns for value in column[:at])
        Chunk.refuse(self, at + inside, what, mend)


def read_chunks(
    path: Path,
    needed: Sequence[str],
    *,
    delimiter: str = ",",
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    on_read: OnRead | None = None,
) -> Iterator[Chunk]:
    """Stream a delimited file, or a Parquet file (by its suffix or its first and last bytes).

    ``header``: the columns of a file without one. ``::`` is a delimiter too.

    No more than a chunk is in memory. Raises ``TrainingDataError`` for a missing file or column, a line of another
    width, and bytes that are not of the encoding.
    """
    try:
        if is_parquet(path):
            size = path.stat().st_size
            for chunk, share in parquet_chunks(path, needed, CHUNK_ROWS):
                yield chunk
                if on_read is not None:
                    on_read(path.name, int(share * size), size)
            return
        with path.open("rb") as raw:
            size = path.stat().st_size
            text = io.TextIOWrapper(raw, encoding=encoding, newline="")
            yield from _chunks(path, text, needed, delimiter, header, lambda: _told(on_read, path, raw, size))
    except OSError as error:
        raise TrainingDataError(f"{path}: {error.strerror or error}", mend="give a file that can be read") from None
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path} is not {encoding}: {error.reason}", mend=f"convert it to {encoding}") from None


def _chunks(
    path: Path,
    text: io.TextIOWrapper,
    needed: Sequence[str],
    delimiter: str,
    header: Sequence[str] | None,
    on_chunk: Callable[[], None],
) -> Iterator[TextChunk]:
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
            chunk = TextChunk(path, first, tuple(names), tuple(zip(*good, strict=True)))
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
