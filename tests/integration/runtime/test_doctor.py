"""What `aif doctor` finds on a stack that is well, and on one where each thing in turn is not."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from aif_stream.bus import versions as bus_versions
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import ITEM_UPDATES, MODEL_UPDATES
from aif_stream.bus.versions import read_versions
from aif_stream.domain.versions import VersionState
from aif_stream.nearline import rollout
from aif_stream.runtime.doctor import examine
from aif_stream.runtime.findings import Finding, Level
from aif_stream.settings import Settings
from tests.command import aif_json
from tests.conftest import BrokerFactory
from tests.hostile_builders import version_values
from tests.letter_builders import KINDS
from tests.nearline_builders import T0_MS, Stack, artefact, nearline_settings, open_stack, worker
from tests.stack import topics

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
async def stack(embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A worker has been there: a version is active, ten items have rows. No server runs."""
    broker = await embedded_broker(topics())
    settings = nearline_settings(broker.bootstrap, redis_url, tmp_path)
    settings = dataclasses.replace(settings, serve_url=NOBODY, retrieval_urls=NOBODY)
    async with open_stack(settings) as made:
        async with worker(settings):
            await made.publish_model(tmp_path)
            for number in range(10):
                await made.put.item(str(number), T0_MS + number)
            await made.has("9", T0_MS + 9)
        yield made


async def _found(settings: Settings, *checks: str) -> list[Finding]:
    """Findings of these checks that are not ok."""
    return [f for f in await examine(settings) if f.check in checks and f.level is not Level.OK]


async def test_a_stack_that_is_well_has_findings_only_for_the_servers_that_do_not_run(stack: Stack) -> None:
    found = await examine(stack.settings)
    errors = [finding for finding in found if finding.level is Level.ERROR]
    assert sorted(finding.check for finding in errors) == ["retrieval", "serve"]
    assert found[: len(errors)] == errors  # errors first
    assert all(finding.mend for finding in found if finding.level is not Level.OK)
    well = {finding.check for finding in found if finding.level is Level.OK}
    assert well >= {"broker", "topics", "permissions", "clocks", "redis", "memory", "marks", "rows", "versions"}
    code, view = await aif_json(stack.settings, "doctor")
    assert (code, view["status"], len(view["findings"])) == (3, "error", len(found))


async def test_rows_of_unknown_and_retired_versions_are_orphans_with_the_verb_that_removes_them(stack: Stack) -> None:
    book = await read_versions(stack.settings)
    name = stack.model.name
    await stack.redis.call("HSET", b"{n2o:3}:rows:lost", b"k" * 8, b"r" * 300)
    await stack.store.add_version("ghost")
    record = msgspec.structs.replace(book.records[name], version="old", state=VersionState.RETIRED)
    async with Producer(stack.settings, "test") as producer:
        await bus_versions.publish_version(producer, record)
    await stack.redis.call("HSET", b"{n2o:1}:rows:old", b"k" * 8, b"r" * 300)
    found = {finding.mend: finding for finding in await _found(stack.settings, "rows")}
    assert found.keys() == {
        "aif model retire lost --orphan",
        "aif model retire ghost --orphan",
        "aif model retire old",
    }
    assert found["aif model retire ghost --orphan"].level is Level.ERROR  # live writes wait for it
    assert "1 rows" in found["aif model retire lost --orphan"].what


async def test_a_live_version_that_a_bucket_does_not_list_is_an_error(stack: Stack) -> None:
    await stack.redis.call("SREM", b"{n2o:2}:versions", stack.model.name)
    (finding,) = await _found(stack.settings, "rows")
    assert (finding.level, "7 of 8 buckets" in finding.what) == (Level.ERROR, True)


async def test_artefacts_that_are_damaged_missing_or_strays_are_named(stack: Stack, tmp_path: Path) -> None:
    home = stack.settings.models_dir / stack.model.name
    artefact(stack.settings.models_dir / "stray", type(stack.model).init(stack.model.config, 3, name="stray"))
    (finding,) = await _found(stack.settings, "versions")
    assert (finding.level, "never published" in finding.what) == (Level.WARNING, True)
    weights = home / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    first = (await _found(stack.settings, "versions"))[0]
    assert (first.level, "is not what its manifest names" in first.what) == (Level.ERROR, True)
    (home / "manifest.json").unlink()
    assert "No such file" in (await _found(stack.settings, "versions"))[0].what


