"""Parquet files as the chunks of columns that records.py makes of text: one reader of tables behind both.

A row group is in memory at a time (pyarrow's), of it a batch of rows as strings. pyarrow comes with ``[train]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aif_stream.errors import TrainingDataError

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_columns(
    path: Path, needed: Sequence[str], rows: int, joiner: str, on_rows: Callable[[float], None]
) -> Iterator[tuple[int, tuple[Sequence[str], ...], dict[str, str]]]:
    """Batches of at most ``rows`` rows: the number of the first (from 1), the ``needed`` columns as strings, and the
    units of those that are timestamps. Null is the empty string; lists of numbers are joined by spaces, of strings by
    ``joiner``.

    ``on_rows`` hears the share that is read. Raises ``TrainingDataError`` for a file that is none, a missing column,
    and a column of a type that has no text form.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TrainingDataError(
            f"{path}: Parquet needs pyarrow", mend="in a checkout: pip install '.[train]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in needed if name not in names]
            if missing:
                raise TrainingDataError(
                    f"{path}: no column {', '.join(missing)}", mend=f"the file has {', '.join(names)}"
                )
            units = {name: unit for name in needed if (unit := _unit(file.schema_arrow.field(name).type))}
            first, total = 1, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=rows, columns=list(needed)):
                yield first, tuple(_texts(path, name, batch.column(name), joiner) for name in needed), units
                first += len(batch)
                on_rows((first - 1) / total)
    except pa.ArrowInvalid as error:
        raise TrainingDataError(f"{path} is no Parquet file: {error}", mend="write it again") from None


def _unit(kind: pa.DataType) -> str:
    """The unit of a column of timestamps or dates, else nothing."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return str(kind.unit)
    return "s" if pa.types.is_date(kind) else ""


def _texts(path: Path, name: str, column: pa.Array, joiner: str) -> list[str]:
    import pyarrow as pa

    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if types.is_timestamp(kind):
        column = column.cast(pa.int64())
    elif types.is_date(kind):
        column = column.cast(pa.timestamp("s")).cast(pa.int64())
    elif types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        glue = joiner if types.is_string(kind.value_type) or types.is_large_string(kind.value_type) else " "
        return ["" if row is None else glue.join(map(_text, row)) for row in column.to_pylist()]
    elif not any(known(kind) for known in _plain_types()):
        raise TrainingDataError(f"{path}: {name} is of type {kind}", mend="write strings, numbers, times or lists")
    return [_text(value) for value in column.to_pylist()]


def _plain_types() -> tuple[Callable[[pa.DataType], bool], ...]:
    """What ``str`` writes as the CSV readers read it."""
    import pyarrow as pa

    types = pa.types
    return types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_decimal, types.is_null


def _text(value: Any) -> str:
    return "" if value is None else str(value)
