"""Retiring a version: what is refused, what is gone afterwards, and what a retirement that was broken off leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from pathlib import Path

import msgspec
import pytest

from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.versions import read_versions
from aif_stream.domain.versions import VersionState
from aif_stream.errors import VersionError
from aif_stream.index.leases import SERVE, LeaseBook
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import rollout
from aif_stream.nearline.retirement import retire_version
from tests.command import aif, aif_json
from tests.model_builders import small_config
from tests.nearline_builders import T0_MS, Stack, artefact, worker
from tests.stack import eventually

SECOND = ModelVersion.init(small_config(), 5, name="second")


async def _two_versions(stack: Stack, home: Path, items: int = 20) -> str:
    """Items, the first version replaced by the second; returns the first one's name."""
    await stack.publish_model(home)
    for number in range(items):
        await stack.put.item(str(number), T0_MS + number)
    await stack.has(str(items - 1), T0_MS + items - 1)
    await rollout.publish_version(stack.settings, artefact(home / "second", SECOND), activate=True)
    return stack.model.name


async def test_a_retired_version_is_unlisted_its_rows_are_gone_and_live_writes_go_on(
    stack: Stack, tmp_path: Path
) -> None:
    async with worker(stack.settings):
        first = await _two_versions(stack, tmp_path)
        assert await stack.store.count_rows(first) == 20
        done = await retire_version(stack.settings, first)
        assert (done.rows, done.again) == (20, False)
        assert await stack.store.versions() == {"second"}
        for number in range(20):
            await stack.put.item(str(number), T0_MS + 1_000)
        await stack.has("19", T0_MS + 1_000)
        assert await stack.store.count_rows(first) == 0
        assert await stack.store.count_rows("second") == 20
        again = await retire_version(stack.settings, first)
    assert (again.rows, again.again) == (0, True)
    book = await read_versions(stack.settings)
    assert (book.active, book.state_of(first)) == ("second", VersionState.RETIRED)


async def test_active_unknown_and_served_versions_are_not_retired(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        first = await _two_versions(stack, tmp_path, 1)
    with pytest.raises(VersionError, match="second is active"):
        await retire_version(stack.settings, "second")
    with pytest.raises(VersionError, match="third is unknown"):
        await retire_version(stack.settings, "third")
    with pytest.raises(VersionError, match="has a record"):
        await retire_version(stack.settings, first, orphan=True)
    leases = LeaseBook(stack.redis)
    await leases.put(SERVE, "server-1", {"model_version": first})
    with pytest.raises(VersionError, match="still held by server-1"):
        await retire_version(stack.settings, first)
    assert (await read_versions(stack.settings)).state_of(first) is VersionState.READY
    await leases.drop(SERVE, "server-1")
    await retire_version(stack.settings, first)


async def test_a_retirement_that_died_after_its_record_stops_no_worker(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        first = await _two_versions(stack, tmp_path)
        record = (await read_versions(stack.settings)).records[first]
        async with Producer(stack.settings, "test") as producer:
            await bus_versions.publish_version(producer, msgspec.structs.replace(record, state=VersionState.RETIRED))
        assert first in await stack.store.versions()
        times = itertools.count(T0_MS + 2_000)

        async def unlisted() -> bool:
            for number in range(20):  # any bucket may be the one that tells the worker
                await stack.put.item(str(number), next(times))
            return await stack.store.versions() == {"second"}

        await eventually(unlisted, what="the worker has taken the retired version from the list")
        last_ms = next(times)
        await stack.put.item("19", last_ms)
        await stack.has("19", last_ms)


async def test_rows_without_a_record_are_removed_as_orphans(stack: Stack) -> None:
    await stack.store.ensure_layout()
    await stack.store.add_version("lost")
    with pytest.raises(VersionError, match="unknown"):
        await retire_version(stack.settings, "lost")
    assert (await retire_version(stack.settings, "lost", orphan=True)).record is None
    assert await stack.store.versions() == set()


async def test_a_retired_version_is_not_revived(stack: Stack, tmp_path: Path) -> None:
    record = await rollout.publish_version(stack.settings, artefact(tmp_path / "one"))
    await retire_version(stack.settings, record.version)
    async with rollout.open_rollout(stack.settings) as steps:
        with pytest.raises(VersionError, match="was retired meanwhile"):
            await steps.finish(record.version)
        with pytest.raises(VersionError, match="is retired, not ready"):
            await steps.activate(record.version)
        with pytest.raises(VersionError, match="is retired"):
            await steps.publish(tmp_path / "one")


async def test_the_verbs_refuse_clearly_and_exit_1(stack: Stack, tmp_path: Path) -> None:
    directory = str(artefact(tmp_path / "one", SECOND))
    settings = dataclasses.replace(stack.settings, serve_url="http://127.0.0.1:9")
    code, _, err = await aif(settings, "model", "publish", directory)
    assert code == 0, err
    refusals = {
        ("publish", directory): "published before and is rebuilding",
        ("activate", "second"): "rebuilding, not ready: 0 of 8 buckets",
        ("activate", "nobody"): "version nobody is unknown",
        ("retire", "nobody"): "version nobody is unknown",
        ("rollback",): "no version to go back to",
    }
    answers = await asyncio.gather(*(aif(settings, "model", *words) for words in refusals))
    for (words, problem), (code, _, err) in zip(refusals.items(), answers, strict=True):
        assert code == 1, (words, err)
        assert problem in err
    async with worker(stack.settings):
        code, out, err = await aif(settings, "model", "status", "--watch", "--json")
        assert code == 0, err
        last = msgspec.json.decode(out.splitlines()[-1])
        assert (last[0]["rebuild"]["done"], last[0]["coverage"]) == (8, 1.0)
    # Every bucket is rebuilt: that nobody waited for it does not keep it from being activated.
    code, _, err = await aif(settings, "model", "activate", "second")
    assert code == 0, err
    code, _, err = await aif(settings, "model", "retire", "second")
    assert code == 1, err
    assert "second is active" in err
    code, found = await aif_json(settings, "model", "list")
    assert [(v["version"], v["state"]) for v in found] == [("second", "active")]
