"""The folder of ``aif up --data``: lock, format and the options of its first start.

Its content, in ``DIR``:

    aif.json     format, items and users of the first start, whether its seeding has finished
    lock         locked by the running ``aif up``
    redis        append-only file of Redis: items, profiles, histories, rows
    journal      records of the embedded broker (embedded/journal.py)
    models       artefacts of the published versions
    logs         one log per role
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from aif_stream.embedded.segments import write_whole
from aif_stream.errors import DataFolderConflict, DataFolderError

FORMAT: Final = 1
"""Increase it when a release cannot read the folders of the previous one, for example after a topic got partitions."""
DEFAULT_ITEMS: Final = 5000
DEFAULT_USERS: Final = 500
_FILE: Final = "aif.json"


class Made(msgspec.Struct, frozen=True):
    """Content of ``aif.json``."""

    format: int
    items: int
    users: int
    seeded: bool


_MADE: Final = msgspec.json.Decoder(Made)


class DataFolder:
    """See ``open_folder``."""

    def __init__(self, path: Path, made: Made, *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        """True for a first start, also after one that was interrupted while seeding: there is no data to keep."""
        self._made = made

    @property
    def items(self) -> int:
        return self._made.items

    @property
    def users(self) -> int:
        return self._made.users

    def seeded(self) -> None:
        """Record that the first start has finished seeding. The folder is never seeded again."""
        self._made = msgspec.structs.replace(self._made, seeded=True)
        self._write()

    def _write(self) -> None:
        write_whole(self.path / _FILE, msgspec.json.encode(self._made))


def numbers(items: int | None, users: int | None) -> tuple[int, int]:
    """Size of the synthetic catalogue: defaults for None, no users without items."""
    items = DEFAULT_ITEMS if items is None else items
    return items, (DEFAULT_USERS if users is None else users) if items else 0


@contextlib.contextmanager
def open_folder(path: Path, items: int | None, users: int | None) -> Iterator[DataFolder]:
    """Lock and read the folder. ``items`` and ``users`` are the requested numbers; None accepts the recorded ones.

    Raises ``DataFolderConflict`` if other numbers are recorded, ``DataFolderError`` if another ``aif up`` uses the
    folder, another release wrote it, or it cannot be read or written.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        stack = contextlib.ExitStack()
        lock = stack.enter_context((path / "lock").open("a+"))
    except OSError as error:
        raise DataFolderError(f"{path}: {error.strerror}", mend="choose another folder") from None
    with stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DataFolderError(
                f"another aif up uses {path} (process {lock.read().strip() or 'unknown'})",
                mend="stop it, or use another folder",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield _opened(path, items, users)


def _opened(path: Path, items: int | None, users: int | None) -> DataFolder:
    made = _read(path)
    if made is None:
        if (path / "redis").exists():
            raise DataFolderError(
                f"{path} was written by an earlier release, which did not keep the broker's records (no {_FILE})",
                mend="use another folder and publish items, users, behaviors and models again",
            )
        folder = DataFolder(path, Made(FORMAT, *numbers(items, users), seeded=False), is_new=True)
        folder._write()
        return folder
    _check(path, made, items, users)
    return DataFolder(path, made, is_new=not made.seeded)


def _read(path: Path) -> Made | None:
    file = path / _FILE
    hint = "use the release that wrote the folder, or another folder"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataFolderError(f"{file}: {error.strerror}", mend="choose another folder") from None
    try:
        found = msgspec.json.decode(data)["format"]
        if found != FORMAT:
            age = "newer" if found > FORMAT else "older"
            problem = f"{path} was written by a {age} release: format {found}; this one reads {FORMAT}"
            raise DataFolderError(problem, mend=hint)
        return _MADE.decode(data)
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataFolderError(
            f"{file} is damaged: {error}", mend="restore it from a copy, or use another folder"
        ) from None


def _check(path: Path, made: Made, items: int | None, users: int | None) -> None:
    users = None if items == 0 else users  # without items there are no users, whatever is asked for
    for name, wanted, known in (("--items", items, made.items), ("--users", users, made.users)):
        if wanted is not None and wanted != known:
            raise DataFolderConflict(
                f"{path} was created with {name} {known}, not {wanted}; a folder is seeded only once",
                mend=f"omit {name}, or use another folder",
            )
    if made.seeded and (missing := [part for part in ("redis", "journal") if not (path / part).is_dir()]):
        raise DataFolderError(f"{path}/{missing[0]} is missing", mend="restore it from a copy, or use another folder")
