"""A role that ends by itself is named with its exit code and its last error, in one line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aif_stream.embedded.process import ServerProcess
from aif_stream.errors import AifError
from aif_stream.runtime.roles import Roles


async def test_role_that_ends_is_named_with_its_cause_in_one_line(tmp_path: Path) -> None:
    roles = Roles(tmp_path, {"AIF_INDEX_BUCKETS": "many"})
    roles.start("nearline")
    with pytest.raises(AifError) as caught:
        await asyncio.wait_for(roles.watch(), 60)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("aif nearline ended by itself (exit code 1): error: AIF_INDEX_BUCKETS")
    assert line.endswith(f"read {tmp_path / 'nearline.log'}")
    assert await roles.stop() == []


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("up\nerror: no topic → aif topics apply\n", "error: no topic → aif topics apply"),
        ("error: no topic\nThe end.\n\n", "error: no topic"),
        ("Traceback (most recent call last):\n  File x\nZeroDivisionError: planted\n", "ZeroDivisionError: planted"),
        ("", ""),
        ("x" * 5000, "x" * 400),
    ],
)
async def test_last_error_is_the_line_that_tells_most(tmp_path: Path, written: str, line: str) -> None:
    process = ServerProcess("server", ["/bin/echo"], directory=tmp_path, log=tmp_path / "log")
    (tmp_path / "log").write_text(written)
    assert process.last_error() == line
