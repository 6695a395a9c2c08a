"""Hostile records of ``aif.model-updates`` beside a worker: it works on, starts again, and keeps its live version."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aif_stream.bus.topics import MODEL_UPDATES, REBUILD_TASKS
from aif_stream.bus.versions import read_versions
from aif_stream.domain.ids import key_of
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.index.keys import Buckets
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.rebuild import RebuildTask, task_record
from tests.hostile_builders import version_values
from tests.model_builders import small_config
from tests.nearline_builders import BUCKETS, T0_MS, Stack, artefact, item_line, worker
from tests.stack import eventually

ARTEFACTS = ("/nowhere", "relative", "/dev/null", "/x" * 2_000, "/proc/self/mem", "~", "/", "\x1b[2J")


async def test_a_worker_survives_hostile_version_records(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        name = stack.model.name
        good = (await read_versions(stack.settings)).records[name]
        bad = version_values(good.encode()).values()
        for number, value in enumerate(bad):
            await stack.put.raw(MODEL_UPDATES, name.encode(), value)
            await stack.put.item(str(number), T0_MS)
        for number in range(len(bad)):
            await stack.has(str(number), T0_MS)
            await stack.check_row(str(number), item_line(str(number)), T0_MS)
        for number, path in enumerate(ARTEFACTS):  # records that can be read, of artefacts that cannot
            record = msgspec.structs.replace(good, version=f"other-{number}", artefact=path, state=VersionState.READY)
            await stack.put.raw(MODEL_UPDATES, record.version.encode(), record.encode())
    async with worker(stack.settings):  # it starts behind all of them
        await stack.put.item("again", T0_MS)
        await stack.has("again", T0_MS)
        await stack.check_row("again", item_line("again"), T0_MS)
        book = await read_versions(stack.settings)
        assert (book.active, len(book.records)) == (name, 1 + len(ARTEFACTS))

        async def mended() -> bool:
            return not (await read_versions(stack.settings)).displaced

        await eventually(mended, what="the worker has written the good record again")


async def test_a_rebuild_without_its_artefact_waits_for_it(
    stack: Stack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The artefact of a version that is loaded goes: its rebuild waits until it is back, the other lanes work."""
    caplog.set_level(logging.INFO, "aif_stream.nearline")
    home = artefact(tmp_path / "other", ModelVersion.init(small_config(), 5, name="other"))
    record = VersionRecord(
        version="other", state=VersionState.READY, artefact=str(home), manifest_sha256="0", created_ms=1
    )
    key, task, headers = task_record(RebuildTask("other", Buckets(BUCKETS).of(key_of("1"))))
    async with worker(stack.settings):
        await stack.put.item("1", T0_MS)
        await stack.has("1", T0_MS)
        await stack.put.raw(MODEL_UPDATES, b"other", record.encode())
        await _logged(caplog, "version.loaded version=other")
        await stack.store.add_version("other")
        home.rename(tmp_path / "away")
        await stack.put.raw(REBUILD_TASKS, key, task, headers)
        await _logged(caplog, "rebuild write")
        await stack.put.item("2", T0_MS)
        await stack.has("2", T0_MS)
        (tmp_path / "away").rename(home)

        async def rebuilt() -> bool:
            _, found = await stack.store.read_rows("other", stack.model.layout, np.array([1], np.uint64))
            return bool(found[0])

        await eventually(rebuilt, what="the row of the version is there")


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async def there() -> bool:
        return any(text in entry.getMessage() for entry in caplog.records)

    await eventually(there, what=f"the log says {text}")
