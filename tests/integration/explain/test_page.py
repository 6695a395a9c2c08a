"""GET /explain in a real Chromium: the list at once, the reason when it comes, and every other end as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aif_stream.index.connection import open_redis
from aif_stream.index.explanations import ExplanationStore
from tests.browser import open_page
from tests.integration.explain.conftest import IDS, Stack, worker

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

WAIT_MS = 30_000


@asynccontextmanager
async def ranked(stack: Stack, browser: Browser, *, width: int = 900) -> AsyncIterator[Page]:
    """The page with ann's answer; ends with a check that nothing went wrong in it."""
    async with open_page(browser, viewport={"width": width, "height": 900}) as (page, problems):
        await page.route("**/v1/rank", _named)
        await page.goto(f"{stack.client.url}/explain")
        await page.fill("[name=user]", "ann")
        await page.fill("[name=k]", "5")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("li:nth-child(5)", timeout=WAIT_MS)
        yield page
        assert [text for text in problems if "Failed to load resource" not in text] == []


async def _named(route: object) -> None:
    """The stack has no retrieval: the page's request is given candidates on its way."""
    import json

    body = json.loads(route.request.post_data)  # type: ignore[attr-defined]
    await route.continue_(post_data=json.dumps({**body, "candidates": IDS}))  # type: ignore[attr-defined]


async def shown(page: Page, state: str, place: int = 1) -> None:
    await page.wait_for_selector(f"li:nth-child({place}) .why[data-state={state}]", timeout=WAIT_MS)


async def test_the_list_is_there_at_once_and_the_reason_follows_with_bars_and_error_bars(
    stack: Stack, browser: Browser
) -> None:
    async with ranked(stack, browser) as page:
        await page.focus("li:nth-child(1) .item")
        await page.keyboard.press("Enter")
        await shown(page, "pending")
        assert "loading" in await page.inner_text("li:nth-child(1) .state")
        async with worker(stack.settings):
            await shown(page, "complete")
        for stage in ("native", "shapley", "counterfactual"):
            assert await page.locator(f"[data-stage={stage}]").count() == 1
        assert await page.locator("[data-stage=shapley] .whisker").count() >= 4
        assert await page.locator("[data-stage=native] .strip i").count() == 10
        assert await page.get_attribute("li:nth-child(1) .item", "aria-expanded") == "true"


async def test_cancelled_and_failed_look_like_it_and_can_be_asked_again(stack: Stack, browser: Browser) -> None:
    async with ranked(stack, browser) as page:
        await page.click("li:nth-child(1) .item")
        await shown(page, "pending")
        await page.click("text=Cancel")
        await shown(page, "cancelled")
        await page.click("li:nth-child(2) .item")
        await shown(page, "pending", 2)
        async with open_redis(stack.settings) as redis:
            store = ExplanationStore(redis, keep_s=60, facts_s=60)
            keys = await redis.call("KEYS", "{xf:*}:f")
            requests = [bytes(key).decode()[4:-3] for key in keys]
            kept = {name: (await store.facts(name))[0] for name in requests}
            await store.drop_facts(requests)
            async with worker(stack.settings):
                await shown(page, "failed", 2)
                assert "have expired" in await page.inner_text("li:nth-child(2) .state")
                for name, value in kept.items():
                    assert value is not None
                    await store.put_facts(name, value)
                await page.click("li:nth-child(1) .state >> text=Ask again")
                await shown(page, "complete", 1)


async def test_a_cut_connection_says_so_and_goes_on_where_it_was(stack: Stack, browser: Browser) -> None:
    async with ranked(stack, browser, width=400) as page:
        assert await page.evaluate("document.documentElement.scrollWidth") <= 400
        await page.route("**/events", lambda route: route.abort("connectionreset"), times=2)
        await page.click("li:nth-child(3) .item")
        await page.wait_for_selector("li:nth-child(3) .why[data-state]", timeout=WAIT_MS)
        async with worker(stack.settings):
            await shown(page, "complete", 3)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 400


async def test_light_and_dark_both_have_readable_text(stack: Stack, browser: Browser) -> None:
    for scheme in ("light", "dark"):
        async with open_page(browser, color_scheme=scheme) as (page, problems):
            await page.goto(f"{stack.client.url}/explain")
            ink, paper = await asyncio.gather(
                page.evaluate("getComputedStyle(document.body).color"),
                page.evaluate("getComputedStyle(document.body).backgroundColor"),
            )
            assert abs(_brightness(ink) - _brightness(paper)) > 150
            assert problems == []


def _brightness(text: str) -> float:
    red, green, blue = (float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue
