"""Runs as HTML: what a page and a notebook show, and that no string of a run is ever more than text."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import hostile
import msgspec
import pytest

from flora_async import Generation, GenerationPage, Order, Run
from flora_async._html.cards import card, table
from flora_async._html.escape import collapsible, safe_link, text
from flora_async._html.page import Totals, content_policy, page_end, page_start
from flora_async.sandbox import _front_page
from flora_async.sandbox._runs import plan_run

EMPTY = {"meta", "link", "input", "img", "br"}
PAGE = """
    html head meta title link style body a header h1 p b search fieldset legend label div input main ul li article h2
    dl dt dd span bdi time strong progress details summary img video audio nav noscript footer script
"""
NOTEBOOK = "div table caption thead tbody tr th td bdi br time strong span a details summary"
ATTRIBUTES = """
    lang data-live charset http-equiv content name rel href class aria-label data-count type value checked hidden for id
    autocomplete placeholder role tabindex data-run data-status data-types dir datetime max target src alt loading
    data-created data-cost data-prompt
    controls preload scope
"""


class Read(HTMLParser):
    """A document as it is read: elements with their attributes, text, and whether all that opens is closed in turn."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(document)
        self.close()
        self.faults += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Take the end of one."""
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        """Take text."""
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text += data

    def handle_comment(self, data: str) -> None:
        """Take what no page of ours has."""
        self.faults.append(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Give the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def page(records: list[dict[str, Any]]) -> str:
    """Write a gallery."""
    return page_start("FLORA gallery", "of a test", Totals(records)) + "".join(map(card, records)) + page_end()


def run(**told: Any) -> dict[str, Any]:
    """Make the record of a run."""
    return {
        "run_id": "run_1",
        "status": "completed",
        "progress": 100,
        "created": datetime(2026, 7, 1, 12, 30, 5, tzinfo=UTC),
        "charged_cost": 0.04,
        "model": {"model_id": "a-model"},
        "project_id": "prj_1",
        **told,
    }


def output(kind: str, url: str) -> dict[str, str]:
    """Make the record of an output."""
    return {"output_id": "output_1", "type": kind, "url": url}


def check(document: str, allowed: str) -> Read:
    """Read a document with all hostile strings in it, and see that they are text and nothing else."""
    document.encode()
    read = Read(document)
    assert read.faults == []
    assert {tag for tag, _ in read.elements} <= set(allowed.split())
    for _, attributes in read.elements:
        assert attributes.keys() <= set(ATTRIBUTES.split())
        for name in ("href", "src"):
            assert re.fullmatch(r"https?://[!-~]+|/.*|#runs|data:,", attributes.get(name) or "/")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\ud800-\udfff]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", document)
    return read


def test_hostile_strings_on_a_page() -> None:
    """All are there, in every part of a run, as text."""
    records = list(hostile.records())
    read = check(page(records), PAGE)
    counted = Counter(tag for tag, _ in read.elements)
    assert (counted["script"], counted["style"], counted["li"]) == (1, 1, len(records))
    assert counted["img"] == counted["video"] == counted["audio"] == 0  # none of their addresses is one
    for string in hostile.STRINGS:
        assert read.text.count(hostile.as_shown(string)) >= 10


def test_hostile_strings_beside_media() -> None:
    """Where there is something to see and to hear, they are its name too."""
    media = [output(kind, "https://flora.ai/x") for kind in ("imageUrl", "videoUrl", "audioUrl", "documentUrl")]
    records = [record | {"outputs": media} for record in hostile.records()]
    read = check(page(records), PAGE)
    for tag, name in (("img", "alt"), ("video", "aria-label"), ("audio", "aria-label")):
        names = [element[name] or "" for element in read.all(tag)]
        assert len(names) == len(records)
        for string in hostile.STRINGS:
            beginning = hostile.as_shown(string[:100])
            assert sum(beginning in name for name in names) >= 3


def test_hostile_strings_on_the_front_page() -> None:
    """All are there as prompts, and in the texts that were made of them."""
    runs = [
        plan_run(
            Order(type="text", prompt=string, workspace_id="ws_1", project_id=string, model=string),
            now=0.0,
            unix=1_790_000_000.0,
            time_scale=1.0,
        )
        for string in hostile.STRINGS
    ]
    read = check(
        _front_page.page(runs, 100.0, "http://127.0.0.1:1/api/v1", total=900, older="/?cursor=x&status='\""), PAGE
    )
    assert len(read.all("script")) == 1
    for string in hostile.STRINGS:
        assert read.text.count(hostile.as_shown(string)) >= 3


def test_hostile_strings_in_notebooks() -> None:
    """All are there as text; nothing is fetched, styled or run; no formula is read into them."""
    shown = table(list(hostile.records()), 'a caption "><script>')
    read = check(shown, NOTEBOOK)
    assert read.elements[0] == ("div", {"class": "tex2jax_ignore mathjax_ignore"})
    for string in hostile.STRINGS:
        assert read.text.count(hostile.as_shown(string)) >= 6


@pytest.mark.parametrize(
    "url",
    [
        "https://media.flora.ai/a/b.png?X-Signature=a%2Fb&x='y'#top",
        "http://127.0.0.1:8080/media/run_1/output_1.png",
        "HTTPS://FLORA.AI",
        "https://[::1]:8/x",
        "https://flora.ai/\u00fc/\u65e5\u672c",
    ],
)
def test_addresses_that_are_linked(url: str) -> None:
    """As they stand."""
    shown = Read(card(run(outputs=[output("imageUrl", url)])))
    assert [image["src"] for image in shown.all("img")] == [url]
    assert [link["href"] for link in shown.all("a")] == [url]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://flora.ai/x",
        "https:flora.ai",
        "https:///x",
        "https://",
        " https://flora.ai/x",
        "https://flora.ai/x\n",
        "https://flora.ai/a b",
        "https://flora.ai\\@127.0.0.1/",
        "https://key@flora.ai/",
        "https://flora.ai/\u202egnp",
        "https://flora.ai/\ud800",
        "https://flora.ai/\x7f",
        "blob:https://flora.ai/x",
        "view-source:https://flora.ai/x",
        *hostile.STRINGS,
    ],
)
def test_addresses_that_are_not(url: str) -> None:
    """They are shown."""
    assert safe_link(url) is None
    shown = Read(card(run(outputs=[output("videoUrl", url), output("newUrl", url)])))
    assert shown.all("a") == shown.all("video") == []
    assert "videoUrl at an address that is not linked" in shown.text


def test_what_a_card_shows() -> None:
    """Prompt, status, cost, time, model, project and id, and the picture with words for it."""
    shown = Read(card(run(prompt="a mug & a spoon", outputs=[output("imageUrl", "https://flora.ai/x.png")])))
    for part in ("a mug & a spoon", "completed", "0.04 USD", "2026-07-01 12:30 UTC", "a-model", "prj_1", "run_1"):
        assert part in shown.text
    (image,) = shown.all("img")
    assert (image["alt"], image["loading"]) == ("Image: a mug & a spoon", "lazy")
    assert shown.all("time") == [{"datetime": "2026-07-01T12:30:05Z"}]
    assert shown.all("li")[0]["data-types"] == "image"


def test_players() -> None:
    """They have controls and a name, and fetch nothing before somebody comes by."""
    outputs = [output("videoUrl", "https://flora.ai/x.mp4"), output("audioUrl", "https://flora.ai/x.wav")]
    shown = Read(card(run(outputs=outputs)))
    for tag in ("video", "audio"):
        (player,) = shown.all(tag)
        assert {"controls", "aria-label"} <= player.keys()
        assert player["preload"] == "none"
    assert shown.all("li")[0]["data-types"] == "audio video"


def test_other_outputs() -> None:
    """Texts are there as they are; documents, and what FLORA has learned since, are links."""
    outputs = [
        output("text", "two lines\nof text"),
        output("documentUrl", "https://flora.ai/x.pdf"),
        output("modelUrl", "https://flora.ai/x.glb"),
    ]
    shown = Read(card(run(outputs=outputs)))
    assert "two lines\nof text" in shown.text
    assert [link["href"] for link in shown.all("a")] == ["https://flora.ai/x.pdf", "https://flora.ai/x.glb"]
    assert "modelUrl" in shown.text
    assert shown.all("li")[0]["data-types"] == "other text"


def test_runs_that_made_nothing() -> None:
    """Why, how far, or that there is nothing."""
    failed = Read(card(run(status="failed", error_code="safety_blocked", error_message="Blocked.")))
    assert "safety_blocked" in failed.text
    assert "Blocked." in failed.text
    assert "does not say why" in Read(card(run(status="failed"))).text
    running = Read(card(run(status="running", progress=37.4, outputs=None, model=None, charged_cost=None)))
    assert running.all("progress")[0]["value"] == "37.4"
    assert "37 %" in running.text
    assert "USD" not in running.text
    assert "Run run_1" in running.text
    assert Read(card(run(status="paused", progress=400))).all("progress")[0]["value"] == "100"
    assert "Nothing was made." in Read(card(run())).text


def test_long_prompts_are_folded() -> None:
    """Their beginning is seen, all of them is there."""
    shown = Read(collapsible("word " * 100))
    assert [tag for tag, _ in shown.elements] == ["details", "summary", "span", "div"]
    assert shown.text.endswith("word " * 100)
    assert Read(collapsible("word " * 10)).elements == [("span", {"dir": "auto"})]


def test_line_ends_are_kept() -> None:
    """Whatever machine they are from."""
    assert text("a\r\nb\nc\td") == "a\nb\nc\td"


@pytest.mark.parametrize(
    ("cost", "told"), [(0, "0.00"), (0.5, "0.50"), (0.0042, "0.0042"), (1234.5, "1,234.50"), (0.123, "0.123")]
)
def test_costs(cost: float, told: str) -> None:
    """In cents, and smaller where there is something."""
    assert f">{told} USD<" in card(run(charged_cost=cost))


def test_the_head_of_a_page() -> None:
    """How many runs, what they cost, and filters with their numbers."""
    records = [
        run(outputs=[output("imageUrl", "https://flora.ai/1")]),
        run(outputs=[output("text", "x"), output("imageUrl", "https://flora.ai/2")]),
        run(status="failed", charged_cost=0),
        run(status="paused", charged_cost=None, type="video"),
    ]
    shown = Read(page(records))
    assert "4 runs, 0.08 USD" in shown.text
    counts = [label["data-count"] for label in shown.all("label") if "data-count" in label]
    assert counts == ["4", "2", "0", "0", "1", "1", "4", "2", "1", "0", "1", "1"]
    assert "1 run, 0.04 USD" in Read(page([run()])).text


def test_the_page_can_be_used_by_everybody() -> None:
    """A language, landmarks, headings, labels, and words for all that is seen."""
    shown = Read(page([run(outputs=[output("imageUrl", "https://flora.ai/1")]), run(status="running")]))
    assert shown.all("html") == [{"lang": "en"}]
    for landmark in ("header", "search", "main", "footer"):
        assert len(shown.all(landmark)) == 1
    assert len(shown.all("h1")) == 1
    assert len(shown.all("h2")) == 2
    assert len(shown.all("legend")) == len(shown.all("fieldset")) == 2
    assert shown.all("a")[0] == {"class": "skip", "href": "#runs"}
    assert all(image["alt"] for image in shown.all("img"))
    assert all(bar["aria-label"] for bar in shown.all("progress"))


def luminance(color: str) -> float:
    """Say how light a color is, as WCAG measures it."""
    digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def schemes() -> Iterator[dict[str, str]]:
    """Read the colors of the light scheme and of the dark one."""
    style = page_start("x", "x", Totals()).partition("<style>")[2]
    for block in re.findall(r":root \{\s*(?:color-scheme: [^;]*;)?([^}]*--ground[^}]*)\}", style):
        yield dict(re.findall(r"--([\w-]+): #([0-9a-f]+);", block))


def test_contrast() -> None:
    """All text has 4.5 to 1 at least, light and dark."""
    read = list(schemes())
    assert len(read) == 2
    for colors in read:
        pairs = [(ink, paper) for ink in ("ink", "soft") for paper in ("ground", "sheet", "sunk")]
        pairs += [(ink, "sheet") for ink in ("accent", "completed", "running", "pending", "failed")]
        for ink, paper in [*pairs, ("failed", "sunk"), ("accent", "sunk"), ("on-accent", "accent")]:
            dark, light = sorted((luminance(colors[ink]), luminance(colors[paper])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


def test_the_policy() -> None:
    """Nothing but the page's own style and script, by their hashes, and pictures and media."""
    allowed = dict(part.split(" ", 1) for part in content_policy(live=False).split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", allowed[name])
    assert allowed["img-src"] == allowed["media-src"] == "http: https: data:"
    assert "connect-src" not in allowed
    assert content_policy(live=True) == f"{content_policy(live=False)}; connect-src 'self'"


RUN = {"run_id": "run_1", "status": "running", "progress": 37, "created_at": 1_782_909_005_000}
HISTORY = RUN | {"generation_id": "run_1", "project_id": "prj_1", "workspace_id": "ws_1", "model": {"model_id": "m"}}


def in_a_notebook(value: Any) -> Read:
    """Show a value as a notebook does."""
    return check(value._repr_html_(), NOTEBOOK)


def test_a_run_in_a_notebook() -> None:
    """As a table of one row."""
    shown = in_a_notebook(msgspec.convert(RUN, Run))
    for part in ("run_1", "running 37 %", "2026-07-01 12:30 UTC"):
        assert part in shown.text
    failed = in_a_notebook(msgspec.convert(RUN | {"status": "failed", "error_code": "safety_blocked"}, Run))
    assert "safety_blocked" in failed.text


def test_a_generation_in_a_notebook() -> None:
    """With its model, and with links to its outputs, which are not fetched; texts are there."""
    outputs = [output("imageUrl", "https://flora.ai/x.png?a=1&b=2"), output("text", "a haiku")]
    made = HISTORY | {"status": "completed", "charged_cost": 0.5, "outputs": outputs}
    shown = in_a_notebook(msgspec.convert(made, Generation))
    for part in ("m", "completed", "0.50 USD", "a haiku"):
        assert part in shown.text
    assert [link["href"] for link in shown.all("a")] == ["https://flora.ai/x.png?a=1&b=2"]


def test_a_page_in_a_notebook() -> None:
    """All its generations, and whether more follow."""
    given = {"generations": [HISTORY, HISTORY], "meta": {"next_cursor": "x"}}
    shown = in_a_notebook(msgspec.convert(given, GenerationPage))
    assert "2 generations, newest first; older ones follow" in shown.text
    assert len(shown.all("tr")) == 3
    assert "the last page" in in_a_notebook(msgspec.convert({**given, "meta": {}}, GenerationPage)).text


def test_nobody_waits_for_the_renderer() -> None:
    """It is imported when something is shown."""
    loaded = "import sys, flora_async; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert "flora_async.models" in output.split()
    assert not any("_render" in name for name in output.split())
