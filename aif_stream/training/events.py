"""``events:DIR``: anybody's tables, CSV or Parquet. ``DIR/mapping.toml`` says which file and column is what.

    [interactions]                 # needed
    files = ["2024-*.csv"]         # in DIR, read in the order of their names; *.parquet too, and folders of them
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
    sets = ["tags"]                # separated by set_separator, default "|"; a Parquet list is taken as it is
    numbers = ["price"]
    content = "vector"             # numbers separated by spaces, or a Parquet list; empty: no content
    # or: content = ["v0", "v1"]

    [users]                        # optional
    files = ["users.csv"]
    id = "uid"
    labels = ["city"]

Values of Parquet are read by their type. Ids, labels, kinds and sets are strings or whole numbers, be they integers,
floats or decimals: 7.0 is "7", and 7.5 is refused. Booleans are 1 and 0, but no ids. Null is a missing value.

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
from aif_stream.training.chunk import Chunk, columns_of
from aif_stream.training.dataset import Dataset
from aif_stream.training.interactions import I64, Ids, Interactions
from aif_stream.training.records import OnRead, read_chunks

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
                names = chunk.ids(spec.item)
                if mapping.items is not None:
                    unknown = [at for at, name in enumerate(names) if name not in items.known]
                    if unknown:
                        at = unknown[0]
                        chunk.refuse(
                            at, f"item {names[at]!r} is not in the item files", "add it there, or leave out [items]"
                        )
                user = users.of(chunk.ids(spec.user))
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
        here = [file for path in sorted(directory.glob(pattern)) for file in _parts(path)]
        if not here:
            raise TrainingDataError(f"{directory / pattern}: no such file", mend=f"mend files in {MAPPING}")
        found += here
    return found


def _parts(path: Path) -> list[Path]:
    """The file, or the files of a table that is a folder, as Spark writes one: names that begin with ``_`` or ``.`` are
    no parts of it. Raises ``TrainingDataError`` for a folder whose files also hold rows that were removed."""
    if not path.is_dir():
        return [path]
    if (path / "_delta_log").exists():
        raise TrainingDataError(
            f"{path} is a Delta table: its files also hold rows that were replaced", mend="export its present state"
        )
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return [file for file in files if not any(part[0] in "_." for part in file.relative_to(path).parts)]


def _kinds(chunk: Chunk, spec: Log) -> I64:
    if spec.label:
        return (chunk.numbers(spec.label) >= spec.click_from).astype(np.int64)
    kinds = spec.kinds or {kind.value: kind for kind in BehaviorKind}
    codes = {name: kind.code for name, kind in kinds.items()}
    values = chunk.texts(spec.kind)
    found = [codes.get(value, -1) for value in values]
    if -1 in found:
        at = found.index(-1)
        chunk.refuse(
            at, f"{spec.kind} {values[at]!r} is none of {', '.join(codes)}", f"name it under kinds in {MAPPING}"
        )
    return np.array(found, dtype=np.int64)


def _attributes(chunk: Chunk, table: Table) -> Iterator[dict[str, Attribute]]:
    labels = [(name, chunk.texts(name)) for name in table.labels]
    sets = [(name, chunk.tags(name, table.set_separator)) for name in table.sets]
    numbers = [(name, chunk.numbers(name)) for name in table.numbers]
    for at in range(len(chunk)):
        row: dict[str, Attribute] = {name: values[at] for name, values in labels if values[at]}
        for name, tags in sets:
            row[name] = tags[at]
        for name, column in numbers:
            row[name] = float(column[at])
        yield row


def _items(directory: Path, table: Table, ids: Ids) -> Iterator[ItemUpserted]:
    width = 0
    for path in _files(directory, table.files):
        for chunk in read_chunks(path, table.columns, delimiter=table.delimiter):
            names = chunk.ids(table.id)
            categories = chunk.texts(table.category) if table.category else [""] * len(chunk)
            vectors = chunk.vectors(table.content) if table.content else [None] * len(chunk)
            for at, attributes in enumerate(_attributes(chunk, table)):
                if names[at] in ids.known:
                    chunk.refuse(at, f"item {names[at]!r} stands here a second time", "keep one line of each item")
                ids.of(names[at : at + 1])
                vector = vectors[at]
                if vector is not None and len(vector) != (width := width or len(vector)):
                    what = f"content of {len(vector)} numbers, the ones before have {width}"
                    chunk.refuse(at, f"{what} (column {columns_of(table.content)})")
                yield ItemUpserted(
                    item_id=names[at], category=categories[at], attributes=attributes, content_vector=vector
                )


def _profiles(directory: Path, table: Table) -> Iterator[tuple[str, dict[str, Attribute]]]:
    for path in _files(directory, table.files):
        for chunk in read_chunks(path, table.columns, delimiter=table.delimiter):
            yield from zip(chunk.ids(table.id), _attributes(chunk, table), strict=True)
