"""What a real browser makes of the gallery, of the sandbox's front page and of what notebooks show."""

import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import backoff
import hostile
import pytest
from browser import Browser, chromium
from test_cards import output, page, run

from flora_async import ConfigurationError, Flora
from flora_async._html.cards import table
from flora_async.cli import gallery
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.proof, pytest.mark.anyio]

ORDER: dict[str, Any] = {"type": "text", "workspace_id": "ws_1", "project_id": "prj_1"}

TRIED = f"""(() => {{
    const elements = [...document.querySelectorAll("*")];
    return {{
        ran: {hostile.CANARY!r} in window,
        scripts: document.scripts.length,
        styles: document.querySelectorAll("style, link[rel=stylesheet], [style]").length,
        handlers: elements.filter((one) => one.getAttributeNames().some((name) => name.startsWith("on"))).length,
        strangers: document.querySelectorAll("iframe, object, embed, form, base, svg, math, template, b b").length,
        frames: window.length,
        here: location.href,
        fetched: performance.getEntriesByType("resource").map((one) => one.name),
        text: document.documentElement.textContent,
    }};
}})()"""
"""What came of the strings, asked of the page itself."""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Start a browser."""
    async with chromium() as own:
        yield own


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a sandbox whose runs take a fiftieth of a second."""
    async with Sandbox(time_scale=0.01) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Give a client of it, that looks often."""
    often = partial(backoff.expo, factor=0.02, max_value=0.2)
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, poll=often) as client:
        yield client


def written(document: str, folder: Path) -> str:
    """Put a document where a browser finds it; give its address."""
    path = folder / "page.html"
    path.write_text(document, encoding="utf-8")
    return path.as_uri()


async def harmless(browser: Browser, *, scripts: int, styles: int) -> dict[str, Any]:
    """See that nothing ran or broke out; give what the page is."""
    tried: dict[str, Any] = await browser.run(TRIED)
    assert browser.complaints == []
    assert not tried["ran"]
    assert (tried["scripts"], tried["styles"]) == (scripts, styles)
    assert tried["handlers"] == tried["strangers"] == tried["frames"] == 0
    return tried


async def test_a_gallery_of_500_mixed_runs(browser: Browser, sandbox: Sandbox, flora: Flora, tmp_path: Path) -> None:
    """Of all types, completed, failed, running and pending: opened without a word in the console; the filters work."""
    kinds = cycle(("image", "video", "audio", "text", "text"))
    slow = [await flora.generations.create(**ORDER, prompt=f"slow {number} [slow]") for number in range(20)]
    prompts = {started.run_id: "slow" for started in slow}
    for number, kind in enumerate(islice(kinds, 460)):
        failing = "" if number % 9 else " [fail:provider_error]"
        started = await flora.generations.create(**{**ORDER, "type": kind}, prompt=f"number {number}{failing}")
        prompts[started.run_id] = f"subject-{number:03}, as it was ordered"
    async for change in flora.watch_run(slow[-1]):
        if change.status == "running":
            break
    for number in range(20):
        await flora.generations.create(**ORDER, prompt=f"late {number} [slow]")

    path = await gallery.write(flora.generations.list(), tmp_path / "gallery.html", limit=None, prompts=prompts)
    await browser.open(path.as_uri())
    counted = "[...document.querySelectorAll('search label[data-count]')].map((one) => one.dataset.count).join(' ')"
    made = Counter(order.type for order in sandbox.orders.values() if "[" not in order.prompt)
    types = " ".join(str(made[kind]) for kind in ("image", "video", "audio", "text"))
    assert await browser.run(counted) == f"500 408 20 20 52 0 500 {types} 92"

    seen = "[...document.querySelectorAll('.card')].filter((one) => one.checkVisibility()).length"
    assert await browser.run(seen) == 500
    for name, value, number in (
        ("status", "failed", 52),
        ("status", "", 500),
        ("type", "video", made["video"]),
        ("type", "", 500),
    ):
        await browser.run(f"document.querySelector('[name={name}][value=\"{value}\"]').click()")
        assert await browser.run(seen) == number
    search = "(words.value = 'SUBJECT-045 provider', words.dispatchEvent(new Event('input', {bubbles: true})))"
    await browser.run(search)
    assert await browser.run(seen) == 1
    assert await browser.run("document.getElementById('shown').textContent") == "1 of 500 shown"
    await browser.run(search.replace("SUBJECT", "nobody"))
    assert await browser.run("none.checkVisibility()")
    await browser.run(search.replace("SUBJECT-045 provider", ""))

    await browser.run("document.querySelector('video').scrollIntoView()")
    await browser.until("document.querySelector('video').readyState > 0")
    await browser.until("[...document.images].some((one) => one.complete && one.naturalWidth === 768)")
    fetched = await browser.run("performance.getEntriesByType('resource').length")
    assert 0 < fetched < 100  # of some 160 pictures and videos only those that were come by
    assert browser.complaints == []


async def test_a_gallery_is_for_looking(browser: Browser, flora: Flora, tmp_path: Path) -> None:
    """Facts lie over a card that is pointed at; a picture opens whole, arrow keys turn; cards can be sorted."""
    prompts: dict[str, str] = {}
    for number in range(3):
        run = await flora.generate(**{**ORDER, "type": "image"}, prompt=f"picture {number}")
        prompts[run.run_id] = f"picture {number}"
    video = await flora.generate(**{**ORDER, "type": "video"}, prompt="a video")
    path = await gallery.write(flora.generations.list(), tmp_path / "gallery.html", limit=None, prompts=prompts)
    await browser.size(1280, 900)
    await browser.open(path.as_uri())
    card = "[...document.querySelectorAll('.card')].find((one) => one.querySelector('h2').textContent === 'picture 2')"
    opacity = f"getComputedStyle(({card}).querySelector('.about')).opacity"
    assert await browser.run(opacity) == "0"
    at = json.loads(await browser.run(f"JSON.stringify(({card}).getBoundingClientRect())"))
    await browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"] + 50, y=at["y"] + 50)
    await browser.until(f"{opacity} === '1'")
    assert await browser.run(f"({card}).querySelector('.do').innerText") == "Copy id\nCopy prompt\nDownload"
    await browser.run(f"({card}).querySelector('.made a').click()")
    shown = "box.querySelector('figcaption p').textContent"
    assert await browser.run(f"box.open && {shown}") == "picture 2"
    for key, wanted in (("ArrowRight", "picture 1"), ("ArrowLeft", "picture 2"), ("ArrowLeft", "picture 0")):
        await browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert await browser.run(shown) == wanted
    fitted = "getComputedStyle(box.querySelector('img')).objectFit"
    assert await browser.run(fitted) == "contain"
    await browser.run("box.close()")
    sort = "(order.value = '%s', order.dispatchEvent(new Event('input', {bubbles: true})))"
    for key, wanted in (("cost", video.run_id), ("oldest", next(iter(prompts))), ("newest", video.run_id)):
        await browser.run(sort % key)
        assert await browser.run("document.querySelector('.card').dataset.run") == wanted
    assert browser.complaints == []


async def test_saved_files_outlive_their_addresses(
    browser: Browser, sandbox: Sandbox, flora: Flora, tmp_path: Path
) -> None:
    """Media that has gone is a sentence; with --local the page shows the saved files, without the server."""
    run = await flora.generate(**{**ORDER, "type": "image"}, prompt="a mug")
    await flora.download(run, tmp_path / "saved files")
    remote = await gallery.write(flora.generations.list(), tmp_path / "remote.html", limit=None, prompts={})
    saved = tmp_path / "saved files"
    local = await gallery.write(flora.generations.list(), tmp_path / "local.html", limit=None, prompts={}, local=saved)
    await sandbox.close()
    await browser.open(local.as_uri())
    await browser.until("document.images[0].naturalWidth === 768")
    assert browser.complaints == []
    await browser.open(remote.as_uri())
    await browser.until("document.querySelector('.nothing')?.textContent.startsWith('No longer at its address')")


async def test_the_filters_without_script(browser: Browser, tmp_path: Path) -> None:
    """Statuses and types still choose; what needs the script is not there."""
    made = list(hostile.records())[:6]
    await browser.call("Emulation.setScriptExecutionDisabled", value=True)
    await browser.open(written(page(made), tmp_path))
    seen = "[...document.querySelectorAll('.card')].filter((one) => one.checkVisibility()).length"
    assert await browser.run(seen) == 6
    await browser.run("document.querySelector('[name=status][value=failed]').click()")
    assert await browser.run(seen) == 2
    assert not await browser.run("document.querySelector('#words').checkVisibility()")


async def test_hostile_strings_in_a_gallery(browser: Browser, tmp_path: Path) -> None:
    """In every part of a run: none runs, none breaks out, each is text."""
    records = list(hostile.records())
    here = written(page(records), tmp_path)
    await browser.open(here)
    tried = await harmless(browser, scripts=1, styles=1)
    assert tried["here"] == here
    assert tried["fetched"] == []
    assert await browser.run("document.querySelectorAll('#runs > .card').length") == len(records)
    for string in hostile.STRINGS:
        assert tried["text"].count(hostile.as_shown(string)) >= 10
    await poke(browser)
    await harmless(browser, scripts=1, styles=1)


async def poke(browser: Browser) -> None:
    """Do what a user may do: point at everything, focus everything, open everything."""
    await browser.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    await browser.run(
        "document.querySelectorAll('main *').forEach((one) => {"
        "for (const kind of ['mouseover', 'pointerenter', 'focus', 'toggle', 'error', 'load'])"
        "one.dispatchEvent(new Event(kind, {bubbles: false}))})"
    )
    await browser.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")


async def test_hostile_strings_on_the_front_page(browser: Browser, sandbox: Sandbox, flora: Flora) -> None:
    """Ordered while the page is open, which brings them in by itself, and then as a page of its own."""
    front = sandbox.base_url.removesuffix("api/v1")
    await browser.open(front)
    ordered: list[str] = []
    for string, kind in zip(hostile.STRINGS, cycle(("image", "text", "video", "audio")), strict=False):
        try:
            await flora.generations.create(**{**ORDER, "type": kind}, prompt=string)
        except (ConfigurationError, ValueError):  # halves of characters do not get that far
            continue
        ordered.append(string)
    assert len(ordered) >= 50
    await browser.until(f"document.querySelectorAll('.card[data-status=completed]').length === {len(ordered)}")
    await poke(browser)
    for _ in range(2):
        tried = await harmless(browser, scripts=1, styles=1)
        assert tried["here"] == front
        assert all(address == front or address.startswith(f"{front}media/") for address in tried["fetched"])
        for string in ordered:
            assert hostile.as_shown(string) in tried["text"]
        await browser.open(front)


async def test_hostile_strings_in_a_notebook(browser: Browser, tmp_path: Path) -> None:
    """As the output of a cell: nothing but a table."""
    shell = "<!DOCTYPE html><meta charset=utf-8><title>notebook</title><div id=cell>%s</div>"
    await browser.open(written(shell.replace("%s", table(list(hostile.records()), "runs")), tmp_path))
    tried = await harmless(browser, scripts=0, styles=0)
    assert tried["fetched"] == []
    assert await browser.run("document.querySelectorAll('#cell > div > table').length") == 1
    assert await browser.run("document.querySelectorAll('img, video, audio, link').length") == 0
    for string in hostile.STRINGS:
        assert tried["text"].count(hostile.as_shown(string)) >= 6


async def test_the_front_page_is_alive(browser: Browser, sandbox: Sandbox, flora: Flora) -> None:
    """Runs come and go on while somebody looks; a search stays as it was, and can be let stand still."""
    await browser.open(sandbox.base_url.removesuffix("api/v1"))
    assert "There are no runs yet." in await browser.run("document.body.innerText")
    slow = await flora.generations.create(**ORDER, prompt="a first [slow]")
    await browser.until(f"document.querySelector('.card')?.dataset.run === '{slow.run_id}'")
    assert "There are no runs yet." not in await browser.run("document.body.innerText")
    await browser.run("words.value = 'first'")
    picture = await flora.generate(**{**ORDER, "type": "image"}, prompt="another")
    await browser.until("document.querySelectorAll('.card').length === 2")
    assert await browser.run("document.querySelector('.card').dataset.run") == picture.run_id
    assert not await browser.run("document.querySelector('.card').checkVisibility()")
    assert await browser.run("shown.textContent") == "1 of 2 shown"
    await browser.run("(words.value = '', sift())")
    await browser.until("document.querySelector('.card img').naturalWidth === 768")
    await browser.until("document.querySelector('.totals').textContent === '2 runs, 0.04 USD'")
    assert browser.complaints == []

    await browser.run("live.click()")
    await flora.generate(**ORDER, prompt="nobody looks")
    await browser.run("new Promise((done) => setTimeout(done, 2500))")
    assert await browser.run("document.querySelectorAll('.card').length") == 2
    await browser.run("live.click()")
    await browser.until("document.querySelectorAll('.card').length === 3")


async def test_older_runs_are_on_pages_of_their_own(browser: Browser, sandbox: Sandbox, flora: Flora) -> None:
    """A hundred on each."""
    for number in range(103):
        await flora.generations.create(**ORDER, prompt=f"number {number}")
    front = sandbox.base_url.removesuffix("api/v1")
    await browser.open(front)
    assert await browser.run("document.querySelectorAll('.card').length") == 100
    await browser.open(await browser.run("[...document.links].find((one) => one.text === 'Older').href"))
    assert await browser.run("document.querySelectorAll('.card').length") == 3
    assert browser.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_sticks_out_on_a_phone(scheme: str, browser: Browser, tmp_path: Path) -> None:
    """In 320 pixels, whatever the strings."""
    records = list(hostile.records())
    await browser.prefer(color_scheme=scheme, reduced_motion="reduce")
    await browser.size(320, 640)
    await browser.open(written(page(records), tmp_path))
    assert await browser.run("document.documentElement.scrollWidth") == 320
    ground = await browser.run("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(244, 242, 238)", "dark": "rgb(18, 18, 21)"}[scheme]


async def test_everything_has_a_name(browser: Browser, tmp_path: Path) -> None:
    """For those who do not see it: whatever can be used, seen or heard."""
    kinds = ("imageUrl", "videoUrl", "audioUrl", "documentUrl")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # media that has gone would be replaced by text
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        made = run(outputs=[output(kind, url) for kind in kinds])
        long = run(prompt="a long prompt " * 30, status="running", progress=20)
        await browser.call("Page.navigate", url=written(page([made, long]), tmp_path))
        await browser.until("document.querySelectorAll('.card').length === 2 && document.readyState !== 'loading'")
        tree = await browser.call("Accessibility.getFullAXTree")
    told = [(node["role"]["value"], node.get("name", {}).get("value")) for node in tree["nodes"] if not node["ignored"]]
    wanted = {"RootWebArea", "banner", "main", "contentinfo", "heading", "list", "listitem", "article", "link", "image"}
    wanted |= {"search", "radio", "searchbox", "group", "DisclosureTriangle", "progressbar", "Video", "Audio"}
    assert wanted - {role for role, _ in told} == set()
    named = {"RootWebArea", "heading", "link", "image", "search", "radio", "searchbox", "progressbar", "Video"}
    named |= {"Audio", "DisclosureTriangle", "button", "slider"}
    assert [role for role, name in told if role in named and not name] == []


async def test_what_a_browser_does_with_such_strings_elsewhere(browser: Browser, tmp_path: Path) -> None:
    """They are hostile: without the renderer they run, so that the tests above can fail."""
    running = 0
    for string in hostile.STRINGS[:24]:
        await browser.open(written(f"<!DOCTYPE html><div>{string}</div>", tmp_path))
        running += await browser.run(f"{hostile.CANARY!r} in window")
    assert running >= 12
