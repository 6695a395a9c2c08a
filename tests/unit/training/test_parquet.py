"""Parquet values are read by their Arrow type, or refused with file, row, column and a hint."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset
from aif_stream.training.sources import open_data

N = 300
ITEMS = 10
SECONDS = [1_600_000_000 + 1801 * n for n in range(N)]
LOG: dict[str, Any] = {
    "user": [f"u{n % 6}" for n in range(N)],
    "item": [f"{n % ITEMS}" for n in range(N)],
    "ts": SECONDS,
    "kind": [("exposure", "exposure", "click", "buy")[n % 4] for n in range(N)],
}
CATALOGUE: dict[str, Any] = {"id": [str(n) for n in range(ITEMS)], "cat": [f"c{n % 2}" for n in range(ITEMS)]}
MAPPING = """
[interactions]
files = ["log*"]
user = "user"
item = "item"
time = "ts"
time_unit = "s"
kind = "kind"
"""
CATALOGUE_TABLE = '[items]\nfiles = ["items.parquet"]\nid = "id"\ncategory = "cat"\n'


def read(
    directory: Path, log: dict[str, Any] | None = None, items: dict[str, Any] | None = None, roles: str = ""
) -> Dataset:
    """``log`` and ``items``: columns in place of, or beside the usual ones; ``roles``: more of [items]."""
    (directory / "mapping.toml").write_text(MAPPING + (CATALOGUE_TABLE + roles if roles else ""))
    pq.write_table(pa.table(LOG | (log or {})), directory / "log.parquet", row_group_size=64)
    if roles:
        pq.write_table(pa.table(CATALOGUE | (items or {})), directory / "items.parquet", row_group_size=4)
    return open_data(f"events:{directory}")


def ids(data: Dataset) -> set[str]:
    return {str(item.item_id) for item in data.items}


def whole(kind: pa.DataType) -> pa.Array:
    return pa.array([n % ITEMS for n in range(N)], pa.int64()).cast(kind)


@pytest.mark.parametrize(
    "column",
    [
        *(whole(kind) for kind in (pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64())),
        whole(pa.decimal128(22, 2)),
        whole(pa.decimal256(40, 0)),
        whole(pa.float64()).dictionary_encode(),
        *(pa.array(LOG["item"], kind) for kind in (pa.large_string(), pa.string_view())),
        pa.array(LOG["item"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_id_is_the_same_text_whatever_its_type(tmp_path: Path, column: pa.Array) -> None:
    data = read(tmp_path, {"item": column}, roles='labels = ["cat"]')
    assert [str(item.item_id) for item in data.items] == CATALOGUE["id"]
    assert len(data.behaviors.item) == N // 2


def at_7(value: object, kind: pa.DataType) -> pa.Array:
    return pa.array([value if n == 6 else 1 for n in range(N)], kind)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (at_7(7.5, pa.float64()), r":7: item is 7\.5, not a whole number"),
        (at_7(float("nan"), pa.float64()), r":7: item is nan, not a whole number"),
        (at_7(2.0**53, pa.float64()), r":7: item is 9007199254740992, not a whole number below 9,007,199,254,740,992"),
        (at_7(2.0**24, pa.float32()), r":7: item is 16777216, not a whole number below 16,777,216"),
        (at_7(decimal.Decimal("7.50"), pa.decimal128(20, 2)), r":7: item is 7\.50, not a whole number"),
        (at_7(None, pa.int64()), r":7: item is empty"),
        (at_7(None, pa.float64()), r":7: item is empty"),
        (pa.array([["a"]] * N), r": item is of type list<[a-z]+: string>"),
        (pa.array([{"id": 1}] * N), r": item is of type struct<id: int64>"),
        (pa.array([b"a"] * N), r": item is of type binary"),
        (pa.array([True] * N), r": item is of type bool"),
        (pa.array([datetime.date(2024, 1, 1)] * N), r": item is of type date32"),
        (pa.nulls(N), r":1: item is empty"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_id_that_is_none_is_refused_with_row_and_column(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(TrainingDataError, match=r"log\.parquet" + message) as error:
        read(tmp_path, {"item": column})
    assert error.value.mend


def of_all(value: object, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([value] * ITEMS, kind)


@pytest.mark.parametrize(
    ("column", "tags"),
    [
        (of_all([1, 2]), ["1", "2"]),
        (of_all([1.0, 2.0], pa.list_(pa.float32())), ["1", "2"]),
        (of_all([1, 2], pa.list_(pa.decimal128(9, 2))), ["1", "2"]),
        (of_all(["a|b", "c"]), ["a|b", "c"]),
        (of_all(["a|b", "c"], pa.large_list(pa.large_string())), ["a|b", "c"]),
        (of_all(["a|b", "c"], pa.list_(pa.string(), 2)), ["a|b", "c"]),
        (of_all(["a|b", "c"], pa.list_(pa.string_view())), ["a|b", "c"]),
        (of_all(["a|b", "c"], pa.list_(pa.dictionary(pa.int8(), pa.string()))), ["a|b", "c"]),
        (of_all([7, 8], pa.list_(pa.dictionary(pa.int8(), pa.int64()))), ["7", "8"]),
        (of_all(["a", None, "", "b"]), ["a", "b"]),
        (of_all([True, False]), ["1", "0"]),
        (of_all("a|b"), ["a", "b"]),
        (of_all(7), ["7"]),
        (of_all([]), []),
        (of_all(None, pa.list_(pa.string())), []),
        (pa.nulls(ITEMS), []),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_list_of_tags_keeps_each_tag(tmp_path: Path, column: pa.Array, tags: list[str]) -> None:
    data = read(tmp_path, items={"t": column}, roles='sets = ["t"]')
    assert [item.attributes["t"] for item in data.items] == [tags] * ITEMS


def item_6(value: object, kind: pa.DataType, other: object) -> pa.Array:
    return pa.array([[]] * 2 + [value if n == 5 else other for n in range(2, ITEMS)], kind)


VECTORS: list[Callable[[pa.DataType], pa.DataType]] = [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)]


@pytest.mark.parametrize("wrap", VECTORS, ids=["list", "large_list", "fixed_size_list"])
@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.decimal128(9, 1)], ids=str)
def test_vector_of_any_list_of_numbers_is_read(
    tmp_path: Path, wrap: Callable[[pa.DataType], pa.DataType], kind: pa.DataType
) -> None:
    values = [None, None, *([1.0, 0.0, float(n)] for n in range(2, ITEMS))]
    flat = pa.array([x for row in values for x in (row or [0.0] * 3)], pa.float64()).cast(kind)
    rows = pa.FixedSizeListArray.from_arrays(flat, 3).to_pylist()
    column = pa.array([None if row is None else rows[n] for n, row in enumerate(values)], wrap(kind))
    data = read(tmp_path, items={"v": column}, roles='content = "v"')
    assert [item.content_vector for item in data.items] == values


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (item_6([1.0, None, 3.0], pa.list_(pa.float32()), [1.0, 2.0, 3.0]), r":6: content: number 2 of v is null"),
        (item_6([1, 2, None], pa.large_list(pa.int64()), [1, 2, 3]), r":6: content: number 3 of v is null"),
        (item_6([1.0, float("inf")], pa.list_(pa.float32()), [1.0, 2.0]), r":6: content holds a number .*column v"),
        (item_6([1.0, 1e300], pa.list_(pa.float64()), [1.0, 2.0]), r":6: content holds a number .*column v"),
        (item_6([1.0], pa.list_(pa.float64()), [1.0, 2.0]), r":6: content of 1 numbers.*column v"),
        (item_6([[1.0]], pa.list_(pa.list_(pa.float32())), [[1.0]]), r": v is of type list<.*list<"),
        (of_all([b"\0\0"]), r": v is of type list<[a-z]+: binary>"),
        (of_all([{"x": 1.0}]), r": v is of type list<[a-z]+: struct"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_vector_that_is_none_is_refused_with_its_own_row(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(TrainingDataError, match=r"items\.parquet" + message) as error:
        read(tmp_path, items={"v": column}, roles='content = "v"')
    assert error.value.mend


def test_vector_over_columns_is_whole_or_absent(tmp_path: Path) -> None:
    x, y = ([None, *map(float, range(1, ITEMS))], pa.array([None, *range(1, ITEMS)], pa.int8()))
    data = read(tmp_path, items={"x": x, "y": y}, roles='content = ["x", "y"]')
    assert [item.content_vector for item in data.items] == [None, *([float(n), float(n)] for n in range(1, ITEMS))]
    y = pa.array([None, 1, 2, None, *range(4, ITEMS)])
    with pytest.raises(TrainingDataError, match=r"items\.parquet:4: content: y is null"):
        read(tmp_path, items={"x": x, "y": y}, roles='content = ["x", "y"]')


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array(SECONDS).cast(pa.timestamp("s")).cast(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array(SECONDS).cast(pa.timestamp("s", "Europe/Oslo")),
        pa.array(SECONDS, pa.uint64()),
        pa.array(SECONDS, pa.float64()),
        pa.array(SECONDS).cast(pa.decimal128(22, 3)),
        pa.array([str(n) for n in SECONDS]),
        pa.array(SECONDS).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_time_of_any_type_is_the_same_millisecond(tmp_path: Path, column: pa.Array) -> None:
    times = read(tmp_path, {"ts": column}).behaviors.time_ms
    assert sorted(times.tolist()) == [1000 * s for n, s in enumerate(SECONDS) if n % 4 > 1]


def test_nanoseconds_lose_no_millisecond(tmp_path: Path) -> None:
    exact_ms = [1_700_000_000_000 + 60_001 * n for n in range(N)]
    column = pa.array([ms * 1_000_000 + 999_999 for ms in exact_ms], pa.timestamp("ns"))
    times = read(tmp_path, {"ts": column}).behaviors.time_ms
    assert sorted(times.tolist()) == [ms for n, ms in enumerate(exact_ms) if n % 4 > 1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (at_7(None, pa.timestamp("ms")), r":7: ts is empty"),
        (at_7(None, pa.float64()), r":7: ts is null, not a number"),
        (at_7(-1, pa.timestamp("s")), r":7: ts 1969-12-31 23:59:59 is no time in ms"),
        (at_7(-1, pa.int64()), r":7: ts -1 is no time in s"),
        (pa.array([True] * N), r": ts is of type bool"),
        (pa.array([datetime.time(1)] * N), r": ts is of type time64"),
        (pa.array([1] * N, pa.duration("s")), r": ts is of type duration"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_time_that_is_none_is_refused_with_row_and_column(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(TrainingDataError, match=r"log\.parquet" + message) as error:
        read(tmp_path, {"ts": column})
    assert error.value.mend


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([True, False] * 5), [1.0, 0.0] * 5),
        (pa.array([decimal.Decimal("1.25")] * ITEMS), [1.25] * ITEMS),
        (pa.array([2**63 - 1] * ITEMS), [float(2**63)] * ITEMS),
        (pa.array(["1.5"] * ITEMS), [1.5] * ITEMS),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_number_is_read_by_its_type(tmp_path: Path, column: pa.Array, values: list[float]) -> None:
    data = read(tmp_path, items={"price": column}, roles='numbers = ["price"]')
    assert [item.attributes["price"] for item in data.items] == values


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([*[1.0] * 8, None, 1.0]), r":9: price is null, not a number"),
        (pa.array([*["1"] * 8, "dear", "1"]), r":9: price is 'dear', not a number"),
        (pa.array([datetime.datetime(2024, 1, 1)] * ITEMS), r": price is of type timestamp"),
        (of_all([1.0]), r": price is of type list"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_number_that_is_none_is_refused_with_row_and_column(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(TrainingDataError, match=r"items\.parquet" + message):
        read(tmp_path, items={"price": column}, roles='numbers = ["price"]')


def test_labels_kinds_and_categories_of_numbers_are_texts(tmp_path: Path) -> None:
    column = pa.array([None, *range(1, ITEMS)], pa.float64())
    data = read(tmp_path, items={"cat": column, "size": column, "new": of_all(True)}, roles='labels = ["size", "new"]')
    assert [item.category for item in data.items] == ["", *map(str, range(1, ITEMS))]
    assert data.items[0].attributes == {"new": "1"}
    assert data.items[9].attributes == {"size": "9", "new": "1"}


def test_column_named_twice_is_refused(tmp_path: Path) -> None:
    read(tmp_path)
    table = pa.table(LOG)
    pq.write_table(table.append_column("user", table["user"]), tmp_path / "log.parquet")
    with pytest.raises(TrainingDataError, match=r"log\.parquet: 2 columns are named user → "):
        open_data(f"events:{tmp_path}")


def test_damaged_page_is_refused_with_rows_and_column(tmp_path: Path) -> None:
    read(tmp_path)
    path = tmp_path / "log.parquet"
    place = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start + 8 : start + place.total_compressed_size] = b"\xff" * (place.total_compressed_size - 8)
    path.write_bytes(data)
    with pytest.raises(TrainingDataError, match=r"log\.parquet: item of rows 65 to 128 cannot be read: .+ → "):
        open_data(f"events:{tmp_path}")


@pytest.mark.parametrize("name", ["log.PARQUET", "log.pq", "log"])
def test_parquet_is_known_by_suffix_or_content(tmp_path: Path, name: str) -> None:
    read(tmp_path)
    (tmp_path / "log.parquet").rename(tmp_path / name)
    assert len(open_data(f"events:{tmp_path}").behaviors.item) == N // 2


def test_folder_as_spark_writes_it_is_one_table(tmp_path: Path) -> None:
    wanted = read(tmp_path)
    (tmp_path / "log.parquet").unlink()
    folder = tmp_path / "log.parquet"
    for number in range(2):
        part = folder / f"day={number}"
        part.mkdir(parents=True)
        half = {name: values[number::2] for name, values in LOG.items()}
        pq.write_table(pa.table(half), part / f"part-0000{number}.snappy.parquet")
        (part / f".part-0000{number}.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "part-9.parquet").write_bytes(b"half written")
    data = open_data(f"events:{tmp_path}")
    np.testing.assert_array_equal(np.sort(data.behaviors.time_ms), np.sort(wanted.behaviors.time_ms))
    (folder / "_delta_log").mkdir()
    with pytest.raises(TrainingDataError, match="is a Delta table"):
        open_data(f"events:{tmp_path}")


def test_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    wrong = pa.array([b"\xff\xfe" if n == 6 else b"a" for n in range(N)]).view(pa.string())
    with pytest.raises(TrainingDataError, match=r"log\.parquet:7: user is not UTF-8: invalid start byte → "):
        read(tmp_path, {"user": wrong})
