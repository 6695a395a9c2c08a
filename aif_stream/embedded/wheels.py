"""Files that an installed wheel brought along, found without importing the package."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

# Not by name from an index: this project publishes no package there.
INSTALL = "in a checkout: pip install '.[embedded]'"


def wheel_file(distribution: str, wanted: Callable[[importlib.metadata.PackagePath], bool]) -> Path | None:
    """The first file of the distribution's own list that ``wanted`` accepts and that exists, else None."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if wanted(file))
    return next((path for path in paths if path.is_file()), None)
