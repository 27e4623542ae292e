"""The gallery, the sandbox's front page and the notebook views in a real Chromium."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium, Page
from hostile import CANARY, HOSTILE, hostile_generation, hostile_record

from flora_async import Flora, GenerationPage, GenerationType, PageMeta
from flora_async._render import card, clean, foot, head
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

ORDER: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": "prj_demo"}
KINDS: tuple[GenerationType, ...] = ("image", "video", "audio", "text", "image")

STRUCTURE = """(() => {
  const all = [...document.querySelectorAll("*")], names = {};
  for (const one of all) names[one.localName] = (names[one.localName] || 0) + 1;
  const handlers = all.flatMap((one) => [...one.attributes]).filter((one) => one.name.startsWith("on")).length;
  const addresses = all.flatMap((one) => [one.href, one.src]).filter((one) => typeof one === "string" && one);
  const odd = addresses.filter((one) => !/^https?:/.test(one) && !one.startsWith(location.href.split("#")[0])
    && !one.startsWith("data:image/svg+xml,"));
  return {names, handlers, odd};
})()"""
"""What a page is made of."""

PROVOKE = """(async () => {
  for (const one of document.querySelectorAll("article *, table *")) {
    for (const name of ["mouseover", "focus", "toggle", "error", "load", "pointerdown", "animationstart"]) {
      one.dispatchEvent(new Event(name, {bubbles: true}));
    }
    if (one.focus) one.focus();
  }
  await new Promise((done) => setTimeout(done, 200));
})()"""
"""Do what a handler could wait for."""


@pytest.fixture
async def chromium(tmp_path: Path) -> AsyncIterator[Chromium]:
    """A browser."""
    async with Chromium(tmp_path) as browser:
        yield browser


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A FLORA in a hurry."""
    async with Sandbox(time_scale=0.01) as sandbox:
        yield sandbox


async def order(flora: Flora, count: int, prompt: str, *, kinds: tuple[GenerationType, ...] = KINDS) -> list[str]:
    """Order runs of all types; give their ids."""
    numbered = zip(range(count), cycle(kinds), strict=False)
    started = await asyncio.gather(
        *(flora.generations.create(type=kind, prompt=prompt.format(number), **ORDER) for number, kind in numbered)
    )
    return [one.run_id for one in started]


async def until(flora: Flora, run_id: str, status: str) -> None:
    """Wait until a run stands somewhere."""
    async with asyncio.timeout(60):
        while (await flora.generations.retrieve(run_id)).status != status:
            await asyncio.sleep(0.1)


async def test_a_gallery_of_500_runs(sandbox: Sandbox, chromium: Chromium, tmp_path: Path) -> None:
    """Written by the command, it opens without an error; filters, search, thumbnails and players do their work."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        slow = await order(flora, 20, "number {} [slow]")
        done = await order(flora, 400, "number {}")
        failed = await order(flora, 60, "number {} [fail:safety_blocked]")
        await asyncio.gather(*(until(flora, run_id, "running") for run_id in slow))
        await until(flora, done[-1], "completed")
        await until(flora, failed[-1], "failed")
        await order(flora, 20, "number {} [slow]")
    await written(sandbox, tmp_path / "gallery.html")
    async with chromium.page() as page:
        await page.open((tmp_path / "gallery.html").as_uri())
        assert await page.value("document.querySelectorAll('article').length") == 500
        assert (await page.value("document.querySelector('.sum').textContent")).startswith("500 runs · ")
        for status, count in (("completed", 400), ("failed", 60), ("running", 20), ("pending", 20)):
            assert await shown(page, status=status) == count
        for kind, count in (("image", 160), ("video", 80), ("audio", 80), ("text", 80)):
            assert await shown(page, kind=kind) == count
        assert await shown(page, words="SAFETY_blocked") == 60
        assert await shown(page, words=done[7]) == 1
        assert await shown(page, words="no such words") == 0
        assert await page.value("getComputedStyle(document.querySelector('.none')).display") != "none"
        assert await shown(page, kind="image") == 160
        await page.until("[...document.images].some((image) => image.complete && image.naturalWidth > 0)")
        fetched = sum("/media/" in url for url in page.fetched)
        assert 0 < fetched < 160  # those that are in sight, or near
        for kind in ("video", "audio"):
            await shown(page, kind=kind)
            await page.value(f"(() => {{ player = document.querySelector('article:not([hidden]) {kind}'); }})()")
            await page.value("(async () => { player.muted = true; await player.play(); })()")
            assert await page.value("player.duration > 0 && player.error === null")
        assert page.complaints == []


async def written(sandbox: Sandbox, path: Path) -> None:
    """Write a gallery by the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli", "gallery", "--out", str(path)),
        env={**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"flora-async: 500 runs\n")
    assert output.decode() == f"{path}\n"


