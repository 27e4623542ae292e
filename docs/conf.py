"""Configuration of Sphinx for `nox -s docs`. The build needs no network."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

import flora_async

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from names import pages  # noqa: E402 - a neighbour of this file

project = "flora-async"
version = release = flora_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "notebook"]
myst_enable_extensions = ["deflist"]
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
    ("py:class", r"flora_async\.errors\._RunError"),
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


def _unlink_builtins(_app: Sphinx, doctree: document) -> None:
    """Remove links of ``type`` in annotations: Sphinx would link any attribute of that name."""
    for reference in list(doctree.findall(pending_xref)):
        if reference["reftarget"] == "type":
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _read_google_style)
    app.connect("autodoc-process-signature", _hide_signature)
    app.connect("doctree-read", _unlink_builtins)
