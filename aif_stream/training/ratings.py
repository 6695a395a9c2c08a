"""MovieLens as GroupLens gives it: 1M (``ratings.dat``, ``movies.dat``, ``users.dat``) and 20M and later
(``ratings.csv``, ``movies.csv``). The same rules as RecBole's files (movielens.py): 4 and up is a click, 5 a favourite,
content from title and genres. Streamed: ratings lie on disk (interactions.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from aif_stream.domain.events import Attribute, BehaviorKind, ItemUpserted
from aif_stream.training.dataset import Dataset
from aif_stream.training.interactions import Ids, Interactions
from aif_stream.training.movielens import CLICK_FROM, FAVOURITE_FROM, film_line
from aif_stream.training.records import OnRead, read_chunks

# "Seven (a.k.a. Se7en) (1995)": the year stands last in brackets.
_TITLE: Final = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$")
_RATINGS_1M: Final = ("userId", "movieId", "rating", "timestamp")
# GroupLens' .dat files are Latin-1, its .csv files UTF-8.
_DAT: Final = {"delimiter": "::", "encoding": "latin-1"}


def read_ratings(directory: Path, on_read: OnRead | None = None) -> Dataset:
    """Read the form that ``directory`` holds. Raises ``TrainingDataError`` naming file and line.

    A rating of a film that the film file lacks is refused; a user without a line in ``users.dat`` has no profile.
    """
    dat = (directory / "ratings.dat").exists()
    form: dict[str, Any] = dict(_DAT) if dat else {}
    suffix = "dat" if dat else "csv"
    users, items = Ids(), Ids()
    catalogue: list[ItemUpserted] = []
    films = ("movieId", "title", "genres")
    for chunk in read_chunks(directory / f"movies.{suffix}", films, header=films if dat else None, **form):
        for at, columns in enumerate(zip(*(chunk.texts(name) for name in films), strict=True)):
            if columns[0] in items.known:
                chunk.refuse(at, f"film {columns[0]!r} stands here a second time", "keep one line of each film")
            items.of(columns[:1])
            catalogue.append(_film(*columns))
    with Interactions(f"movielens:{directory.name}") as log:
        header = _RATINGS_1M if dat else None
        for chunk in read_chunks(directory / f"ratings.{suffix}", _RATINGS_1M, header=header, on_read=on_read, **form):
            rating = chunk.numbers("rating")
            film = chunk.texts("movieId")
            unknown = [at for at, name in enumerate(film) if name not in items.known]
            if unknown:
                chunk.refuse(unknown[0], f"film {film[unknown[0]]!r} is not in movies.{suffix}", "add it there")
            kind = np.full(len(rating), BehaviorKind.EXPOSURE.code, dtype=np.int64)
            kind[rating >= CLICK_FROM] = BehaviorKind.CLICK.code
            kind[rating >= FAVOURITE_FROM] = BehaviorKind.FAVOURITE.code
            log.add(users.of(chunk.ids("userId")), items.of(film), chunk.times_ms("timestamp", "s"), kind)
        return log.dataset(catalogue, _profiles(directory, users))


def _film(number: str, title: str, genres: str) -> ItemUpserted:
    found = _TITLE.match(title)
    known = [] if genres == "(no genres listed)" else [name for name in genres.split("|") if name]
    name, year = (found["title"], found["year"]) if found else (title, "")
    return ItemUpserted(**film_line(number, name, year, known))


def _profiles(directory: Path, users: Ids) -> list[dict[str, Attribute] | None]:
    """Age, gender and occupation of ``users.dat``; 20M knows nothing of its users."""
    profiles: list[dict[str, Attribute] | None] = [None] * len(users.known)
    path = directory / "users.dat"
    if not path.exists():
        return profiles
    names = ("UserID", "Gender", "Age", "Occupation", "Zip")
    for chunk in read_chunks(path, names, header=names, delimiter="::", encoding="latin-1"):
        age = chunk.numbers("Age")
        for at, (user, gender, occupation) in enumerate(
            zip(chunk.texts("UserID"), chunk.texts("Gender"), chunk.texts("Occupation"), strict=True)
        ):
            if user in users.known:
                profile: dict[str, Attribute] = {"age": float(age[at]), "gender": gender, "occupation": occupation}
                profiles[users.known[user]] = profile
    return profiles
