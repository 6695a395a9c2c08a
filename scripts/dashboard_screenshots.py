"""docs/dashboard-*.png anew, from a running `aif up --demo`.

python scripts/dashboard_screenshots.py http://127.0.0.1:8080      # a minute; look at them before they are committed
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import open_browser, open_page

ROOT = Path(__file__).parents[1]

SHOTS = {"light": ({"width": 1200, "height": 800}, "light"), "dark": ({"width": 1200, "height": 800}, "dark")}
LOOK_MS = 20_000  # a minute of the charts comes from the monitor; this is for the rates


async def main(url: str) -> None:
    async with open_browser() as browser:
        for name, (viewport, scheme) in SHOTS.items():
            async with open_page(browser, viewport=viewport, color_scheme=scheme) as (page, problems):
                await page.goto(url)
                await page.wait_for_selector("#groups tr")
                await page.press("input[name=user]", "Enter")
                await page.wait_for_selector("#answer:not([hidden])")
                await page.wait_for_timeout(LOOK_MS)
                path = ROOT / "docs" / f"dashboard-{name}.png"
                await page.screenshot(path=path, full_page=True)
                smaller(path)
                sys.stdout.write(f"{path} {path.stat().st_size:,} bytes {problems or 'no problem'}\n")


def smaller(path: Path) -> None:
    """64 colours: a third of the bytes, and nobody sees it."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
