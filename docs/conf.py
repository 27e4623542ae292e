"""Configuration of Sphinx for `nox -s docs`. The build needs no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils.nodes import Element, bullet_list, document, literal, reference, title
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

import flora_async

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import whole  # noqa: E402
from names import linked_names, pages, signatures  # noqa: E402 - neighbours of this file

project = "flora-async"
version = release = flora_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "notebook"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

OTHERS = """
    aiohttp asyncio backoff collections datetime email msgspec opentelemetry os pandas pathlib polars pyarrow pytest ssl
    typing
"""
"""Packages whose names are not linked: their inventories are not read."""
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(OTHERS.split())})\..*"),
    ("py:.*", r"(flora_async\..*\.)?_?([A-Z]\w*)?T(_co)?"),  # type variables
    ("py:class", r"flora_async\.errors\._RunError|flora_async\._costs\.CostTracker"),
    ("py:class", r"flora_async\._(http|resources)\.\w+\.\w+"),  # in the signatures of public names
    ("py:class", r"Any|Callable|Generator|Mapping|Outputs"),
]


def _write_pages(_app: Sphinx) -> None:
    """Write the page of each public name."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        old.unlink()
    for name, text in pages().items():
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    (HERE / "reference.md").write_text(signatures(), encoding="utf-8")  # in the repository too, for readers there


def _write_whole_guide(app: Sphinx, exception: Exception | None) -> None:
    """Write llms.txt and the guide as one page of Markdown beside the site."""
    if exception is None and app.builder.name == "html":
        for name, text in whole.files(HERE, version).items():
            (Path(app.outdir) / name).write_text(text, encoding="utf-8")


def _read_google_style(_app: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Read the sections of docstrings; those of attributes have none, and their colons are mere colons."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines).lines()


def _hide_signature(
    _app: Sphinx, what: str, _name: str, value: object, _options: object, signature: str | None, _returns: str
) -> tuple[str, str] | None:
    """Show signatures of the classes that users construct: those with documented arguments, and public records."""
    made_here = "._" in getattr(value, "__module__", "") and "Args:" not in (value.__doc__ or "")
    return ("", "") if signature and (what == "exception" or (what == "class" and made_here)) else None


_FILE = re.compile(r"^\[[^]]+]\((\.\./\S+\.(?:py|md))\)$", re.MULTILINE)
_CHAPTER = re.compile(r"^## (.+)\n\n((?:- \[.*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"\((\S+)\.md\)")


def _read_plain_markdown(_app: Sphinx, name: str, source: list[str]) -> None:
    """Include the files that a line alone links to, and list the chapters of the front page in the navigation.

    The pages are plain Markdown, which code hosts show as it stands.
    """
    source[0] = _FILE.sub(_include, source[0])
    if name == "index":
        chapters = _CHAPTER.findall(source[0])
        unlisted = {f"guide/{page.stem}" for page in (HERE / "guide").glob("*.md")} - set(_ENTRY.findall(source[0]))
        source[0] += "".join(_toctree(_ENTRY.findall(entries), caption) for caption, entries in chapters)
        source[0] += _toctree(sorted(unlisted), "Further pages") if unlisted else ""
    if name == "reference":
        source[0] += _toctree(["api/index"])


def _toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def _include(link: re.Match[str]) -> str:
    if link[1].endswith(".md"):
        return f"```{{include}} {link[1]}\n```"
    return f"```{{literalinclude}} {link[1]}\n:language: python\n```"


def _link_names(app: Sphinx, doctree: document) -> None:
    """Link each public name that a page of the guide shows as code."""
    if app.env.docname.startswith("api/"):
        return
    if app.env.docname == "index":
        next(iter(doctree.findall(bullet_list)))["classes"].append("doors")
    names = linked_names()
    for code in list(doctree.findall(literal)):
        target = names.get(code.astext().removesuffix("()"))
        parent: Element | None = code.parent
        if target is None or parent is None or isinstance(parent, reference | pending_xref | title):
            continue
        link = pending_xref("", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True)
        parent.replace(code, link)
        link += code


def _unlink_builtins(_app: Sphinx, doctree: document) -> None:
    """Remove links of ``type`` in annotations: Sphinx would link any attribute of that name."""
    for link in list(doctree.findall(pending_xref)):
        if link["reftarget"] == "type":
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _read_google_style)
    app.connect("autodoc-process-signature", _hide_signature)
    app.connect("source-read", _read_plain_markdown)
    app.connect("build-finished", _write_whole_guide)
    app.connect("doctree-read", _link_names)
    app.connect("doctree-read", _unlink_builtins)
