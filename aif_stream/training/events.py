"""``events:DIR``: anybody's tables, CSV or Parquet. ``DIR/mapping.toml`` says which file and column is what.

    [interactions]                 # needed
    files = ["2024-*.csv"]         # in DIR, read in the order of their names; *.parquet too
    user = "uid"
    item = "iid"
    time = "ts"
    time_unit = "s"                # s, ms (default), us, ns; a Parquet timestamp has its own
    kind = "action"                # either: a column of behaviors …
    kinds = { pv = "click", imp = "exposure", order = "buy" }   # default: our own names
    label = "rating"               # … or: a number, a click from click_from (default 1) on
    click_from = 4.0

    [items]                        # optional: without it an item is its id, of category ""
    files = ["items.csv"]
    id = "iid"
    category = "cat"
    labels = ["brand"]
    sets = ["tags"]                # separated by set_separator, default "|"; in Parquet a list of strings too
    numbers = ["price"]
    content = "vector"             # numbers separated by spaces, or a Parquet list; empty: no content
    # or: content = ["v0", "v1"]

    [users]                        # optional
    files = ["users.csv"]
    id = "uid"
    labels = ["city"]

An interaction with an item that ``items`` lacks is refused; a user whom ``users`` lacks has no profile.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from aif_stream.domain.events import Attribute, BehaviorKind, ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset
from aif_stream.training.interactions import I64, Ids, Interactions
from aif_stream.training.records import Chunk, OnRead, read_chunks

MAPPING: Final = "mapping.toml"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A catalogue of items or users."""

    files: list[str]
    id: str
    category: str = ""
    labels: list[str] = []
    sets: list[str] = []
    numbers: list[str] = []
    content: str | list[str] = ""
    set_separator: str = "|"
    delimiter: str = ","

    @property
    def content_columns(self) -> list[str]:
        return self.content if isinstance(self.content, list) else [self.content] if self.content else []

    @property
    def columns(self) -> list[str]:
        named = [self.id, *([self.category] if self.category else []), *self.labels, *self.sets, *self.numbers]
        return named + self.content_columns


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The interactions."""

    files: list[str]
    user: str
    item: str
    time: str
    time_unit: Literal["s", "ms", "us", "ns"] = "ms"
    kind: str = ""
    kinds: dict[str, BehaviorKind] = {}
    label: str = ""
    click_from: float = 1.0
    delimiter: str = ","


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``mapping.toml``."""

    interactions: Log
    items: Table | None = None
    users: Table | None = None


def read_events(directory: Path, on_read: OnRead | None = None) -> Dataset:
    """Stream the tables of a directory. Raises ``TrainingDataError`` naming file, line and mend."""
    mapping = read_mapping(directory)
    users, items = Ids(), Ids()
    catalogue: list[ItemUpserted] = []
    if mapping.items is not None:
        catalogue = list(_items(directory, mapping.items, items))
    with Interactions(f"events:{directory.name}") as log:
        spec = mapping.interactions
        needed = [name for name in (spec.user, spec.item, spec.time, spec.kind, spec.label) if name]
        for path in _files(directory, spec.files):
            for chunk in read_chunks(path, needed, delimiter=spec.delimiter, on_read=on_read):
                names = chunk.filled(spec.item)
                if mapping.items is not None:
                    unknown = [at for at, name in enumerate(names) if name not in items.known]
                    if unknown:
                        at = unknown[0]
                        chunk.refuse(
                            at, f"item {names[at]!r} is not in the item files", "add it there, or leave out [items]"
                        )
                user = users.of(chunk.filled(spec.user))
                log.add(user, items.of(names), chunk.times_ms(spec.time, spec.time_unit), _kinds(chunk, spec))
        if mapping.items is None:
            catalogue = [ItemUpserted(item_id=name, category="") for name in items.known]
        profiles: list[dict[str, Attribute] | None] = [None] * len(users.known)
        if mapping.users is not None:
            for name, profile in _profiles(directory, mapping.users):
                if name in users.known:
                    profiles[users.known[name]] = profile
        return log.dataset(catalogue, profiles)


