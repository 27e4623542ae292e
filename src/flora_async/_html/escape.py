"""Pure: escape untrusted text. It stays readable, but cannot run, link elsewhere or change the text direction."""

from __future__ import annotations

import re
from html import escape

_UNSAFE_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, direction overrides, and lone surrogates, which no file can hold."""

_LINKABLE_URL = re.compile(
    r"https?://(?![^/?#]*@)[^\s/?#\"<>\\^`{|}]+(?:[/?#][^\s\"<>\\^`{|}]*)?", re.IGNORECASE | re.ASCII
)
"""A web URL without user information and without characters that a browser would rewrite."""

EXCERPT_LENGTH = 120
"""Maximum number of characters shown of a collapsed text."""


def text(value: object) -> str:
    """Escape a text for use between tags and in quoted attributes."""
    return escape(_UNSAFE_CHARACTERS.sub("\ufffd", str(value).replace("\r\n", "\n")))


def safe_link(value: object) -> str | None:
    """Return an escaped URL for a link; ``None`` if the URL is not safe to link to."""
    url = str(value)
    return escape(url) if _LINKABLE_URL.fullmatch(url) and not _UNSAFE_CHARACTERS.search(url) else None


def collapsible(value: object, tag: str = "span") -> str:
    """Return a text as an element; a long text is collapsed behind its beginning."""
    whole = str(value)
    if len(whole) <= EXCERPT_LENGTH:
        return f'<{tag} dir="auto">{text(whole)}</{tag}>'
    beginning = f'<{tag} dir="auto">{text(whole[: EXCERPT_LENGTH - 20])}&hellip;</{tag}>'
    return f'<details><summary>{beginning}</summary><div class="whole" dir="auto">{text(whole)}</div></details>'
