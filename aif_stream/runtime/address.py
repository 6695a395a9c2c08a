"""``$AIF_HOME/run.toml``: where the running stack is, for every other verb."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def published_address(home: Path, settings: Mapping[str, str]) -> Iterator[Path]:
    """Write the file whole or not at all, readable by its owner only; remove it at the end if it is still ours."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "run.toml"
    lines = [f"# aif up, process {os.getpid()}", *(f"{name} = {_quote(value)}" for name, value in settings.items())]
    text = "\n".join(lines) + "\n"
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                path.unlink()


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
