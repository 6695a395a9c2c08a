"""Loaders on small files of each form; bad data is named with file, line and mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aif_stream.errors import TrainingDataError
from aif_stream.training.sources import open_data

TAOBAO = [
    f"{n % 5},{n % 37},{n % 37 % 3},{('pv', 'fav', 'cart', 'buy')[n % 4]},{1_511_600_000 + 1801 * n}"
    for n in range(200)
]


def taobao(directory: Path, lines: list[str]) -> str:
    (directory / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
    return f"taobao:{directory / 'UserBehavior.csv'}"


def test_taobao_rows_are_behaviors_with_a_category(tmp_path: Path) -> None:
    read = []
    data = open_data(taobao(tmp_path, TAOBAO), lambda *told: read.append(told))
    assert len(data.behaviors.item) == 200
    assert set(data.behaviors.kind.tolist()) == {1, 2, 3, 4}
    assert {str(item.category) for item in data.items} == {"0", "1", "2"}
    assert data.profiles == [None] * 5
    assert read[-1][1] == read[-1][2] == (tmp_path / "UserBehavior.csv").stat().st_size
    assert not data.notes


def test_taobao_rows_before_1970_are_left_out_and_counted(tmp_path: Path) -> None:
    data = open_data(taobao(tmp_path, [*TAOBAO, "1,1,1,pv,-5"]))
    assert len(data.behaviors.item) == 200
    assert data.notes == ("1 rows with times before 1970 left out",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*TAOBAO, "1,2,3,pv"], r"UserBehavior\.csv:201: 4 columns, the file has 5"),
        ([*TAOBAO, "1,2,3,look,5"], r"UserBehavior\.csv:201: behavior 'look' is none of pv, fav, cart, buy"),
        (["1,2,3,pv,noon", *TAOBAO], r"UserBehavior\.csv:1: timestamp is 'noon', not a number"),
        ([*TAOBAO, "1,2,3,pv,nan"], r"UserBehavior\.csv:201: timestamp is 'nan'"),
        ([*TAOBAO, ",2,3,pv,5"], r"UserBehavior\.csv:201: user is empty"),
        (["1,2,3,pv,5"] * 20, "impressions in the"),
    ],
)
def test_bad_taobao_rows_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message) as error:
        open_data(taobao(tmp_path, lines))
    assert error.value.mend


RATED = [(1 + n % 4, 1 + n % 3, 1 + (n * 7) % 5, 1_000_000 + n * 4000) for n in range(200)]


def one_million(directory: Path, films: list[str] | None = None) -> str:
    films = films or [
        "1::Toy Story (1995)::Animation|Comedy",
        "2::Jumanji (1995)::Fantasy",
        "3::Café::(no genres listed)",
    ]
    (directory / "movies.dat").write_bytes("\n".join(films).encode("latin-1"))
    (directory / "users.dat").write_text("\n".join(f"{u}::F::25::10::02139" for u in range(1, 4)))
    (directory / "ratings.dat").write_text("\n".join("::".join(map(str, row)) for row in RATED))
    return f"movielens:{directory}"


def twenty_million(directory: Path) -> str:
    (directory / "movies.csv").write_text(
        'movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n2,"American President, The (1995)",Drama\n'
        "3,Café,(no genres listed)\n"
    )
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r - 0.5},{t}" for u, i, r, t in RATED)]
    (directory / "ratings.csv").write_text("\n".join(lines))
    return f"movielens:{directory}"


@pytest.mark.parametrize(("write", "clicked", "aged"), [(one_million, 0.4, 3), (twenty_million, 0.2, 0)])
def test_both_rating_forms_are_recognised(
    tmp_path: Path, write: Callable[[Path], str], clicked: float, aged: int
) -> None:
    data = open_data(write(tmp_path))
    assert len(data.requests.item) == 200
    assert data.requests.clicked.mean() == pytest.approx(clicked, abs=0.01)
    assert [str(item.category) for item in data.items] == ["Animation", data.items[1].category, "unknown"]
    assert data.items[0].attributes["release_year"] == 1995
    assert "Café" in str(data.items[2].attributes["movie_title"])
    assert "release_year" not in data.items[2].attributes
    assert sum(profile is not None for profile in data.profiles) == aged  # a user without a line has no profile


def test_a_rating_of_an_unknown_film_and_a_film_twice_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"ratings\.dat:2: film '2' is not in movies\.dat → add it there"):
        open_data(one_million(tmp_path, ["1::A (1999)::Drama"]))
    with pytest.raises(TrainingDataError, match=r"movies\.dat:2: film '1' stands here a second time"):
        open_data(one_million(tmp_path, ["1::A (1999)::Drama", "1::B (1999)::Drama"]))


MAPPING = """
[interactions]
files = ["log-*.csv"]
user = "uid"
item = "iid"
time = "ts"
time_unit = "s"
kind = "act"
kinds = { imp = "exposure", pv = "click", order = "buy" }
[items]
files = ["items.csv"]
id = "iid"
category = "cat"
labels = ["brand"]
sets = ["tags"]
numbers = ["price"]
content = "vector"
[users]
files = ["users.csv"]
id = "uid"
labels = ["city"]
"""
ITEMS = [
    "iid,cat,brand,tags,price,vector",
    *(f"i{n},c{n % 2},b{n % 3},x|y,{n}.5,1 0 {n}" for n in range(9)),
    "i9,c1,,,1,",
]
LOG = [f"u{n % 6},i{n % 10},{('imp', 'imp', 'pv', 'order')[n % 4]},{1_600_000_000 + 1801 * n}" for n in range(300)]


def events(
    directory: Path,
    mapping: str = MAPPING,
    items: list[str] = ITEMS,
    log: list[str] = LOG,
    header: str = "uid,iid,act,ts",
) -> str:
    (directory / "mapping.toml").write_text(mapping)
    (directory / "items.csv").write_text("\n".join(items))
    (directory / "users.csv").write_text("uid,city\nu0,oslo\nu1,\n")
    half = len(log) // 2
    for name, part in (
        ("log-a.csv", log[half:]),
        ("log-b.csv", log[:half]),
    ):  # the newer file first: order is no matter
        (directory / name).write_text("\n".join([header, *part]))
    return f"events:{directory}"


def test_a_mapping_reads_anybodys_tables(tmp_path: Path) -> None:
    data = open_data(events(tmp_path))
    assert data.items[2].attributes == {"brand": "b2", "tags": ["x", "y"], "price": 2.5}
    assert data.items[2].content_vector == [1.0, 0.0, 2.0]
    assert data.items[9].content_vector is None
    assert data.items[9].attributes == {"tags": [], "price": 1.0}
    assert sorted(map(str, data.profiles)) == sorted(["{'city': 'oslo'}", "{}", *["None"] * 4])
    assert len(data.behaviors.item) == 150
    assert (np.diff(data.behaviors.time_ms[: data.behaviors.start[1]]) >= 0).all()


def test_a_label_column_is_a_click_from_its_bound_on(tmp_path: Path) -> None:
    mapping = MAPPING.replace('kind = "act"\n', 'label = "act"\nclick_from = 4.0\n').replace(
        'kinds = { imp = "exposure", pv = "click", order = "buy" }\n', ""
    )
    log = [f"u{n % 6},i{n % 10},{n // 6 % 5 + 1},{1_600_000_000 + 4000 * n}" for n in range(300)]
    data = open_data(events(tmp_path, mapping=mapping, log=log))
    assert len(data.requests.item) == 300
    assert data.requests.clicked.mean() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"header": "uid,iid,what,ts"}, r"log-a\.csv:1: no column act → the file has uid, iid, what, ts"),
        ({"log": [*LOG, "u1,i77,pv,1600000000"]}, r"log-a\.csv:\d+: item 'i77' is not in the item files"),
        ({"log": [*LOG, "u1,i1,wink,1600000000"]}, r"log-a\.csv:\d+: act 'wink' is none of imp, pv, order"),
        ({"log": [*LOG, "u1,i1,pv,1600000000000"]}, r"log-a\.csv:\d+: ts 1600000000000 is no time in s"),
        ({"items": [*ITEMS, "i10,c,b,x,1,1 nan 0"]}, r"items\.csv:12: content holds a number that is not finite"),
        ({"items": [*ITEMS, "i10,c,b,x,1,1 0"]}, r"items\.csv:12: content of 2 numbers, the ones before have 3"),
        ({"items": [*ITEMS, "i10,c,b,x,1,1 zero 0"]}, r"items\.csv:12: content: could not convert"),
        ({"items": [*ITEMS, "i10,c,b,x,dear,"]}, r"items\.csv:12: price is 'dear', not a number"),
        ({"items": [*ITEMS, "i1,c,b,x,1,"]}, r"items\.csv:12: item 'i1' stands here a second time"),
        ({"mapping": "[interactions]\nfiles=[]"}, r"mapping\.toml: Object missing required field"),
        (
            {"mapping": MAPPING.replace('kind = "act"', "")},
            r"mapping\.toml: \[interactions\] needs either kind or label",
        ),
        ({"mapping": MAPPING.replace("log-*", "lag-*")}, r"lag-\*\.csv: no such file"),
        ({"log": [line.replace(",pv,", ",imp,").replace(",order,", ",imp,") for line in LOG]}, "0 are clicks"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message) as error:
        open_data(events(tmp_path, **changed))  # type: ignore[arg-type]
    assert error.value.mend


PARQUET = MAPPING.replace("log-*.csv", "log.parquet").replace("items.csv", "items.parquet")


def as_parquet(directory: Path, *, vectors: list[object] | None = None, times: str = "timestamp[us]") -> str:
    """The tables of ``events`` once more, as typed columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    events(directory, mapping=PARQUET)
    rows = [line.split(",") for line in LOG]
    users, items, acts, seconds = (list(column) for column in zip(*rows, strict=True))
    log = {
        "uid": users,
        "iid": items,
        "act": pa.array(acts).dictionary_encode(),
        "ts": pa.array([int(s) for s in seconds]).cast(pa.timestamp("s")).cast(times),
        "not asked for": pa.array([b"x"] * len(rows)),
    }
    pq.write_table(pa.table(log), directory / "log.parquet", row_group_size=64)
    table = {
        "iid": [f"i{n}" for n in range(10)],
        "cat": [f"c{n % 2}" for n in range(9)] + ["c1"],
        "brand": [*(f"b{n % 3}" for n in range(9)), None],
        "tags": [*([["x", "y"]] * 9), []],
        "price": [*(n + 0.5 for n in range(9)), 1.0],
        "vector": vectors or [*([1.0, 0.0, n] for n in range(9)), None],
    }
    pq.write_table(pa.table(table), directory / "items.parquet")
    return f"events:{directory}"


