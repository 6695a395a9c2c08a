"""Files of record batches: what a crash, a full disk or a bad sector leaves behind."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from aif_stream.bus.batches import Batch, packed
from aif_stream.embedded.segments import SEGMENT_BYTES, Segments
from aif_stream.errors import DataFolderError


def opened(directory: Path) -> Segments:
    files = Segments(directory)
    files.open()
    return files


def batch(offset: int, count: int = 1, size: int = 10) -> Batch:
    return packed(offset, [(1_000 + n, b"k", os.urandom(size), []) for n in range(count)])


def filled(directory: Path, *batches: Batch) -> list[Path]:
    files = opened(directory)
    for each in batches:
        files.append(each)
    files.close()
    return sorted(directory.glob("*.log"))


def test_batches_come_back_in_order_with_the_next_offset(tmp_path: Path) -> None:
    batches = [batch(0, 3), batch(3, 2), batch(5, 1)]
    filled(tmp_path, *batches)
    files = opened(tmp_path)
    assert list(files.batches()) == batches
    assert list(files.batches(4)) == batches[1:]
    assert files.end == 6


@pytest.mark.parametrize("cut", [1, 8, 40, 69, 90])
def test_torn_last_batch_is_truncated_and_overwritten(tmp_path: Path, cut: int) -> None:
    first, second = batch(0, 3), batch(3, 2, size=100)
    (path,) = filled(tmp_path, first, second)
    kept = path.stat().st_size - len(second.data) - 8
    os.truncate(path, kept + cut)
    files = opened(tmp_path)
    assert files.end == 3
    assert path.stat().st_size == kept
    files.append(batch(3))
    assert [each.base_offset for each in files.batches()] == [0, 3]


def test_last_entry_with_a_wrong_crc_is_truncated(tmp_path: Path) -> None:
    first, second = batch(0), batch(1)
    (path,) = filled(tmp_path, first, second)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert opened(tmp_path).end == 1


def test_batch_that_is_broken_in_itself_is_kept(tmp_path: Path) -> None:
    """The broker takes a wrong CRC; nearline makes a dead letter of it. The records behind it must not be lost."""
    broken = batch(1)._replace(data=batch(1).data[:-1] + b"?")
    assert not broken.is_intact
    filled(tmp_path, batch(0), broken, batch(2))
    assert [each.base_offset for each in opened(tmp_path).batches()] == [0, 1, 2]


def test_damage_in_an_older_file_costs_only_the_rest_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = [batch(n, size=SEGMENT_BYTES // 2 - 1000) for n in range(6)]
    paths = filled(tmp_path, *large)
    assert len(paths) == 3
    data = bytearray(paths[1].read_bytes())
    data[100] ^= 1
    paths[1].write_bytes(data)
    files = opened(tmp_path)
    assert [each.base_offset for each in files.batches()] == [0, 1, 4, 5]
    assert files.end == 6
    assert "journal.damaged" in caplog.text
    assert paths[1].name in caplog.text


def test_gap_of_offsets_starts_a_new_file(tmp_path: Path) -> None:
    paths = filled(tmp_path, batch(0), batch(50))
    assert [int(path.stem) for path in paths] == [0, 50]
    assert opened(tmp_path).end == 51


def test_oldest_files_go_first_and_the_newest_stays(tmp_path: Path) -> None:
    filled(tmp_path, *(batch(n, size=SEGMENT_BYTES // 2 - 1000) for n in range(8)))
    files = opened(tmp_path)
    assert files.beginning == 0
    files.keep(2 * SEGMENT_BYTES - 10_000)
    assert (files.beginning, files.end) == (4, 8)
    files.drop_before(7)
    assert files.beginning == 6, "offset 7 is in that file"
    files.drop_before(100)
    assert (files.beginning, files.end) == (6, 8)
    assert [each.base_offset for each in files.batches()] == [6, 7]


def test_full_disk_names_the_file_and_leaves_no_torn_batch(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: it takes a part of a write as well, then refuses."""
    (path,) = filled(tmp_path, batch(0))
    before = path.read_bytes()
    files = opened(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(DataFolderError, match=rf"{path}: File too large → free space"):
            files.append(batch(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    files.append(batch(1))
    assert [each.base_offset for each in files.batches()] == [0, 1]


def test_empty_partition_keeps_its_offset(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.append(batch(0))
    files.begin(1 << 24)
    files.drop_before(1 << 24)
    files.close()
    assert (opened(tmp_path).end, list(opened(tmp_path).batches())) == (1 << 24, [])
