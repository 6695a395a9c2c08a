"""Record batches of one partition in files.

    DIR/00000000000000000000.log, DIR/00000000000000012345.log …      named by first offset, like Kafka's segments

Each batch is preceded by its length and the CRC-32 of its bytes. The checksum inside a batch cannot be used: the broker
accepts batches with a wrong one. A killed process leaves at most one torn entry, at the end of the newest file;
``open`` truncates it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aif_stream.bus.batches import HEADER_BYTES, Batch, batch_of
from aif_stream.errors import DataFolderError
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 1024 * 1024
_SUFFIX: Final = ".log"
_ENTRY: Final = struct.Struct(">II")  # bytes of the batch, their CRC-32


class Segments:
    """The files of one partition, for one writer. Not safe for concurrent use.

    Every method raises ``DataFolderError`` naming the file when the disk fails.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, int] = {}  # first offset -> bytes, oldest first
        self._last = -1  # file descriptor of the newest
        self._unsynced = False
        self.end = 0
        """Offset after the last record."""

    def open(self) -> None:
        """List the files and truncate a torn batch at the end of the newest."""
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            found = sorted(path for path in self._directory.glob(f"*{_SUFFIX}") if path.stem.isdigit())
            self._files = {int(path.stem): path.stat().st_size for path in found}
        if not self._files:
            self._begin(0)
            return
        newest = next(reversed(self._files))
        self.end = self._mend(newest)
        with disk_errors(self._path(newest)):
            self._last = os.open(self._path(newest), os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        """Sync and close."""
        if self._last >= 0:
            self.sync()
            os.close(self._last)
            self._last = -1

    @property
    def nbytes(self) -> int:
        return sum(self._files.values())

    @property
    def beginning(self) -> int:
        """Offset at which the oldest file starts."""
        return next(iter(self._files))

    def append(self, batch: Batch) -> None:
        """Append one batch. It is in the kernel's page cache then; ``sync`` writes it to the disk.

        A batch that leaves a gap of offsets starts a new file.
        """
        newest = next(reversed(self._files))
        entry = _ENTRY.pack(len(batch.data), zlib.crc32(batch.data)) + batch.data
        if batch.base_offset != self.end or 0 < SEGMENT_BYTES - len(entry) < self._files[newest]:
            self.begin(batch.base_offset)
            newest = batch.base_offset
        written = 0
        try:
            while written < len(entry):
                written += os.write(self._last, memoryview(entry)[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._last, self._files[newest])  # remove the torn part
            raise _refused(self._path(newest), error) from None
        self._files[newest] += written
        self.end = batch.next_offset
        self._unsynced = True

    def begin(self, offset: int) -> None:
        """Continue in a new file that starts at ``offset``."""
        if self._files and next(reversed(self._files)) == offset:
            return
        self.sync()
        os.close(self._last)
        self._begin(offset)

    def sync(self) -> None:
        """Flush the newest file to the disk."""
        if self._unsynced:
            self._unsynced = False
            with disk_errors(self._directory):
                os.fsync(self._last)

    def drop_before(self, offset: int) -> None:
        """Delete files whose records all lie before ``offset``, but never the newest."""
        starts = list(self._files)
        for start, following in itertools.pairwise(starts):
            if following > offset:
                return
            self._remove(start)

    def keep(self, nbytes: int) -> None:
        """Delete the oldest files as long as at least ``nbytes`` remain."""
        for start in list(self._files)[:-1]:
            if self.nbytes - self._files[start] < nbytes:
                return
            self._remove(start)

    def batches(self, after: int = 0) -> Iterator[Batch]:
        """Batches with records at ``after`` or later, oldest first. A damaged batch is logged, and the rest of its file
        is skipped."""
        for start in list(self._files):
            with disk_errors(self._path(start)):
                data = self._path(start).read_bytes()
            size = 0
            for batch, end in entries(data):
                size = end
                if batch.next_offset > after:
                    yield batch
            if size < len(data):
                log.error(kv("journal.damaged", file=self._path(start), at=size, unreadable_bytes=len(data) - size))

    def _mend(self, start: int) -> int:
        """Truncate a file after its last intact batch. Returns the offset after that batch."""
        path = self._path(start)
        with disk_errors(path):
            data = path.read_bytes()
        end, size = start, 0
        for batch, size_so_far in entries(data):
            end, size = batch.next_offset, size_so_far
        if size < len(data):
            log.warning(kv("journal.torn", file=path, kept_bytes=size, cut_bytes=len(data) - size, next_offset=end))
            with disk_errors(path):
                os.truncate(path, size)
        self._files[start] = size
        return end

    def _begin(self, offset: int) -> None:
        path = self._path(offset)
        with disk_errors(path):
            self._last = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            _sync_directory(self._directory)
        self._files[offset] = 0
        self.end = offset
        self._unsynced = False

    def _remove(self, start: int) -> None:
        with disk_errors(self._path(start)):
            self._path(start).unlink()
        del self._files[start]

    def _path(self, start: int) -> Path:
        return self._directory / f"{start:020d}{_SUFFIX}"


def entries(data: bytes) -> Iterator[tuple[Batch, int]]:
    """The batches in the bytes of a file, each with the position after it. Stops at a torn or damaged entry."""
    at = 0
    while at + _ENTRY.size <= len(data):
        length, crc = _ENTRY.unpack_from(data, at)
        end = at + _ENTRY.size + length
        batch = data[at + _ENTRY.size : end]
        if end > len(data) or zlib.crc32(batch) != crc or len(batch) < HEADER_BYTES:
            return
        yield batch_of(batch), end
        at = end


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file atomically and flush it to the disk. Does nothing if the content is unchanged."""
    with disk_errors(path):
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return
        draft = path.with_name(f".{path.name}.draft")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Flush a directory, so that a new file name survives a power loss."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate ``OSError`` into ``DataFolderError``."""
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> DataFolderError:
    why = error.strerror or str(error)
    return DataFolderError(
        f"{path}: {why}", mend="free space on that disk or make the folder writable, then start again"
    )