def test_parquet_gives_what_the_same_tables_give_as_csv(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "typed").mkdir()
    data = [open_data(spec) for spec in (events(tmp_path / "csv"), as_parquet(tmp_path / "typed"))]
    assert data[0].items == data[1].items
    for name in ("item", "time_ms", "kind", "start"):
        np.testing.assert_array_equal(getattr(data[0].behaviors, name), getattr(data[1].behaviors, name))
    np.testing.assert_array_equal(data[0].requests.clicked, data[1].requests.clicked)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    spec = as_parquet(tmp_path, vectors=[*([1.0, 0.0, 1.0] for _ in range(8)), [1.0, float("nan"), 0.0], None])
    with pytest.raises(TrainingDataError, match=r"items\.parquet:9: content holds a number that is not finite"):
        open_data(spec)
    as_parquet(tmp_path)
    (tmp_path / "mapping.toml").write_text(PARQUET.replace('"ts"', '"when"'))
    with pytest.raises(TrainingDataError, match=r"log\.parquet: no column when → the file has uid, iid, act, ts"):
        open_data(spec)
    (tmp_path / "mapping.toml").write_text(PARQUET.replace('"act"', '"not asked for"'))
    with pytest.raises(TrainingDataError, match=r"log\.parquet: not asked for is of type binary"):
        open_data(spec)
    (tmp_path / "mapping.toml").write_text(PARQUET)
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    with pytest.raises(TrainingDataError, match=r"log\.parquet is no Parquet file"):
        open_data(spec)


def test_a_line_number_counts_the_lines_inside_quoted_fields(tmp_path: Path) -> None:
    items = [*ITEMS, '"i10",c,"b\nb",x,1,', "i11,c,b,x,odd,"]
    with pytest.raises(TrainingDataError, match=r"items\.csv:14: price is 'odd'"):
        open_data(events(tmp_path, items=items))
