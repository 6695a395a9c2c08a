"""Columns that grow on disk and are read back as arrays over the file: what is large never lies in memory whole."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spill:
    """A directory of growing columns (under ``TMPDIR``). The arrays of ``take`` outlive it; a killed process
    leaves the directory behind, a finished one nothing."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="aif-train-")
        self._sizes: dict[str, int] = {}

    def close(self) -> None:
        """Remove what nobody took."""
        self._directory.cleanup()

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add rows to a column."""
        with self._path(name).open("ab") as file:
            values.tofile(file)
        self._sizes[name] = self._sizes.get(name, 0) + len(values)

    def take(self, name: str, dtype: np.dtype[Any] | type) -> NDArray[Any]:
        """The column as a read-only array over its file, which loses its name: the disk is freed with the array."""
        if not self._sizes.get(name):
            return np.zeros(0, dtype=dtype)
        path = self._path(name)
        array = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        path.unlink()
        return array

    def _path(self, name: str) -> Path:
        return Path(self._directory.name) / f"{name}.bin"
