"""Request lines in files: JSONL, zstd when the name ends in .zst; and the times that name a range of the log."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import cramjam

from aif_stream.clock import from_rfc3339
from aif_stream.errors import BadInput

ZSTD: Final = ".zst"
# Level 3 of zstd: its default, 4-6 times smaller for candidate lists at some 200 MB/s.
_LEVEL: Final = 3
_BLOCK_BYTES: Final = 1 << 20
_AGO: Final = re.compile(r"-?(\d{1,15}(?:\.\d{1,15})?)(ms|s|m|h|d)")
_LAST_MS: Final = 253_402_300_799_999  # the end of the year 9999, the last that RFC 3339 can write
_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_time(text: str, now_ms: int) -> int:
    """``now``, ``-90s`` ``-15m`` ``-1h`` ``-2d`` (before now; without the sign, too), ms since the epoch, or RFC
    3339 -> ms since the epoch, 0 for what is longer ago.

    Raises ``BadInput``.
    """
    text = text.strip()
    if text == "now":
        return now_ms
    if ago := _AGO.fullmatch(text):
        return max(0, now_ms - round(float(ago[1]) * _UNIT_MS[ago[2]]))
    try:
        ms = int(text) if text.isascii() and text.isdigit() else from_rfc3339(text)
        if not 0 <= ms <= _LAST_MS:
            raise ValueError(ms)
        return ms
    except ValueError:
        raise BadInput(
            f"{text!r} is no time", mend="now, -15m, -1h, -2d, 2026-01-31T12:00:00Z, or ms since the epoch"
        ) from None


def parse_range(text: str, now_ms: int) -> tuple[int, int]:
    """``SINCE..UNTIL`` (either may be empty: everything, now) -> (since ms, until ms). Raises ``BadInput``."""
    first, dots, last = text.partition("..")
    if not dots:
        raise BadInput(f"{text!r} is no range", mend="kafka:SINCE..UNTIL, for example kafka:-1h..now")
    since = parse_time(first, now_ms) if first.strip() else 0
    until = parse_time(last, now_ms) if last.strip() else now_ms
    if since >= until:
        raise BadInput(f"{text!r} ends before it begins")
    return since, until


@contextmanager
def read_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file. Raises ``BadInput`` when it cannot be read or is not what its name says."""
    with tempfile.NamedTemporaryFile(prefix="aif-replay-") as plain:
        try:
            if path.name.endswith(ZSTD):
                cramjam.zstd.decompress_into(path.read_bytes(), cramjam.File(plain.name))
                path = Path(plain.name)
            with path.open("rb") as file:
                yield iter(file)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from None
        except cramjam.DecompressionError as error:
            raise BadInput(f"{path}: {error}", mend="a whole file that zstd wrote") from None


@contextmanager
def write_lines(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that adds a line to the file, compressed when its name says so.

    The file appears whole, under its name, when the context ends well; else nothing is left of it. What is no file (a
    pipe, ``/dev/stdout``, a link to something) is written as it goes: nothing may take its place. Raises ``BadInput``
    when it cannot be written.
    """
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    part = path if in_place else path.with_name(path.name + ".part")
    frame = cramjam.zstd.Compressor(_LEVEL) if path.name.endswith(ZSTD) else None
    block = bytearray()
    try:
        with part.open("wb") as file:

            def flush() -> None:
                if frame is None:
                    file.write(block)
                elif block:
                    frame.compress(bytes(block))
                    file.write(bytes(frame.flush()))
                block.clear()

            def write(line: bytes) -> None:
                block.extend(line)
                block.append(0x0A)
                if len(block) >= _BLOCK_BYTES:
                    flush()

            yield write
            flush()
            if frame is not None:
                file.write(bytes(frame.finish()))
        if not in_place:
            part.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    finally:
        if not in_place:
            part.unlink(missing_ok=True)
