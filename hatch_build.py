"""The description of the package: the README with absolute links, for readers outside of the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Sets the field ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Read README.md and make its links absolute, with ``project.urls.Repository``."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute_links(text, metadata["urls"]["Repository"]),
        }


# The text of a link can be a picture, with an address of its own.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*)\]\(([^()]+)\)")


def absolute_links(text: str, repository: str) -> str:
    """Return Markdown whose relative links and pictures are absolute, at the repository's default branch."""

    def replace(link: re.Match[str]) -> str:
        picture, shown, target = link.groups()
        if not re.match(r"[a-z]+:|#", target):
            target = f"{repository}/{'raw' if picture else 'blob'}/HEAD/{target}"
        return f"{picture}[{_LINK.sub(replace, shown)}]({target})"

    return _LINK.sub(replace, text)