async def shown(page: Page, *, words: str = "", status: str = "", kind: str = "") -> int:
    """Filter as people do, and count what is left."""
    return int(
        await page.value(f"""(() => {{
          const form = document.querySelector("form");
          form.elements.words.value = {words!r}; form.elements.status.value = {status!r};
          form.elements.kind.value = {kind!r};
          form.dispatchEvent(new Event("input", {{bubbles: true}}));
          return document.querySelectorAll("article:not([hidden])").length;
        }})()""")
    )


async def test_without_script(chromium: Chromium, tmp_path: Path) -> None:
    """All runs are there; filters, which would do nothing, are not."""
    path = tmp_path / "page.html"
    path.write_text(whole(["a mug", "a lighthouse"]), encoding="utf-8")
    async with chromium.page() as page:
        await page.open(path.as_uri(), script=False)
        assert await page.value("getComputedStyle(document.querySelector('form')).display") == "none"
        heights = "[...document.querySelectorAll('article')].map((card) => card.getBoundingClientRect().height > 100)"
        assert await page.value(heights) == [True, True]


def whole(texts: list[str]) -> str:
    """Give a page of runs made of nothing but these texts."""
    return head("Runs", "Some") + "".join(card(hostile_record(text)) for text in texts) + foot()


def notebook(texts: list[str]) -> str:
    """Give a notebook, with each of the views."""
    runs = tuple(map(hostile_generation, texts))
    views = [run._repr_html_() for run in runs]
    views.append(GenerationPage(generations=runs, meta=PageMeta())._repr_html_())
    return f"<!DOCTYPE html><html><meta charset=utf-8><title>Notebook</title><body>{''.join(views)}</body></html>"


@pytest.mark.parametrize("make", [whole, notebook])
async def test_hostile_strings(make: Any, chromium: Chromium, tmp_path: Path) -> None:
    """Nothing runs, even where no policy forbids it; all is there as text, and no element but those of any string."""
    found: list[dict[str, Any]] = []
    for name, texts in (("plain", ["x" * len(text) for text in HOSTILE]), ("hostile", list(HOSTILE))):
        path = tmp_path / f"{name}.html"
        path.write_text(make(texts), encoding="utf-8")
        async with chromium.page() as page:
            await page.ask("Page.setBypassCSP", enabled=True)
            await page.open(path.as_uri())
            await page.value(PROVOKE)
            assert await page.value(f"typeof window.{CANARY}") == "undefined"
            assert await page.value("frames.length") == 0
            found.append(await page.value(STRUCTURE))
            read = await page.value("document.body.textContent")
            assert [text for text in texts if clean(text) not in read] == []
            assert page.complaints == []
            assert {url.partition(":")[0] for url in page.fetched} <= {"file", "data"}
    plain, hostile = found
    assert hostile["names"] == plain["names"]
    assert hostile["handlers"] == 0
    assert hostile["odd"] == []


async def test_a_canary_would_sing(chromium: Chromium, tmp_path: Path) -> None:
    """Many of these strings run where they are put in unescaped; the policy of a page stops them even then."""
    async with chromium.page() as page:
        sang = 0
        for text in HOSTILE:
            path = tmp_path / "open.html"
            path.write_text(f"<!DOCTYPE html><meta charset=utf-8><p>{text}", encoding="utf-8", errors="replace")
            await page.open(path.as_uri())
            await page.value(PROVOKE.replace("article *, table *", "body *"))
            sang += await page.value(f"typeof window.{CANARY}") != "undefined"
            path.write_text(f"{head('Runs', 'Some')}{text}{foot()}", encoding="utf-8", errors="replace")
            await page.open(path.as_uri())
            await page.value(PROVOKE.replace("article *, table *", "body *"))
            assert await page.value(f"typeof window.{CANARY}") == "undefined", text
        assert sang >= 20


