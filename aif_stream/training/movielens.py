"""MovieLens in RecBole's atomic files (``*.inter``, ``*.item``, ``*.user``): a data set, and the same as event lines.

A rating of 4 or 5 is a click (5: a favourite), a lower one an exposure: that is the label everywhere here. Every
rating is an impression. The content vector is a sum of fixed random vectors, one per genre, title word and decade:
nothing in it is fitted, least of all to ratings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Behaviors, Dataset, Impressions, group_requests

CONTENT_WIDTH: Final = 32
CLICK_FROM: Final = 4.0
FAVOURITE_FROM: Final = 5.0
# Ratings of one user in a row that form one request: its history ends before the first of them.
_PER_REQUEST: Final = 16
_TITLE_WEIGHT: Final = 0.5  # genres are few and shared; title words are many and rare
_WORD: Final = re.compile(r"[a-z0-9']{3,}")
_STOP: Final = frozenset({"the", "and", "for", "with", "from"})
_COLUMNS: Final = {
    "inter": ("user_id", "item_id", "rating", "timestamp"),
    "item": ("item_id", "movie_title", "release_year", "class"),
    "user": ("user_id", "age", "gender", "occupation", "zip_code"),
}


class MovieLens:
    """Reads a directory. Raises ``TrainingDataError`` naming file and line for what does not fit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ratings = list(_records(directory, "inter"))
        if not self._ratings:
            raise TrainingDataError(f"{directory}: no ratings", mend="copy the data set again")

    def items(self) -> Iterator[dict[str, Any]]:
        """Item lines (contract): category = first genre; genres, title words, release year; content vector."""
        for _, row in _records(self._directory, "item"):
            yield film_line(row["item_id"], row["movie_title"], row["release_year"], row["class"].split())

    def profiles(self) -> Iterator[dict[str, Any]]:
        """User lines: age, gender, occupation."""
        for line, row in _records(self._directory, "user"):
            age = _number(row["age"], self._directory, "user", line, "age")
            attributes = {"age": age, "gender": row["gender"], "occupation": row["occupation"]}
            yield {"user_id": row["user_id"], "attributes": attributes}

    def behaviors(self) -> Iterator[dict[str, Any]]:
        """Behavior lines of all ratings, by time."""
        _, _, rating, time_ms = self._columns()
        for at in np.argsort(time_ms, kind="stable"):
            row = self._ratings[at][1]
            kind = _kind(float(rating[at]))
            yield {
                "user_id": row["user_id"],
                "item_id": row["item_id"],
                "kind": kind.value,
                "event_time_ms": int(time_ms[at]),
            }

    def dataset(self) -> Dataset:
        """Impressions are all ratings; histories the clicks and favourites."""
        items = [ItemUpserted(**line) for line in self.items()]
        profiles = list(self.profiles())
        item_at = {str(item.item_id): at for at, item in enumerate(items)}
        user_at = {line["user_id"]: at for at, line in enumerate(profiles)}
        user_id, item_id, rating, time_ms = self._columns()
        user, item = self._indices("user", user_id, user_at), self._indices("item", item_id, item_at)
        clicked = rating >= CLICK_FROM
        kind = np.array([_kind(value).code for value in rating], dtype=np.int64)
        behaviors = Behaviors.sorted_by_user(
            user[clicked], item[clicked], time_ms[clicked], kind[clicked], len(profiles)
        )
        order = np.lexsort((item, time_ms, user))
        place = np.empty(len(order), dtype=np.int64)
        starts = np.searchsorted(user[order], user[order], side="left")
        place[order] = np.arange(len(order)) - starts  # the rating's place among its user's
        group = user * (1 << 32) + place // _PER_REQUEST
        name = f"movielens:{self._directory.name}"
        shown = Impressions(user, item, time_ms, clicked, group)
        attributes = [line["attributes"] for line in profiles]
        return Dataset(name, items, attributes, behaviors, group_requests(name, shown, behaviors))

    def _columns(self) -> tuple[list[str], list[str], NDArray[np.float64], NDArray[np.int64]]:
        place = (self._directory, "inter")
        rating = [_number(row["rating"], *place, line, "rating") for line, row in self._ratings]
        seconds = [_number(row["timestamp"], *place, line, "timestamp") for line, row in self._ratings]
        users, items = ([row[name] for _, row in self._ratings] for name in ("user_id", "item_id"))
        return users, items, np.array(rating), (np.array(seconds) * 1000).astype(np.int64)

    def _indices(self, what: str, ids: list[str], known: dict[str, int]) -> NDArray[np.int64]:
        for (line, _), name in zip(self._ratings, ids, strict=True):
            if name not in known:
                path = _path(self._directory, "inter")
                raise TrainingDataError(
                    f"{path}:{line}: {what} {name!r} is not in the .{what} file", mend="add it there"
                )
        return np.array([known[name] for name in ids], dtype=np.int64)


def film_line(item_id: str, title: str, year: str, genres: list[str]) -> dict[str, Any]:
    """The item line of a film; ``year`` is digits or nothing (two films of the 100K have none)."""
    genres = genres or ["unknown"]
    words = [word for word in _WORD.findall(title.lower()) if word not in _STOP]
    attributes: dict[str, Any] = {"genres": genres, "title": words, "movie_title": title}
    tokens = [(f"genre:{genre}", 1.0) for genre in genres]
    tokens += [(f"word:{word}", _TITLE_WEIGHT) for word in words]
    if year.isdigit():
        attributes["release_year"] = int(year)
        tokens.append((f"decade:{year[:3]}", 1.0))
    vector = sum((weight * _direction(token) for token, weight in tokens), np.zeros(CONTENT_WIDTH))
    return {
        "item_id": item_id,
        "category": genres[0],
        "attributes": attributes,
        "content_vector": (vector / np.linalg.norm(vector)).round(4).tolist(),
    }


def _kind(rating: float) -> BehaviorKind:
    if rating >= FAVOURITE_FROM:
        return BehaviorKind.FAVOURITE
    return BehaviorKind.CLICK if rating >= CLICK_FROM else BehaviorKind.EXPOSURE


@cache
def _direction(token: str) -> NDArray[np.float64]:
    """A fixed unit vector per token."""
    seed = int.from_bytes(blake2b(token.encode(), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).standard_normal(CONTENT_WIDTH)
    unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return unit


def _path(directory: Path, suffix: str) -> Path:
    found = sorted(directory.glob(f"*.{suffix}"))
    if len(found) != 1:
        raise TrainingDataError(
            f"{directory} holds {len(found)} .{suffix} files", mend="give a directory of RecBole's atomic files"
        )
    return found[0]


def _records(directory: Path, suffix: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a tab-separated file whose first line names ``field:type``."""
    path = _path(directory, suffix)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path}: {error}", mend="copy the data set again") from None
    names = [field.partition(":")[0] for field in lines[0].split("\t")] if lines else []
    missing = [name for name in _COLUMNS[suffix] if name not in names]
    if missing:
        raise TrainingDataError(f"{path}:1: no column {', '.join(missing)}", mend=f"the header has {', '.join(names)}")
    for number, line in enumerate(lines[1:], start=2):
        values = line.split("\t")
        if len(values) != len(names):
            raise TrainingDataError(
                f"{path}:{number}: {len(values)} columns, the header has {len(names)}", mend="mend or remove the line"
            )
        yield number, dict(zip(names, values, strict=True))


def _number(text: str, directory: Path, suffix: str, line: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        path = _path(directory, suffix)
        raise TrainingDataError(f"{path}:{line}: {column} is {text!r}, not a number", mend="mend or remove the line")
    return value
