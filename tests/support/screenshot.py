"""Takes the picture of the gallery that the guide shows: ``python tests/support/screenshot.py docs/gallery.png``.

The history is that of a sandbox. Chromium has to be there.
"""

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import backoff
from browser import Browser, chromium

from flora_async import Flora
from flora_async.cli import gallery
from flora_async.sandbox import Sandbox

PROMPTS = """
    image islands in the first light
    video a day over the hills
    text a haiku on rain over the harbour
    image the tide comes in [slow]
    image a lighthouse in a storm, oil on canvas
    audio a small tune for a slow morning
    image a ceramic mug on a sunlit table
    video a storm over the islands [fail:safety_blocked]
    image dunes at dusk, long shadows
    image fog over a pine forest
    image a heron at dawn
    text a letter from a lighthouse keeper
"""
LOADED = """
    [...document.querySelectorAll("img, video")]
    .filter((one) => one.getBoundingClientRect().top < innerHeight)
    .every((one) => one.complete || one.readyState > 1)
"""


async def make_history(flora: Flora) -> dict[str, str]:
    """Order everything, see it end where it does, and give the prompts by the ids of their runs."""
    prompts: dict[str, str] = {}
    for kind, _, prompt in (line.strip().partition(" ") for line in reversed(PROMPTS.strip().splitlines())):
        order: dict[str, Any] = {"type": kind, "prompt": prompt, "workspace_id": "ws_demo", "project_id": "prj_demo"}
        started = await flora.generations.create(**order)
        prompts[started.run_id] = prompt
        async for seen in flora.watch_run(started):
            if "[slow]" in prompt and seen.progress > 20:
                break
    return prompts


async def take(browser: Browser, page: Path, target: Path, *, scheme: str = "light", width: int = 1280) -> None:
    """Take a picture of a page."""
    await browser.prefer(color_scheme=scheme)
    await browser.size(width, 1080, scale=1.5)
    await browser.open(page.as_uri())
    await browser.until(LOADED)
    await browser.picture(target)


async def main(target: Path) -> None:
    """Make a history, write its gallery, and take its picture."""
    with TemporaryDirectory() as folder:
        async with (
            Sandbox(time_scale=0.01) as sandbox,
            Flora(
                sandbox.api_key, base_url=sandbox.base_url, poll=lambda: backoff.expo(factor=0.05, max_value=0.2)
            ) as flora,
            chromium() as browser,
        ):
            prompts = await make_history(flora)
            page = await gallery.write(
                flora.generations.list(), Path(folder) / "gallery.html", limit=None, prompts=prompts
            )
            await take(browser, page, target)
            for width, scheme in ((1280, "dark"), (390, "light"), (390, "dark")):  # to look at
                if len(sys.argv) > 2:
                    await take(browser, page, Path(sys.argv[2]) / f"{width}-{scheme}.png", scheme=scheme, width=width)
            assert browser.complaints == []


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
