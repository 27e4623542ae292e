"""Foreign text made harmless: it can be read, and nothing in it runs, leads elsewhere or turns what follows around."""

from __future__ import annotations

import re
from html import escape

_UNSAFE_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Controls, what forces a direction on the text that follows, and halves of characters, which no file can hold."""

_LINKABLE_URL = re.compile(
    r"https?://(?![^/?#]*@)[^\s/?#\"<>\\^`{|}]+(?:[/?#][^\s\"<>\\^`{|}]*)?", re.IGNORECASE | re.ASCII
)
"""A web address as it stands: no other scheme, nobody's name before the host, nothing that a browser would mend."""

EXCERPT_LENGTH = 120
"""Characters that are shown of a long text before somebody opens it."""


def text(value: object) -> str:
    """Write a text so that it can stand between tags, and in a quoted attribute."""
    return escape(_UNSAFE_CHARACTERS.sub("\ufffd", str(value).replace("\r\n", "\n")))


def safe_link(value: object) -> str | None:
    """Write an address so that it can be linked to, or give ``None`` if it must not be."""
    url = str(value)
    return escape(url) if _LINKABLE_URL.fullmatch(url) and not _UNSAFE_CHARACTERS.search(url) else None


def collapsible(value: object, tag: str = "span") -> str:
    """Write a text of any length as an element: the whole of a long one lies behind its beginning."""
    whole = str(value)
    if len(whole) <= EXCERPT_LENGTH:
        return f'<{tag} dir="auto">{text(whole)}</{tag}>'
    beginning = f'<{tag} dir="auto">{text(whole[: EXCERPT_LENGTH - 20])}&hellip;</{tag}>'
    return f'<details><summary>{beginning}</summary><div class="whole" dir="auto">{text(whole)}</div></details>'
