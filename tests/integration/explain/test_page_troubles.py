"""GET /explain in a real Chromium while workers are slow, failing or killed, and connections are cut: each looks like
what it is."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import DEAD_LETTERS
from aif_stream.embedded.process import ServerProcess, free_ports
from aif_stream.explain import job
from aif_stream.explain.shapley import Game, shapley
from aif_stream.settings import variables
from tests.integration.explain.conftest import Stack, worker
from tests.integration.explain.test_page import WAIT_MS, ranked, shown

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

# Each test opens an item of its own: what was explained before comes from the cache, at once.
# A worker that begins and never ends: everything is real but its second stage.
STUCK = """
import sys, time
from aif_stream.explain import job
job.shapley = lambda game: (time.sleep(3600) for _ in range(1))
from aif_stream.cli import main
sys.argv = ["aif", "explain"]
main()
"""


async def said(page: Page, place: int = 1) -> str:
    return await page.inner_text(f"li:nth-child({place}) .state")


async def test_a_slow_worker_shows_the_coarse_part_and_its_progress_until_the_rest_comes(
    stack: Stack, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(game: Game) -> Iterator[Any]:
        rounds = shapley(game)
        yield next(rounds)
        go_on.wait(120)
        yield from rounds

    monkeypatch.setattr(job, "shapley", slow)
    async with ranked(stack, browser) as page, worker(stack.settings):
        try:
            await page.click("li:nth-child(1) .item")
            await shown(page, "partial")
            assert "loading: the coarse part is there" in await said(page)
            assert await page.locator("[data-stage=native] .fill").count() >= 3
            assert await page.locator("[data-stage=shapley]").count() == 0
            # The first round's estimate is told by the next sign of life.
            await page.wait_for_function(f"document.querySelector('progress').value > {0.3}", timeout=WAIT_MS)
            assert await page.is_visible("li:nth-child(1) progress")
            assert await page.is_visible("li:nth-child(1) >> text=Cancel")
        finally:
            go_on.set()
        await shown(page, "complete")
        assert await page.locator("[data-stage=shapley] .whisker").count() >= 4
        assert not await page.is_visible("li:nth-child(1) progress")


async def test_a_failing_worker_is_tried_again_and_then_named_and_its_task_put_aside(
    stack: Stack, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(game: Game) -> Iterator[Any]:
        calls.append(game.case.item_id)
        raise ValueError("planted")

    monkeypatch.setattr(job, "shapley", failing)
    async with ranked(stack, browser) as page, worker(stack.settings):
        await page.click("li:nth-child(4) .item")
        await shown(page, "failed", 4)
        assert "could not be worked out (ValueError)" in await said(page, 4)
        assert await page.is_visible("li:nth-child(4) >> text=Ask again")
        assert not await page.is_visible("li:nth-child(4) progress")
        assert await page.locator("[data-stage=native]").count() == 1, "what was found stays, once"
        assert len(calls) == 3
        assert await put_aside(stack, b"ValueError: planted")
        monkeypatch.undo()
        await page.click("li:nth-child(4) .state >> text=Ask again")
        await shown(page, "complete", 4)


async def test_when_a_worker_is_killed_its_part_stays_and_another_one_ends_it(
    stack: Stack, browser: Browser, tmp_path: Path
) -> None:
    async with ranked(stack, browser) as page:
        async with stuck_worker(stack, tmp_path) as process:
            await page.click("li:nth-child(2) .item")
            await shown(page, "partial", 2)
            await process.kill9()
        assert "loading" in await said(page, 2)
        async with worker(stack.settings):
            await shown(page, "complete", 2)
        for stage in ("native", "shapley", "counterfactual"):
            assert await page.locator(f"[data-stage={stage}]").count() == 1
        name = await page.evaluate("open[0].name")
        assert (await stack.look(name))["attempt"] == 2


async def test_a_lost_connection_is_named_as_long_as_it_is_lost(stack: Stack, browser: Browser) -> None:
    async with ranked(stack, browser) as page:
        await page.route("**/events", lambda route: route.abort("connectionreset"))
        await page.click("li:nth-child(3) .item")
        await shown(page, "reconnecting", 3)
        assert "connection lost, reconnecting" in await said(page, 3)
        async with worker(stack.settings):
            assert (await stack.ended(await page.evaluate("open[0].name")))["state"] == "complete"
            assert "connection lost, reconnecting" in await said(page, 3)
            await page.unroute("**/events")
            await shown(page, "complete", 3)
        assert await page.locator("[data-stage=shapley] .whisker").count() >= 4


async def test_what_nobody_did_in_time_is_expired_and_can_be_asked_again(stack: Stack, browser: Browser) -> None:
    async def soon(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        await route.continue_(post_data=json.dumps({**body, "deadline_ms": 300}))

    async with ranked(stack, browser) as page:
        await page.route("**/v1/explanations", soon)
        await page.click("li:nth-child(5) .item")
        await shown(page, "expired", 5)
        assert "its deadline passed before a worker was done" in await said(page, 5)
        assert await page.locator("li:nth-child(5) [data-stage]").count() == 0
        await page.unroute("**/v1/explanations")
        async with worker(stack.settings):
            await page.click("li:nth-child(5) .state >> text=Ask again")
            await shown(page, "complete", 5)


@asynccontextmanager
async def stuck_worker(stack: Stack, directory: Path) -> AsyncIterator[ServerProcess]:
    """``aif explain`` as a process that never gets beyond the coarse part."""
    names = ("kafka_bootstrap", "redis_url", "models_dir", "kafka_session_timeout_ms", "index_buckets")
    own = variables(stack.settings, names)
    (port,) = free_ports(1)
    process = ServerProcess(
        "stuck worker",
        [sys.executable, "-c", STUCK],
        directory=Path.cwd(),
        log=directory / "stuck.log",
        environ={**os.environ, **own, "AIF_EXPLAIN_PORT": str(port), "AIF_EXPLAIN_NICE": "0", "OMP_NUM_THREADS": "1"},
    )
    process.spawn()

    async def ready() -> bool:
        with suppress(aiohttp.ClientError):
            async with stack.client.session.get(f"http://127.0.0.1:{port}/readyz") as reply:
                return reply.status == 200
        return False

    try:
        await process.wait_ready(ready, 180)
        yield process
    finally:
        await process.kill9()


async def put_aside(stack: Stack, problem: bytes) -> bool:
    """Whether a dead letter names this problem."""
    async with LogReader(stack.settings, DEAD_LETTERS) as reader:
        await reader.seek_to_beginning()
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            if any(problem in value for record in await reader.poll() for _, value in record.headers):
                return True
    return False