async def test_the_front_page_of_a_sandbox_with_hostile_prompts(sandbox: Sandbox, chromium: Chromium) -> None:
    """The same, with all prompts, models and texts that JSON can carry: half a pair it cannot."""
    texts = [text for text in HOSTILE if text.isascii() or "\ud83d" not in text]
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        for text in texts:
            started = await flora.generations.create(type="text", prompt=text, model=text[:100], **ORDER)
        await until(flora, started.run_id, "completed")
    async with chromium.page() as page:
        await page.ask("Page.setBypassCSP", enabled=True)
        await page.open(sandbox.base_url.removesuffix("api/v1"))
        await page.value(PROVOKE)
        asked = len(page.fetched)
        await page.until("document.querySelectorAll('[data-status=completed]').length === 49")
        async with asyncio.timeout(30):
            while len(page.fetched) < asked + 2:  # what comes in later is taken as text, too
                await asyncio.sleep(0.1)
        assert await page.value(f"typeof window.{CANARY}") == "undefined"
        found = await page.value(STRUCTURE)
        assert found["names"]["article"] == len(texts) == 49
        assert found["names"]["script"] == 1
        assert not {"iframe", "object", "embed", "svg", "img", "math", "marquee", "details"} & set(found["names"])
        assert (found["handlers"], found["odd"]) == (0, [])
        read = await page.value("document.body.textContent")
        assert [text for text in texts if clean(text) not in read] == []
        assert page.complaints == []


async def test_the_front_page_goes_along(sandbox: Sandbox, chromium: Chromium) -> None:
    """A run appears, moves and ends without a reload; what somebody types and plays meanwhile stays."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora, chromium.page() as page:
        (first,) = await order(flora, 1, "first", kinds=("audio",))
        await until(flora, first, "completed")
        await page.open(sandbox.base_url.removesuffix("api/v1"))
        await page.value("(() => { player = document.querySelector('audio'); player.loop = player.muted = true; })()")
        await page.value("player.play()")
        await page.value("(() => { document.querySelector('input').value = 'o'; })()")
        (second,) = await order(flora, 1, "second [slow]", kinds=("image",))
        await page.until(f"document.querySelector('[data-run={second}][data-status=pending]')")
        await page.until(f"document.querySelector('[data-run={second}][data-status=running]')")
        assert await page.value("document.querySelector('article').dataset.run") == second
        assert await page.value("document.querySelector('audio') === player && !player.paused")
        assert await page.value("document.querySelector('input').value") == "o"
        assert page.complaints == []


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_nothing_is_wider_than_the_window(width: int, chromium: Chromium, tmp_path: Path) -> None:
    """Not even what has no space to be broken at."""
    path = tmp_path / "page.html"
    path.write_text(whole([*HOSTILE, "x" * 5000]), encoding="utf-8")
    async with chromium.page() as page:
        await page.open(path.as_uri())
        await page.picture(tmp_path / "page.png", width=width, height=900, dark=False)
        assert await page.value("document.documentElement.scrollWidth") == width
        ends = "[...document.querySelectorAll('article')].map((card) => card.getBoundingClientRect().right)"
        assert max(await page.value(ends)) <= width


@pytest.mark.parametrize("dark", [False, True])
async def test_contrast(dark: bool, chromium: Chromium, tmp_path: Path) -> None:
    """All text stands out from its ground by 4.5 to 1, in both schemes."""
    path = tmp_path / "page.html"
    runs = [{**hostile_record("x"), "status": s} for s in ("pending", "running", "completed", "failed", "new")]
    runs += [{**run, "outputs": []} for run in runs]
    path.write_text(head("Runs", "Some") + "".join(map(card, runs)) + foot(), encoding="utf-8")
    async with chromium.page() as page:
        await page.open(path.as_uri())
        await page.picture(tmp_path / "page.png", width=1280, height=800, dark=dark)
        ratios = await page.value(CONTRASTS)
        assert len(ratios) > 50
        assert [one for one in ratios if one[0] < 4.5] == []


CONTRASTS = """(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.className, one.localName];
    });
})()"""
