"""Screenshots of GET / on a running `aif up --demo`, with a ranking: python -m experiments.dashboard_shots URL docs"""

from __future__ import annotations

import asyncio
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.browser import open_browser, open_page
from tests.stack import eventually

if TYPE_CHECKING:
    from playwright.async_api import Page

_POINTS = 75  # of one a second: curves that fill more than half of their two minutes


async def main(url: str, directory: Path) -> None:
    async with open_browser() as browser:
        for scheme in ("light", "dark"):
            async with open_page(browser, viewport={"width": 1200, "height": 800}, color_scheme=scheme) as (page, _):
                await page.goto(url)
                await _filled(page)
                await page.wait_for_selector("#gap:not([hidden])")  # the demo asks for an explanation now and then
                await page.press("input[name=user]", "Enter")
                await page.wait_for_selector("#answer:not([hidden])")
                await page.evaluate("document.activeElement.blur()")
                shot = Image.open(BytesIO(await page.screenshot(full_page=True)))
                # A page of few colours: a palette takes a quarter of the bytes.
                shot.quantize(256).save(directory / f"dashboard-{scheme}.png", optimize=True)


async def _filled(page: Page) -> None:
    seen = f"points.length >= {_POINTS}"
    await eventually(lambda: page.evaluate(seen), what="the curves are long enough", within_s=3 * _POINTS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
