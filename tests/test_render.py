"""Runs as HTML, read back by a parser: what is shown, and that nothing of it is more than text."""

import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from hostile import HOSTILE, hostile_generation, hostile_record

from flora_async import Generation, GenerationPage, ModelRef, Output, PageMeta, Run
from flora_async._render import card, clean, foot, head, is_address, table

URL = "https://media.flora.ai/out.png?a=1&b=2"
LINKS = ("href", "src", "action", "formaction", "data", "srcdoc", "poster", "xlink:href")


class Read(HTMLParser):
    """What a parser finds: elements, attributes, text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        """Note that what follows is outside of it."""
        self._in = ""

    def handle_data(self, text: str) -> None:
        """Note text."""
        if self._in not in ("script", "style"):
            self.text += text

    def values(self, tag: str, name: str) -> list[str]:
        """Give the values of an attribute, in order."""
        return [value for one, attribute, value in self.attributes if (one, attribute) == (tag, name)]


def record(**more: Any) -> dict[str, Any]:
    """Give a run that says little."""
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return {"run_id": "run_1", "status": "completed", "progress": 100, "created": created, "outputs": [], **more}


def output(kind: str, url: str = URL) -> dict[str, str]:
    """Give an output."""
    return {"output_id": "output_1", "type": kind, "url": url}


def page(*records: dict[str, Any], live: bool = False) -> str:
    """Give a whole page."""
    return head("Runs", "Some", live=live) + "".join(map(card, records)) + foot()


def test_there_are_fifty() -> None:
    """No less, none twice."""
    assert len(set(HOSTILE)) == 50


def views(text: str) -> dict[str, str]:
    """Give all that shows a run, for one whose every string is *text*."""
    run = hostile_generation(text)
    return {
        "page": page(hostile_record(text)),
        "live page": page(hostile_record(text), live=True),
        "titles": head(text, text) + foot(),
        "generation": run._repr_html_(),
        "run": Run(run_id=text, status=text, progress=0, created_at=0, outputs=run.outputs)._repr_html_(),
        "history": GenerationPage(generations=(run, run), meta=PageMeta(next_cursor=text))._repr_html_(),
        "caption": table([], text),
    }


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_string_is_text(number: int) -> None:
    """It brings no element but those that any string has, no handler, no address, no style; and it can be read."""
    text = HOSTILE[number]
    plain = views("x" * len(text))
    for name, view in views(text).items():
        found, usual = Read(view), Read(plain[name])
        assert found.elements == usual.elements, name
        assert [one[:2] for one in found.attributes] == [one[:2] for one in usual.attributes], name
        for tag, attribute, value in found.attributes:
            assert not attribute.startswith("on")
            if attribute in LINKS:
                assert value == "#runs" or value.startswith("data:image/svg+xml,"), (tag, attribute, value)
        assert found.values("div", "style") == usual.values("div", "style")
        assert clean(text) in found.text, name
        view.encode()  # no half of a pair is left


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_what_can_be_printed_is_shown_as_it_is(text: str) -> None:
    """Cleaning is for what cannot."""
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\0b\x1b[31m", "a\N{SYMBOL FOR NULL}b\N{SYMBOL FOR ESCAPE}[31m"),
        ("a\u202eb\u2066c", "a[U+202E]b[U+2066]c"),
        ("a\x85b\x7f", "a[U+0085]b[U+007F]"),
        ("\ud83d and \udc36", "\ufffd and \ufffd"),
        ("\N{DOG FACE} \u05d0\u200f one\r\ntwo\n\tthree", "\N{DOG FACE} \u05d0\u200f one\ntwo\n\tthree"),
    ],
)
def test_what_would_change_its_surroundings_is_made_visible(text: str, shown: str) -> None:
    """Controls, turns of direction, halves of pairs; what people write stays."""
    assert clean(text) == shown


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/a.png", URL, "HTTPS://flora.ai", "https://flora.ai?a#b", "https://flöra.ai/ä"]
)
def test_addresses(url: str) -> None:
    """By http and https."""
    assert is_address(url)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "flora.ai",
            "//flora.ai/a",
            "ftp://flora.ai/a",
            "file:///etc/passwd",
            "blob:https://flora.ai/1",
            "about:blank",
        ),
        *(
            "https:///a",
            "https:flora.ai",
            "https:\\\\flora.ai",
            "https://user:word@flora.ai/a",
            "https://flora.ai\\@other.ai",
        ),
        *(
            "java\nscript:x",
            " https://flora.ai",
            "https://flora.ai/a b",
            "https://flora.ai/\u202e",
            "https://flora.ai/\ud83d",
        ),
        *("https://flora.ai/\0", "https://flora.ai\n", "view-source:https://flora.ai", "data:image/png;base64,AA=="),
    ],
)
def test_no_addresses(url: str) -> None:
    """They are shown as text, and neither followed nor fetched."""
    assert not is_address(url)
    shown = Read(card(record(outputs=[output(kind, url) for kind in ("imageUrl", "videoUrl", "documentUrl", "new")])))
    assert not {"a", "img", "video", "audio"} & set(shown.elements)
    assert shown.text.count(clean(url)) >= 4


def test_each_type_of_output() -> None:
    """Thumbnails and players that wait until they are wanted, text as text, a link for the rest."""
    shown = Read(card(record(outputs=[output("imageUrl")], prompt="a mug")))
    assert shown.values("img", "src") == shown.values("a", "href") == [URL]
    assert shown.values("img", "loading") == ["lazy"]
    assert shown.values("img", "alt") == ["Image of run_1: a mug"]
    for kind in ("video", "audio"):
        shown = Read(card(record(outputs=[output(f"{kind}Url")])))
        assert shown.values(kind, "src") == [URL]
        assert shown.values(kind, "preload") == ["none"]
        assert shown.values(kind, "aria-label") == [f"{kind.title()} of run_1"]
    assert URL in Read(card(record(outputs=[output("text")]))).text
    assert not Read(card(record(outputs=[output("text")]))).elements["a"]
    for kind, words in (("documentUrl", "Open document"), ("hologramUrl", "Open hologramUrl")):
        shown = Read(card(record(outputs=[output(kind)])))
        assert shown.values("a", "href") == [URL]
        assert words in shown.text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"status": "pending", "progress": 0}, "Waiting"),
        ({"status": "running", "progress": 41.6}, "42 %"),
        ({"status": "paused", "progress": 7}, "7 %"),
        ({"status": "failed", "error_code": "safety_blocked", "error_message": "No."}, "safety_blocked No."),
        ({"status": "failed", "error_message": "No."}, "error No."),
        ({}, "No output"),
        ({"outputs": None}, "No output"),
        ({"charged_cost": 0.5}, "0.50 USD"),
        ({"charged_cost": 0.00125}, "0.00125 USD"),
        ({"created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}, "2026-01-02 03:04:05 UTC"),
        ({"model": {"model_id": "t2i-flux"}}, "t2i-flux"),
        ({"model": {"model_id": None}}, "run_1"),
        ({"model": None}, "run_1"),
        ({"prompt": "a ceramic mug"}, "a ceramic mug"),
    ],
)
def test_what_a_card_says(more: dict[str, Any], words: str) -> None:
    """Status, progress, cost, time, model, prompt, error."""
    said = " ".join(Read(card(record(**more))).text.split())
    assert words in said
    assert "run_1" in said


def test_what_the_filters_go_by() -> None:
    """Status and type of the first output, as attributes."""
    shown = Read(card(record(outputs=[output("videoUrl"), output("text")])))
    assert shown.values("article", "data-status") == ["completed"]
    assert shown.values("article", "data-kind") == ["video"]
    assert Read(card(record(outputs=[output("new")]))).values("article", "data-kind") == ["other"]
    assert Read(card(record())).values("article", "data-kind") == [""]


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_lets_nothing_in_but_what_is_ours(live: bool) -> None:
    """The script and the style by their hashes, media by http and https, and a live page itself."""
    shown = Read(page(record(), live=live))
    (policy, *_) = shown.values("meta", "content")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules.pop(name))
    assert rules.pop("img-src") == "http: https: data:"
    assert rules.pop("media-src") == "http: https:"
    assert (rules.pop("connect-src", None) == "'self'") is live
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}
    assert shown.elements["script"] == 1
    assert shown.values("script", "src") == []


def test_a_page_is_for_everybody() -> None:
    """A language, landmarks, one first heading and one for each run, a label for each field, a way past them."""
    shown = Read(page(record(), record(run_id="run_2")))
    assert shown.values("html", "lang") == ["en"]
    assert {tag: shown.elements[tag] for tag in ("header", "main", "h1", "h2", "article", "title")} == {
        **dict.fromkeys(("header", "main", "h1", "title"), 1),
        **dict.fromkeys(("h2", "article"), 2),
    }
    assert shown.elements["label"] == shown.elements["input"] + shown.elements["select"]
    assert shown.values("a", "href")[0] == f"#{shown.values('main', 'id')[0]}"
    assert ("form", "hidden", "") in shown.attributes  # until the script that it needs is there


def test_long_texts_can_be_reached_by_keyboard() -> None:
    """Since they scroll."""
    assert "tabindex" not in card(record(prompt="short"))
    assert Read(card(record(prompt="long " * 100))).values("p", "tabindex") == ["0"]


GENERATION = Generation(
    run_id="run_1",
    generation_id="run_1",
    project_id="prj_1",
    workspace_id="ws_1",
    status="completed",
    progress=100,
    created_at=1767323045000,
    charged_cost=0.04,
    model=ModelRef(model_id="t2i-flux"),
    outputs=(Output(output_id="o", type="imageUrl", url=URL), Output(output_id="o", type="text", url="line\n  two")),
)


def test_what_a_notebook_shows() -> None:
    """A table with links; nothing is fetched, run, or styled beyond it."""
    shown = Read(GENERATION._repr_html_())
    assert shown.values("a", "href") == [URL]
    assert not {"img", "video", "audio", "script", "style", "link", "iframe"} & set(shown.elements)
    for words in ("run_1", "completed", "t2i-flux", "imageUrl", "line\n  two", "0.04 USD", "2026-01-02 03:04:05 UTC"):
        assert words in shown.text


def test_what_a_notebook_shows_of_a_run_and_of_a_page() -> None:
    """A row each."""
    run = Run(run_id="run_2", status="running", progress=30, created_at=0)
    assert "running 30 %" in Read(run._repr_html_()).text
    failed = Run(run_id="run_2", status="failed", progress=30, created_at=0, error_code="e", error_message="why")
    assert "e why" in Read(failed._repr_html_()).text
    several = GenerationPage(generations=(GENERATION, GENERATION), meta=PageMeta(next_cursor="x"))
    assert Read(several._repr_html_()).elements["tr"] == 3
    assert "Page of the history" in several._repr_html_()
    assert "Last page" in GenerationPage(generations=(), meta=PageMeta())._repr_html_()


def test_importing_the_package_does_not_load_it() -> None:
    """Few look at runs."""
    loaded = "import sys, flora_async; print('flora_async._render' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"
