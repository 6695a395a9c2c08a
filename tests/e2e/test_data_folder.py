"""``aif up --data DIR`` with own items, users, behaviors and models: what was acknowledged survives stop and start."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from aif_stream import settings as settings_module
from aif_stream.bus.events import event_headers
from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.reader import LogReader
from aif_stream.bus.request_log import read_requests
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, MODEL_UPDATES, REQUESTS
from aif_stream.bus.versions import read_versions
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType
from aif_stream.domain.versions import VersionBook
from aif_stream.embedded.segments import entries
from aif_stream.model.artefact import save
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.rollout import publish_version, rollback_version
from aif_stream.settings import Settings
from tests.e2e.up import Up, ended, running
from tests.model_builders import make_items, small_version
from tests.stack import eventually

pytestmark = pytest.mark.timeout(900)  # the first test waits for two starts of six processes
ITEMS = 80
USER, STRANGER = "anna", "nobody"


@dataclass(slots=True)
class Kept:
    """What the first stack was told and answered."""

    data: Path
    home: Path
    time_ms: int
    answers: dict[str, Any] = field(default_factory=dict)
    versions: VersionBook = field(default_factory=VersionBook)


@asynccontextmanager
async def stack(kept: Kept, *more: str) -> AsyncIterator[Up]:
    async with running(kept.home, more=("--data", str(kept.data), *more)) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A first stack that gets a team's data and models, answers with them, and is stopped."""
    root = tmp_path_factory.mktemp("kept")
    kept = Kept(root / "data", root / "home", now_ms() - 60_000)
    async with stack(kept, "--items", "0") as up:
        assert up.ready_line == f"ready {up.url} (no active version)"
        settings = settings_of(up)
        await publish(settings, kept.time_ms)
        for seed, name in enumerate(("own-1", "own-2")):
            save(root / name, ModelVersion(name, small_version(seed=seed).net))
            await publish_version(settings, root / name, activate=True)
        for user in (USER, STRANGER):
            kept.answers[user] = await eventually(lambda u=user: full_answer(up, u), what="own-2 ranks every item")
        assert kept.answers[USER]["items"] != kept.answers[STRANGER]["items"], "profile and history matter"
        kept.versions = await read_versions(settings)
        await eventually(lambda: letter_numbers(settings), what="the bad record is a dead letter")
        await eventually(lambda: logged(settings, kept.answers), what="the requests are in the log")
        await up.stop()
    return kept


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def again(kept: Kept) -> AsyncIterator[Up]:
    """The second start on the same folder, without any option."""
    async with stack(kept) as up:
        yield up


def settings_of(up: Up) -> Settings:
    return settings_module.load(environ={"AIF_HOME": str(up.home)})[0]


def lines(time_ms: int, **changed: Any) -> list[bytes]:
    items = (msgspec.to_builtins(item) for item in make_items(ITEMS))
    return [json.dumps({**item, "event_time_ms": time_ms, **changed}).encode() for item in items]


async def publish(settings: Settings, time_ms: int) -> None:
    async with EventPublisher(settings) as events:
        assert (await events.publish_lines("items", lines(time_ms))).acknowledged == ITEMS
        await (await events.user(USER, attributes={"city": "oslo", "age": 31}))
        for item in range(0, 20, 2):
            await (await events.behavior(USER, str(item), "click", event_time_ms=time_ms + item))
    async with Producer(settings, "test", topics=[ITEM_UPDATES]) as producer:
        headers = event_headers(EventType.ITEM_UPSERTED, "e", "test", time_ms)
        await (await producer.send(ITEM_UPDATES, b"bad", b"{", headers))


async def full_answer(up: Up, user: str, version: str = "own-2") -> dict[str, Any] | None:
    answer = await up.rank(user_id=user, k=ITEMS, deadline_ms=2000)
    whole = answer["coverage"]["scored"] == ITEMS and not answer["degraded"] and answer["model_version"] == version
    return answer if whole else None


async def letter_numbers(settings: Settings) -> list[int]:
    async with LetterLog(settings) as letters:
        return list(letters.book.entries)


async def logged(settings: Settings, answers: dict[str, Any]) -> bool:
    found = {request.request_id async for request in read_requests(settings, 0, now_ms())}
    return found >= {answer["request_id"] for answer in answers.values()}


