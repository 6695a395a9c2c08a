"""The gate: a broken model does not answer, whatever is broken in it; a retrained one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch

from aif_stream.bus.producer import Producer
from aif_stream.bus.request_log import RequestLogWriter
from aif_stream.bus.topics import REQUESTS
from aif_stream.bus.versions import publish_version as publish_record
from aif_stream.bus.versions import read_versions
from aif_stream.cli.model_gate import activate_or_tell, show_gate
from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import entry_bytes
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.domain.request import AgeMs, Coverage, Freshness, RankAnswer, RankedItem, RankRequest, Timings
from aif_stream.domain.request_log import AnsweredRequest
from aif_stream.domain.versions import VersionRecord, VersionState
from aif_stream.errors import VersionError
from aif_stream.index.histories import HistoryStore
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import items_key, rows_key
from aif_stream.model.artefact import manifest_sha256, save
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.gate import GateRefused, activate_judged, judge
from aif_stream.nearline.rollout import activate_version, rollback_version
from tests.command import aif
from tests.model_builders import make_items, small_version
from tests.nearline_builders import T0_MS, Stack
from tests.online_builders import Index

ITEMS = make_items(120)


def made(name: str, change: Callable[[Net], None] | None = None) -> ModelVersion:
    """A version like the running one, but for a change of its weights."""
    net = deepcopy(small_version().net)
    if change is not None:
        with torch.no_grad():
            change(net)
    return ModelVersion(name, net)


def slightly(net: Net) -> None:
    generator = torch.Generator().manual_seed(1)
    for value in net.parameters():
        value.add_(0.02 * value.std() * torch.randn(value.shape, generator=generator) if value.numel() > 1 else 0)


def scaled(factor: float) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        for layer in (net.scorer.down, net.user_tower.down, net.user_tower.skip):  # logit = head + user · item
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    return change


def overflowing(net: Net) -> None:
    net.scorer.down.weight.fill_(3e38)


@asynccontextmanager
async def ready(stack: Stack, *others: ModelVersion) -> AsyncIterator[None]:
    """The small version is active, the others are ready; every item has its rows of all."""
    models = [ModelVersion("running", stack.model.net), *others]
    store, settings = stack.store, stack.settings
    await store.ensure_layout()
    async with Producer(settings, "test") as producer:
        for number, model in enumerate(models):
            await store.add_version(model.name)
            directory = settings.models_dir / model.name
            await asyncio.to_thread(save, directory, model)
            record = VersionRecord(
                version=model.name,
                state=VersionState.READY if number else VersionState.ACTIVE,
                artefact=str(directory),
                manifest_sha256=manifest_sha256(directory),
                created_ms=T0_MS,
                activation=0 if number else 1,
            )
            await publish_record(producer, record)
    index = Index(store, HistoryStore(stack.redis, 1000))
    await index.put_of_all(models, ITEMS)
    for user in range(5):
        entries = (entry_bytes(key_of(str(7 * user + i)), BehaviorKind.CLICK, T0_MS + i) for i in range(10))
        await index.histories.append({key_of(f"user {user}"): b"".join(entries)})
    yield


async def test_a_version_like_the_running_one_passes_and_is_activated(stack: Stack) -> None:
    async with ready(stack, made("next", slightly)):
        removal = ItemWrite(key_of("3"), "3", Order(2 * T0_MS, 0), None)
        layout = stack.model.layout
        await stack.store.write_live([removal], {name: np.zeros(1, layout.dtype) for name in ("running", "next")})
        record, report = await activate_judged(stack.settings, "next")
        assert report is not None
        assert (report.passed, report.compared_with, report.requests_from) == (True, "running", "sampled")
        assert {check.name: check.value for check in report.checks if check.limit == 1.0} == dict.fromkeys(
            ("coverage", "row_parity", "finite_scores", "distinct_scores"), 1.0
        )
        assert (record.state, record.note, record.replaces) == (VersionState.ACTIVE, "", "running")
    assert (await read_versions(stack.settings)).active == "next"


@pytest.mark.parametrize(
    ("change", "short"),
    [
        (scaled(0.0), {"distinct_scores", "rank_correlation", "overlap"}),
        (scaled(-1.0), {"rank_correlation", "overlap"}),
        (overflowing, {"finite_scores", "rank_correlation", "overlap", "score_shift"}),
    ],
    ids=["equal scores", "inverted", "overflowing"],
)
async def test_a_broken_model_does_not_answer(stack: Stack, change: Callable[[Net], None], short: set[str]) -> None:
    async with ready(stack, made("broken", change)):
        with pytest.raises(GateRefused) as caught:
            await activate_judged(stack.settings, "broken")
        with pytest.raises(GateRefused):
            await activate_judged(stack.settings, "broken", percent=5)
    assert short <= {check.name for check in caught.value.report.failures} | {"score_shift"}
    book = await read_versions(stack.settings)
    assert (book.active, book.canary, book.state_of("broken")) == ("running", None, VersionState.READY)


async def test_a_row_that_is_missing_or_wrong_is_named(stack: Stack) -> None:
    async with ready(stack, made("next")):
        key = key_of("5")
        bucket = stack.store.buckets.of(key)
        place, field = rows_key(bucket, "next"), key.to_bytes(8, "little")
        row = bytearray(await stack.redis.call("HGET", place, field))
        row[40] ^= 1
        await stack.redis.call("HSET", place, field, bytes(row))
        report = await judge(stack.settings, "next")
        assert [check.name for check in report.failures] == ["row_parity"]
        assert "120 rows computed anew, 1 are not what is stored (items 5)" in report.failures[0].detail
        row[0] ^= 1  # the event time: the row of another state of the item
        await stack.redis.call("HSET", place, field, bytes(row))
        await stack.redis.call("HDEL", rows_key(stack.store.buckets.of(key_of("6")), "next"), _field("6"))
        report = await judge(stack.settings, "next")
        assert [check.name for check in report.failures] == ["coverage", "row_parity"]
        assert report.failures[0].detail.startswith("120 items: 1 without a row, 1 with one of another state")
        # Without an item there is nothing to cover: the gap is gone with it.
        for item in ("5", "6"):
            bucket = stack.store.buckets.of(key_of(item))
            await stack.redis.call("HDEL", items_key(bucket), _field(item))
        assert (await judge(stack.settings, "next")).passed


def _field(item: str) -> bytes:
    return key_of(item).to_bytes(8, "little")


async def test_requests_of_the_log_are_compared_where_there_are_any(stack: Stack) -> None:
    async with ready(stack, made("next", slightly)), RequestLogWriter(stack.settings) as requests:
        for number in range(3):
            requests.offer(_answered(f"user {number}", [key_of(str(i)) for i in range(50)]))
        await stack.topic(REQUESTS, 3)
        report = await judge(stack.settings, "next")
    assert (report.requests_from, report.passed) == ("log", True)
    assert "3 requests of the log" in report.checks[-1].detail


async def test_force_needs_a_reason_and_keeps_it_with_what_fell_short(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = stack.settings
    async with ready(stack, made("broken", scaled(0.0))):
        assert await asyncio.to_thread(show_gate, settings, "broken", as_json=True) == 3
        found = json.loads(capsys.readouterr().out)
        assert (found["passed"], found["compared_with"]) == (False, "running")
        assert await asyncio.to_thread(activate_or_tell, settings, "broken") == 3
        out, err = capsys.readouterr()
        assert "SHORT" in out
        assert "distinct_scores" in out
        assert "broken does not answer; running goes on" in err
        code, _, err = await aif(settings, "model", "activate", "broken", "--force")
        assert (code, "--force and --reason come together" in err) == (2, True)
        force = partial(activate_or_tell, settings, "broken", percent=20, force="a test of mine", as_json=True)
        assert await asyncio.to_thread(force) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["percent"], found["state"], found["gate"]["passed"]) == (20.0, "ready", False)
    book = await read_versions(settings)
    assert (book.active, book.canary, book.percent_of("running")) == ("running", "broken", 80.0)
    assert book.records["broken"].note.startswith("forced: a test of mine (version broken does not pass its gate")
    assert "distinct_scores" in book.records["broken"].note


async def test_a_canary_grows_becomes_the_active_version_and_is_ended_by_a_rollback(stack: Stack) -> None:
    settings = stack.settings
    async with ready(stack, made("next"), made("other")):
        assert (await activate_version(settings, "next", 5)).percent == 5
        with pytest.raises(VersionError, match="next answers 5 % of the users already"):
            await activate_version(settings, "other", 5)
        with pytest.raises(VersionError, match="running is active"):
            await activate_version(settings, "running", 5)
        assert (await activate_version(settings, "next", 50)).percent == 50
        assert (await read_versions(settings)).percent_of("running") == 50
        assert (await rollback_version(settings)).version == "running"
        book = await read_versions(settings)
        assert (book.active, book.canary, book.percent_of("running")) == ("running", None, 100)
        with pytest.raises(VersionError, match="no version to go back to"):
            await rollback_version(settings)
        await activate_version(settings, "next", 1)
        assert (await activate_version(settings, "next")).replaces == "running"
        book = await read_versions(settings)
        assert (book.active, book.canary) == ("next", None)
        await activate_version(settings, "other", 10)
        assert (await activate_version(settings, "next")).version == "next"  # active already: the canary ends
        book = await read_versions(settings)
        assert (book.active, book.canary, book.percent_of("next")) == ("next", None, 100)


def _answered(user: str, keys: list[int]) -> AnsweredRequest:
    answer = RankAnswer(
        request_id=user,
        model_version="running",
        items=[RankedItem("1", 1.0)],
        coverage=Coverage(len(keys), len(keys), 0, 0),
        freshness=Freshness(AgeMs(0, 0), 0, 0),
        degraded=[],
        timings_ms=Timings(0, 0, 0, 0, 0, 0),
    )
    return AnsweredRequest(RankRequest(user_id=user), answer, T0_MS, [np.array(keys, np.uint64)], {}, [1], [1.0])
