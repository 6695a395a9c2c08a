"""Publishing, rebuilding, activating and rolling back versions on an embedded broker and Redis."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from aif_stream.bus.topics import DEAD_LETTERS, REBUILD_TASKS
from aif_stream.bus.versions import read_versions
from aif_stream.domain.ids import key_of
from aif_stream.domain.versions import VersionState
from aif_stream.errors import ArtefactError, VersionError
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.nearline.rebuild import RebuildTask
from aif_stream.telemetry import EVENTS_SKIPPED
from tests.model_builders import small_config, small_version
from tests.nearline_builders import T0_MS, Stack, artefact, item_line, worker
from tests.stack import eventually


def _other(name: str = "second", seed: int = 5) -> ModelVersion:
    return ModelVersion.init(small_config(), seed, name=name)


async def test_a_new_version_gets_the_row_that_live_writes_give_it(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        for number in range(40):
            await stack.put.item(
                str(number), T0_MS + number, item_line(str(number), content_vector=[0.1 * number] * 12)
            )
        await stack.put.removal("3", T0_MS + 100)
        await stack.has("3", T0_MS + 100)
        await stack.has("39", T0_MS + 39)
        second = _other()
        seen: list[rollout.Progress] = []
        await rollout.publish_version(
            stack.settings, artefact(tmp_path / "second", second), activate=True, on_progress=seen.append
        )
        keys = np.array([key_of(str(n)) for n in range(40)], dtype=np.uint64)
        rebuilt, found = await stack.store.read_rows("second", second.layout, keys)
        assert found.tolist() == [n != 3 for n in range(40)]
        for number in range(40):
            if number == 3:
                continue
            line = item_line(str(number), content_vector=[0.1 * number] * 12, title="again")
            await stack.put.item(str(number), T0_MS + 1000, line)
            await stack.has(str(number), T0_MS + 1000)
        live, _ = await stack.store.read_rows("second", second.layout, keys)
    assert seen[-1].complete
    assert seen[-1].items == 39
    for name in ("h", "t", "w", "sig", "category", "flags"):
        assert live[name][found].tobytes() == rebuilt[name][found].tobytes()


async def test_a_version_is_published_once_and_again_without_harm(stack: Stack, tmp_path: Path) -> None:
    directory = artefact(tmp_path / "artefact")
    async with worker(stack.settings):
        first = await rollout.publish_version(stack.settings, directory, activate=True)
        again = await rollout.publish_version(stack.settings, directory, activate=True)
    assert first == again
    assert (await read_versions(stack.settings)).active == first.version


async def test_another_artefact_under_a_published_name_is_refused(stack: Stack, tmp_path: Path) -> None:
    name = small_version().name
    await rollout.publish_version(stack.settings, artefact(tmp_path / "one"))
    with pytest.raises(VersionError, match="another artefact"):
        await rollout.publish_version(stack.settings, artefact(tmp_path / "two", _other(name)))


async def test_a_version_that_is_not_rebuilt_cannot_be_activated(stack: Stack, tmp_path: Path) -> None:
    record = await rollout.publish_version(stack.settings, artefact(tmp_path / "one"))
    assert record.state is VersionState.REBUILDING
    with pytest.raises(VersionError, match="rebuilding, not ready"):
        await rollout.activate_version(stack.settings, record.version)


async def test_rollback_goes_to_the_version_before(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        with pytest.raises(VersionError, match="no version to go back to"):
            await rollout.rollback_version(stack.settings)
        await rollout.publish_version(stack.settings, artefact(tmp_path / "second", _other()), activate=True)
        assert (await rollout.rollback_version(stack.settings)).version == stack.model.name
    assert (await read_versions(stack.settings)).active == stack.model.name


async def test_a_damaged_artefact_is_refused_before_anything_is_said(stack: Stack, tmp_path: Path) -> None:
    directory = artefact(tmp_path / "artefact")
    (directory / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(ArtefactError):
        await rollout.publish_version(stack.settings, directory)
    assert not (await read_versions(stack.settings)).records


async def test_a_worker_waits_for_a_version_that_it_cannot_load_and_goes_on_when_it_can(
    stack: Stack, tmp_path: Path
) -> None:
    record = await rollout.publish_version(stack.settings, artefact(tmp_path / "artefact", stack.model))
    weights = Path(record.artefact) / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    async with worker(stack.settings) as running:
        await stack.put.item("7", T0_MS)
        lane = running.lanes[0]

        async def waits() -> bool:
            return lane.lag_ms > 300

        await eventually(waits, what="the lane holds the event back")
        assert await stack.items("7") == [None]
        weights.write_bytes(whole)
        await stack.has("7", T0_MS)
        await stack.check_row("7", item_line("7"), T0_MS)


async def test_a_rebuild_task_that_makes_no_sense_becomes_a_dead_letter(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.raw(REBUILD_TASKS, b"1", b"[]")
        await stack.put.raw(REBUILD_TASKS, b"9999", b'{"version":"v","bucket":9999}')
        letters = await stack.topic(DEAD_LETTERS, 2)
    assert {dict(letter.headers)["aif_reason"] for letter in letters} == {b"unreadable", b"invalid"}


async def test_a_task_that_comes_again_is_not_done_again(stack: Stack, tmp_path: Path) -> None:
    skipped = EVENTS_SKIPPED.labels("rebuild", "done")
    async with worker(stack.settings):
        version = (await rollout.publish_version(stack.settings, artefact(tmp_path / "v"), wait=True)).version
        before = skipped._value.get()
        for bucket in range(3):
            await stack.put.raw(REBUILD_TASKS, b"%d" % bucket, msgspec.json.encode(RebuildTask(version, bucket)))

        async def all_skipped() -> bool:
            return bool(skipped._value.get() == before + 3)

        await eventually(all_skipped, what="three tasks passed over")


def test_install_is_whole_or_not_at_all_and_repeatable(tmp_path: Path) -> None:
    one = artefact(tmp_path / "one")
    home = tmp_path / "models" / "v"
    assert rollout.install(one, home) == home
    assert rollout.install(one, home) == home
    with pytest.raises(ArtefactError, match="another artefact"):
        rollout.install(artefact(tmp_path / "two", _other("x")), home)
    assert [path.name for path in home.parent.iterdir()] == ["v"]