async def test_records_that_hide_a_version_are_warnings(stack: Stack) -> None:
    name = stack.model.name
    good = (await read_versions(stack.settings)).records[name].encode()
    for value in version_values(good).values():
        await stack.put.raw(MODEL_UPDATES, name.encode(), value)
    offset = await stack.put.raw(MODEL_UPDATES, name.encode(), b"{")
    await stack.put.raw(MODEL_UPDATES, b"nobody", b"{")
    nobody, known = sorted(await _found(stack.settings, "versions"), key=lambda finding: name in finding.what)
    assert {nobody.level, known.level} == {Level.WARNING}
    assert (f"offset {offset}" in known.what, "active" in known.what, "nobody" in nobody.what) == (True, True, True)


async def test_dead_letters_and_a_roll_out_that_was_broken_off_are_warnings(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.put.raw(ITEM_UPDATES, *KINDS[("invalid", "category")]("7"))
        await stack.topic("aif.dead-letters", 1)
    second = type(stack.model).init(stack.model.config, 3, name="second")
    await rollout.publish_version(stack.settings, artefact(tmp_path / "second", second))
    await stack.redis.call("SREM", b"{n2o:2}:versions", "second")
    letters, rows = await _found(stack.settings, "dead letters", "rows")
    if letters.check != "dead letters":
        letters, rows = rows, letters
    assert (letters.level, "1 wait: 1 invalid" in letters.what) == (Level.WARNING, True)
    assert (rows.level, "--resume" in rows.mend) == (Level.WARNING, True)


async def test_an_emptied_redis_is_seen_by_its_marks_and_lists(stack: Stack) -> None:
    await stack.redis.call("FLUSHALL")
    found = await _found(stack.settings, "marks", "rows")
    marks = [finding for finding in found if finding.check == "marks"]
    # The embedded broker forgets commits with the group's last member; on Kafka they are compared (tests/kafka).
    assert marks
    assert {finding.level for finding in marks} == {Level.WARNING}
    assert any("0 of 8 buckets" in finding.what for finding in found)


async def test_without_redis_or_kafka_the_rest_is_looked_at_and_the_gap_is_named(stack: Stack) -> None:
    found = await examine(dataclasses.replace(stack.settings, redis_url="redis://127.0.0.1:9/0", redis_timeout_s=2.0))
    assert any(f.check == "redis" and f.level is Level.ERROR for f in found)
    assert any(f.check == "versions" and f.level is Level.OK for f in found)
    assert "memory, marks, rows, serve" in next(f.what for f in found if f.check == "doctor")
    found = await examine(dataclasses.replace(stack.settings, kafka_bootstrap="127.0.0.1:9"))
    assert any(f.check == "broker" and f.level is Level.ERROR for f in found)
    assert any(f.check == "memory" for f in found)
    assert "without Kafka: topics" in next(f.what for f in found if f.check == "doctor")


async def test_missing_topics_are_named_once_and_so_is_what_could_not_be_looked_at(stack: Stack) -> None:
    found = await _found(
        dataclasses.replace(stack.settings, topic_prefix="other."), "topics", "doctor", "marks", "rows"
    )
    missing, rest = found
    assert (missing.check, rest.check) == ("topics", "doctor")
    assert all(name in missing.what for name in topics("other."))
    assert "marks" in rest.what
    assert "rows" in rest.what
    assert {missing.mend, rest.mend} == {"aif topics apply"}


async def test_a_redis_in_which_the_next_version_does_not_fit_is_an_error(stack: Stack) -> None:
    used = next(
        int(line.split(b":")[1])
        for line in (await stack.redis.call("INFO", "memory")).splitlines()
        if line.startswith(b"used_memory:")
    )
    try:
        await stack.redis.call("CONFIG", "SET", "maxmemory", used + 200_000)
        (finding,) = await _found(stack.settings, "memory")
        assert (finding.level, "more than 80%" in finding.what) == (Level.WARNING, True)
    finally:
        await stack.redis.call("CONFIG", "SET", "maxmemory", 0)
