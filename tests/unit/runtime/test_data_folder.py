"""The folder of ``aif up --data``: what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from aif_stream.errors import DataFolderConflict, DataFolderError
from aif_stream.runtime.data_folder import open_folder


def make(path: Path, items: int | None, users: int | None) -> None:
    """A first start that has finished."""
    with open_folder(path, items, users) as folder:
        assert folder.is_new
        for part in ("redis", "journal"):
            (path / part).mkdir()
        folder.seeded()


@pytest.mark.parametrize(
    ("first", "recorded"),
    [((None, None), (5000, 500)), ((7, 3), (7, 3)), ((0, None), (0, 0)), ((0, 500), (0, 0)), ((7, 0), (7, 0))],
)
def test_folder_records_the_numbers_of_its_first_start(
    tmp_path: Path, first: tuple[int | None, int | None], recorded: tuple[int, int]
) -> None:
    make(tmp_path, *first)
    for again in (first, recorded, (None, None)):
        with open_folder(tmp_path, *again) as folder:
            assert (folder.is_new, folder.items, folder.users) == (False, *recorded)


@pytest.mark.parametrize(("items", "users"), [(5000, None), (0, 500), (7, 4), (None, 4), (8, 3), (0, None)])
def test_other_numbers_are_refused(tmp_path: Path, items: int | None, users: int | None) -> None:
    make(tmp_path, 7, 3)
    with pytest.raises(DataFolderConflict, match="omit --"), open_folder(tmp_path, items, users):
        pass


def test_users_without_items_are_refused_where_none_are_recorded(tmp_path: Path) -> None:
    make(tmp_path, 0, None)
    with pytest.raises(DataFolderConflict, match="--users 0, not 5"), open_folder(tmp_path, None, 5):
        pass


def test_interrupted_seeding_begins_anew_with_the_same_numbers(tmp_path: Path) -> None:
    with open_folder(tmp_path, 7, 3):
        (tmp_path / "redis").mkdir()
    with open_folder(tmp_path, None, None) as folder:
        assert (folder.is_new, folder.items) == (True, 7)
    with pytest.raises(DataFolderConflict), open_folder(tmp_path, 8, 3):
        pass


def test_folder_in_use_is_refused_until_it_is_released(tmp_path: Path) -> None:
    with open_folder(tmp_path, 0, None), pytest.raises(DataFolderError, match="another aif up uses"):
        open_folder(tmp_path, 0, None).__enter__()
    with open_folder(tmp_path, 0, None):
        pass


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"format": 2, "rows": []}', "newer release: format 2"),
        ('{"format": 0}', "older release: format 0"),
        ('{"format": "one"}', "is damaged"),
        ('{"format": 1}', "is damaged"),
        ("", "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_folder_of_another_release_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "aif.json").write_text(text)
    with pytest.raises(DataFolderError, match=problem) as refused, open_folder(tmp_path, None, None):
        pass
    assert "another folder" in refused.value.mend


def test_folder_from_before_the_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with pytest.raises(DataFolderError, match="earlier release"), open_folder(tmp_path, None, None):
        pass


@pytest.mark.parametrize("part", ["redis", "journal"])
def test_folder_that_lost_a_part_is_refused(tmp_path: Path, part: str) -> None:
    make(tmp_path, 0, None)
    (tmp_path / part).rmdir()
    with pytest.raises(DataFolderError, match=f"{part} is missing"), open_folder(tmp_path, None, None):
        pass


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match="file: "), open_folder(tmp_path / "file", None, None):
        pass