async def is_journaled(settings: Settings, data: Path) -> bool:
    """Whether the folder has every record that the broker has."""
    for topic in (ITEM_UPDATES, BEHAVIORS, MODEL_UPDATES, REQUESTS):
        async with LogReader(settings, topic) as reader:
            for number, end in (await reader.end_offsets()).items():
                files = sorted((data / "journal" / topic / str(number)).glob("*.log"))
                kept = [batch.next_offset for path in files for batch, _ in entries(path.read_bytes())]
                if max([int(files[-1].stem), *kept]) < end:
                    return False
    return True


async def test_first_request_after_a_restart_is_answered_in_full(kept: Kept, again: Up) -> None:
    assert again.ready_line == f"ready {again.url}"
    for user in (USER, STRANGER):
        answer = await again.rank(user_id=user, k=ITEMS, deadline_ms=2000)
        assert answer["degraded"] == []
        assert answer["model_version"] == "own-2"
        assert answer["coverage"] == kept.answers[user]["coverage"], "nothing was seeded, nothing is missing"
        assert answer["items"] == kept.answers[user]["items"]


async def test_first_explanation_after_the_ready_line_completes(again: Up) -> None:
    answer = await again.rank(user_id=USER, k=1, explain=1, deadline_ms=2000)
    name = answer["explanations"][0]["explanation_id"]

    async def complete() -> bool:
        async with again.http.get(f"{again.url}/v1/explanations/{name}") as reply:
            return reply.status == 200 and (await reply.json())["state"] == "complete"

    # At the lowest priority of the operating system: on a busy machine it takes what others leave.
    await eventually(complete, what="the explanation is complete", within_s=300)


async def test_versions_letters_and_requests_survive_a_restart(kept: Kept, again: Up) -> None:
    settings = settings_of(again)
    versions = await read_versions(settings)
    assert (versions.records, versions.active) == (kept.versions.records, kept.versions.active)
    assert await letter_numbers(settings) == [0]
    assert await logged(settings, kept.answers)


async def test_folder_of_a_running_stack_is_refused(kept: Kept, again: Up, tmp_path: Path) -> None:
    second = await ended(tmp_path / "home", "up", "--data", str(kept.data))
    assert second.code == 1
    assert f"another aif up uses {kept.data} (process {again.process.pid})" in second.err


async def test_event_of_an_old_time_wins_by_its_new_offset(kept: Kept, again: Up) -> None:
    """Order is (event time, offset): the embedded broker counts anew, orders must not."""
    async with EventPublisher(settings_of(again)) as events:
        late = lines(kept.time_ms - 1, category="older")[:1]
        same = lines(kept.time_ms, category="other", attributes={"price": 49.0})[1:2]
        assert (await events.publish_lines("items", [*late, *same])).acknowledged == 2
    before = {item["item_id"]: item["score"] for item in kept.answers[STRANGER]["items"]}

    async def changed() -> set[str]:
        answer = await again.rank(user_id=STRANGER, k=ITEMS, deadline_ms=2000)
        return {item["item_id"] for item in answer["items"] if before[item["item_id"]] != item["score"]}

    assert await eventually(changed, what="the update is in the answer") == {"1"}


async def test_everything_survives_kill_9_of_all_processes(kept: Kept, again: Up) -> None:
    settings = settings_of(again)
    await rollback_version(settings)
    before = await eventually(lambda: full_answer(again, USER, "own-1"), what="own-1 is active again")
    await eventually(lambda: is_journaled(settings, kept.data), what="the journal has caught up", within_s=10)
    await again.kill9()
    async with stack(kept, "--items", "0", "--users", "500") as up:
        assert up.ready_line == f"ready {up.url}"
        answer = await up.rank(user_id=USER, k=ITEMS, deadline_ms=2000)
        assert (answer["degraded"], answer["model_version"]) == ([], "own-1")
        assert (answer["coverage"], answer["items"]) == (before["coverage"], before["items"])
        assert (await rollback_version(settings_of(up))).version == "own-2"
        assert await letter_numbers(settings_of(up)) == [0]


async def test_other_numbers_than_the_folder_has_are_exit_2(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "aif.json").write_text('{"format": 1, "items": 0, "users": 0, "seeded": true}')
    refused = await ended(tmp_path / "home", "up", "--data", str(tmp_path / "data"), "--items", "7")
    assert refused.code == 2
    assert "was created with --items 0, not 7" in refused.err
    assert not (tmp_path / "data" / "redis").exists(), "nothing was started"