def read_mapping(directory: Path) -> Mapping:
    """The mapping of a directory. Raises ``TrainingDataError`` naming the field."""
    path = directory / MAPPING
    mend = "aif_stream/training/events.py and docs/model.md show one"
    try:
        mapping = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Mapping)
    except OSError as error:
        raise TrainingDataError(f"{path}: {error.strerror}", mend=mend) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise TrainingDataError(f"{path}: {error}", mend=mend) from None
    if bool(mapping.interactions.kind) == bool(mapping.interactions.label):
        raise TrainingDataError(f"{path}: [interactions] needs either kind or label", mend=mend)
    return mapping


def _files(directory: Path, patterns: list[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        here = sorted(directory.glob(pattern))
        if not here:
            raise TrainingDataError(f"{directory / pattern}: no such file", mend=f"mend files in {MAPPING}")
        found += here
    return found


def _kinds(chunk: Chunk, spec: Log) -> I64:
    if spec.label:
        return (chunk.numbers(spec.label) >= spec.click_from).astype(np.int64)
    kinds = spec.kinds or {kind.value: kind for kind in BehaviorKind}
    codes = {name: kind.code for name, kind in kinds.items()}
    values = chunk.column(spec.kind)
    found = [codes.get(value, -1) for value in values]
    if -1 in found:
        at = found.index(-1)
        chunk.refuse(
            at, f"{spec.kind} {values[at]!r} is none of {', '.join(codes)}", f"name it under kinds in {MAPPING}"
        )
    return np.array(found, dtype=np.int64)


def _attributes(chunk: Chunk, table: Table) -> Iterator[dict[str, Attribute]]:
    labels = [(name, chunk.column(name)) for name in table.labels]
    sets = [(name, chunk.column(name)) for name in table.sets]
    numbers = [(name, chunk.numbers(name)) for name in table.numbers]
    for at in range(len(chunk)):
        row: dict[str, Attribute] = {name: values[at] for name, values in labels if values[at]}
        for name, values in sets:
            row[name] = [part for part in values[at].split(table.set_separator) if part]
        for name, column in numbers:
            row[name] = float(column[at])
        yield row


def _content(chunk: Chunk, table: Table, at: int) -> list[float] | None:
    texts = [chunk.column(name)[at] for name in table.content_columns]
    parts = texts if isinstance(table.content, list) else " ".join(texts).split()
    if not any(parts):
        return None
    try:
        vector = [float(part) for part in parts]
    except ValueError as error:
        chunk.refuse(at, f"content: {error}")
    if not np.isfinite(np.array(vector, dtype=np.float32)).all():
        chunk.refuse(at, "content holds a number that is not finite", "mend the vector, or leave it empty")
    return vector


def _items(directory: Path, table: Table, ids: Ids) -> Iterator[ItemUpserted]:
    width = 0
    for path in _files(directory, table.files):
        for chunk in read_chunks(path, table.columns, delimiter=table.delimiter, joiner=table.set_separator):
            names = chunk.filled(table.id)
            categories = chunk.column(table.category) if table.category else [""] * len(chunk)
            for at, attributes in enumerate(_attributes(chunk, table)):
                if names[at] in ids.known:
                    chunk.refuse(at, f"item {names[at]!r} stands here a second time", "keep one line of each item")
                ids.of(names[at : at + 1])
                vector = _content(chunk, table, at)
                if vector is not None and len(vector) != (width := width or len(vector)):
                    chunk.refuse(at, f"content of {len(vector)} numbers, the ones before have {width}")
                yield ItemUpserted(
                    item_id=names[at], category=categories[at], attributes=attributes, content_vector=vector
                )


def _profiles(directory: Path, table: Table) -> Iterator[tuple[str, dict[str, Attribute]]]:
    for path in _files(directory, table.files):
        for chunk in read_chunks(path, table.columns, delimiter=table.delimiter, joiner=table.set_separator):
            yield from zip(chunk.filled(table.id), _attributes(chunk, table), strict=True)
