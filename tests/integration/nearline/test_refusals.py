"""What cannot be rolled out is refused, says why, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aif_stream.bus.versions import read_versions
from aif_stream.domain.versions import VersionState
from aif_stream.errors import ArtefactError, VersionError
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.artefacts import install
from aif_stream.nearline.gate import activate_judged
from aif_stream.nearline.retirement import retire_version
from aif_stream.nearline.rollout import activate_version, publish_version, rollback_version
from tests.model_builders import small_config, small_version
from tests.nearline_builders import Stack, artefact

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


def flipped(file: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        data = bytearray((directory / file).read_bytes())
        data[len(data) // 2] ^= 0x10
        (directory / file).write_bytes(bytes(data))

    return damage


def without(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def manifest_with(**fields: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        found = json.loads((directory / MANIFEST).read_bytes())
        (directory / MANIFEST).write_text(json.dumps({**found, **fields}))

    return change


DAMAGES = {
    "a flipped byte of the weights": (flipped(WEIGHTS), "is not what its manifest names"),
    "a cut file": (lambda d: os.truncate(d / WEIGHTS, 100), "is not what its manifest names"),
    "no weights": (without(WEIGHTS), "No such file"),
    "no manifest": (without(MANIFEST), "No such file|is no artefact|manifest"),
    "another format": (manifest_with(schema=99), "schema"),
    "another shape than it says": (manifest_with(row_bytes=7), "row"),
    "a name that could leave its directory": (manifest_with(version="../../etc"), "no version name"),
}


async def test_a_damaged_artefact_is_refused_with_its_reason_before_anything_is_said(
    stack: Stack, tmp_path: Path
) -> None:
    whole = artefact(tmp_path / "whole")
    for number, (damage, problem) in enumerate(DAMAGES.values()):
        directory = shutil.copytree(whole, tmp_path / str(number))
        damage(directory)
        with pytest.raises(ArtefactError, match=problem) as caught:
            await publish_version(stack.settings, directory)
        assert str(directory) in str(caught.value)
    assert not (await read_versions(stack.settings)).records
    assert not stack.settings.models_dir.exists()


@contextmanager
def small_files(limit_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_be_written_whole_leaves_nothing_and_works_when_it_may(tmp_path: Path) -> None:
    one, home = artefact(tmp_path / "one"), tmp_path / "models" / "v"
    with small_files(8192), pytest.raises(ArtefactError, match="File too large") as caught:
        install(one, home)
    assert "AIF_MODELS_DIR" in caught.value.mend
    assert list(home.parent.iterdir()) == []
    assert install(one, home) == home


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(ArtefactError, match="No space left on device"):
            install(artefact(tmp_path / "one"), disk / "models" / "v")
        assert list((disk / "models").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_states_that_allow_no_step_are_named(stack: Stack, tmp_path: Path) -> None:
    settings = stack.settings
    name = (await publish_version(settings, artefact(tmp_path / "one"))).version
    for activation in (activate_version(settings, name), activate_judged(settings, name)):
        with pytest.raises(VersionError, match=f"version {name} is rebuilding, not ready: 0 of 8 buckets are done"):
            await activation
    with pytest.raises(VersionError, match="version nobody is unknown"):
        await activate_version(settings, "nobody")
    with pytest.raises(VersionError, match="no version to go back to"):
        await rollback_version(settings)
    with pytest.raises(VersionError, match="was published before and is rebuilding"):
        await publish_version(settings, tmp_path / "one", resume=False)
    other = ModelVersion.init(small_config(), 5, name=name)
    with pytest.raises(VersionError, match="was published from another artefact"):
        await publish_version(settings, artefact(tmp_path / "two", other))
    await retire_version(settings, name)
    with pytest.raises(VersionError, match=f"version {name} is retired, not ready"):
        await activate_version(settings, name, 5)
    with pytest.raises(VersionError, match=f"version {name} is retired"):
        await publish_version(settings, tmp_path / "one")


async def test_who_waits_for_a_rebuild_hears_at_once_that_the_version_was_retired(stack: Stack, tmp_path: Path) -> None:
    directory = artefact(tmp_path / "one")
    waiting = asyncio.create_task(publish_version(stack.settings, directory, wait=True))
    name = small_version().name
    while (await read_versions(stack.settings)).records.get(name) is None or not await _rebuilding(stack, name):
        assert not waiting.done()
    await retire_version(stack.settings, name)
    with pytest.raises(VersionError, match="was retired meanwhile"):
        async with asyncio.timeout(10):  # tasks that stand still are looked at after 30 s only
            await waiting


async def _rebuilding(stack: Stack, name: str) -> bool:
    return (await read_versions(stack.settings)).state_of(name) is VersionState.REBUILDING
