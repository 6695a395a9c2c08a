"""Pages in a real browser: the system's Chromium, driven by Playwright. Skips with the reason where there is none, or
fails where AIF_REQUIRE_BROWSER=1 forbids skipping (``scripts/system-packages`` installs it)."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: tests may run as root. The others keep it from talking to anybody but the page under test.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium_or_skip() -> str:
    """The executable."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        problem = "no Chromium: run scripts/system-packages as root, or install chromium"
        if os.environ.get("AIF_REQUIRE_BROWSER") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return found


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """One browser process; open contexts (``open_page``) in it, they share nothing."""
    executable = chromium_or_skip()
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_page(browser: Browser, **context: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """An empty page of its own and the list of what went wrong in it: console errors, uncaught errors, requests that
    left for another host. ``context``: Playwright's (``viewport``, ``color_scheme``, …)."""
    problems: list[str] = []
    opened = await browser.new_context(**context)
    try:
        page = await opened.new_page()
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: None if _is_local(asked.url) else problems.append(f"asked {asked.url}"))
        yield page, problems
    finally:
        await opened.close()


def _is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "about:"))
