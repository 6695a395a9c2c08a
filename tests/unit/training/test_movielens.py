"""The MovieLens loader on a tiny set of its form, and on the real one where it is."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.domain.events import Behavior, UserUpserted, decode_item
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Split
from aif_stream.training.evaluate import evaluate_baselines, evaluate_version
from aif_stream.training.loop import QUICK, Trainer
from aif_stream.training.movielens import MovieLens

ITEMS = [
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    "1\tThe Long Day\t1995\tDrama Comedy",
    "2\tNight\tV\tDrama",
    "3\tDay and Night\t1980\t",
]
USERS = [
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
    *(f"{u}\t30\tF\tother\t1" for u in "12"),
]
RATINGS = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    *(f"{1 + n % 2}\t{1 + n % 3}\t{1 + (n * 7) % 5}\t{1000 + n * 10}" for n in range(60)),
]


def write(directory: Path, **changed: list[str]) -> Path:
    files = {"inter": RATINGS, "item": ITEMS, "user": USERS} | changed
    for suffix, lines in files.items():
        (directory / f"tiny.{suffix}").write_text("\n".join(lines) + "\n")
    return directory


def test_lines_pass_the_event_types(tmp_path: Path) -> None:
    movies = MovieLens(write(tmp_path))
    items = [decode_item(msgspec.json.encode(line)) for line in movies.items()]
    assert [item.category for item in items] == ["Drama", "Drama", "unknown"]
    assert items[0].attributes["title"] == ["long", "day"]
    assert items[0].attributes["release_year"] == 1995
    assert "release_year" not in items[1].attributes
    assert [msgspec.convert(line, UserUpserted).user_id for line in movies.profiles()] == ["1", "2"]
    behaviors = [msgspec.convert(line, Behavior) for line in movies.behaviors()]
    assert len(behaviors) == 60
    times = [behavior.event_time_ms or 0 for behavior in behaviors]
    assert times == sorted(times)
    assert times[0] == 1_000_000


def test_ratings_from_four_are_clicks_and_enter_histories(tmp_path: Path) -> None:
    data = MovieLens(write(tmp_path)).dataset()
    assert len(data.requests.item) == 60
    assert data.requests.clicked.mean() == pytest.approx(0.4)
    assert len(data.behaviors.item) == 24
    assert set(data.behaviors.kind) == {1, 2}
    for request in range(len(data.requests.user)):
        history, _ = data.history(request)
        assert ((history["time_kind"] >> np.uint64(3)) < np.uint64(data.requests.time_ms[request])).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inter": [*RATINGS, "1\t2\t5"]}, r"tiny\.inter:62: 3 columns, the header has 4"),
        ({"inter": [*RATINGS, "1\t2\tfive\t3"]}, r"tiny\.inter:62: rating is 'five', not a number"),
        ({"inter": [*RATINGS, "1\t2\tnan\t3"]}, r"tiny\.inter:62: rating is 'nan'"),
        ({"inter": [*RATINGS, "9\t2\t3\t3"]}, r"tiny\.inter:62: user '9' is not in the"),
        ({"inter": [*RATINGS, "1\t9\t3\t3"]}, r"tiny\.inter:62: item '9' is not in the"),
        ({"inter": ["user_id:token\titem_id:token", "1\t1"]}, r"tiny\.inter:1: no column rating, timestamp"),
        ({"inter": RATINGS[:1]}, "no ratings"),
        ({"inter": [RATINGS[0], *(f"1\t1\t5\t{t}" for t in range(50))]}, "are clicks"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, changed: dict[str, list[str]], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message) as error:
        MovieLens(write(tmp_path, **changed)).dataset()
    assert error.value.mend


def test_a_directory_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"holds 0 \.inter files"):
        MovieLens(tmp_path)


def real_movielens() -> Path:
    named = os.environ.get("AIF_TEST_MOVIELENS")
    return Path(named) if named else Path(__file__).parents[4] / "shared/data/ml-100k"


@pytest.mark.skipif(
    not real_movielens().is_dir(), reason="MovieLens 100K is not here: set AIF_TEST_MOVIELENS to its directory"
)
def test_trained_on_real_movielens_it_ranks_above_popularity() -> None:
    torch.set_num_threads(1)
    data = MovieLens(real_movielens()).dataset()
    assert len(data.requests.item) == 100_000
    assert (data.requests.split == Split.TEST).any()
    popularity, _ = evaluate_baselines(data)
    found = evaluate_version(Trainer(data, "ml", QUICK).run(), data)
    assert found.metrics["gauc"].low > popularity.metrics["gauc"].high
