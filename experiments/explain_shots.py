"""Screenshots of GET /explain on a running system: python -m experiments.explain_shots URL docs/images"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.browser import open_browser, open_page


async def main(url: str, directory: Path) -> None:
    async with open_browser() as browser:
        for name, width, scheme in (("light", 900, "light"), ("dark", 900, "dark"), ("narrow", 400, "light")):
            async with open_page(browser, viewport={"width": width, "height": 1000}, color_scheme=scheme) as (page, _):
                await page.goto(f"{url}/explain")
                await page.fill("[name=k]", "6")
                await page.keyboard.press("Enter")
                await page.wait_for_selector("li:nth-child(6)")
                await page.click("li:nth-child(2) .item")
                await page.wait_for_selector("li:nth-child(2) .why[data-state=complete]", timeout=60_000)
                await page.screenshot(path=directory / f"explain-{name}.png", full_page=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
