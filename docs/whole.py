"""The guide for assistants: llms.txt, a list of its pages, and guide.md, all pages as one."""

from __future__ import annotations

import re
from pathlib import Path

_CHAPTER = re.compile(r"^## (.+)\n\n((?:- \[.*\n?)+)", re.MULTILINE)
_ENTRY = re.compile(r"\[([^]]+)]\((\S+\.md)\)")
_FILE = re.compile(r"^\[[^]]+]\((\.\./\S+\.(?:py|md))\)$", re.MULTILINE)


def files(folder: Path, version: str) -> dict[str, str]:
    """Return both files by name, from the pages that ``index.md`` in the folder lists."""
    index = (folder / "index.md").read_text(encoding="utf-8")
    head = f"# flora-async {version}\n\n> {_first_sentence(index)}\n"
    listing, pages = [head], [head]
    for caption, entries in _CHAPTER.findall(index):
        listing.append(f"\n## {caption}\n")
        for title, name in _ENTRY.findall(entries):
            path = folder / name
            text = read_page(path)
            listing.append(f"- [{title}](guide.md#{_anchor(text)}): {_first_sentence(text)}")
            pages.append(f"\n{text}")
    listing.append("\nAll pages as one: [guide.md](guide.md)\n")
    return {"llms.txt": "\n".join(listing), "guide.md": "".join(pages)}


def read_page(path: Path) -> str:
    """Return a page, with the text of the files to which a line alone links in the place of the link."""

    def include(link: re.Match[str]) -> str:
        text = (path.parent / link[1]).read_text(encoding="utf-8").strip()
        return text if link[1].endswith(".md") else f"`{Path(link[1]).name}`:\n\n```python\n{text}\n```"

    return _FILE.sub(include, path.read_text(encoding="utf-8"))


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", text.split("\n", 1)[0].lower().lstrip("# ")).replace(" ", "-")


def _first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph that is plain text; empty if there is none."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in outside.split("\n\n")[1:]:
        line = " ".join(paragraph.split())
        if line and line[0] not in "#-|!<":
            return re.split(r"(?<=[.])\s", line)[0]
    return ""
