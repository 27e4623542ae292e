"""Pure: the page around the cards. One file with its style and script; its content policy allows no other script."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from flora_async._html.cards import OTHER, STATUSES, TYPES, Record, status_of, types_of, usd
from flora_async._html.escape import text


class Totals:
    """Number and cost of a page's runs, by status and type."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.runs = 0
        self.cost = 0.0
        self.statuses: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a run."""
        self.runs += 1
        self.cost += record.get("charged_cost") or 0.0
        self.statuses[status_of(record)] += 1
        self.types.update(types_of(record))


@cache
def _read_asset(name: str) -> str:
    return files("flora_async._html").joinpath(name).read_text(encoding="utf-8")


@cache
def content_policy(*, live: bool, local: bool = False) -> str:
    """Return the content security policy: media from the web, the page's own script, and for *live* its reload.

    With *local*, media may also be files of this machine.
    """
    media = "http: https: data: file:" if local else "http: https: data:"
    allowed = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": media,
        "media-src": media,
        "style-src": _hash(_read_asset("page.css")),
        "script-src": _hash(_read_asset("page.js")),
    }
    if live:
        allowed["connect-src"] = "'self'"
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def page_start(title: str, about: str, totals: Totals, *, live: bool = False, local: bool = False) -> str:
    """Return the page before the cards. A *live* page reloads its data every two seconds; *local* media are files."""
    return f"""<!DOCTYPE html>
<html lang="en"{" data-live" if live else ""}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{content_policy(live=live, local=local)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{_read_asset("page.css")}</style>
</head>
<body>
<a class="skip" href="#runs">Skip to the runs</a>
<header>
<h1>{text(title)}</h1>
<p>{text(about)}</p>
<p class="totals"><b>{totals.runs:,}</b> {"run" if totals.runs == 1 else "runs"}, <b>{usd(totals.cost)}</b></p>
</header>
<search aria-label="Filters">
{_filter_choice("status", "Status", STATUSES, totals.statuses, totals.runs)}
{_filter_choice("type", "Type", TYPES, totals.types, totals.runs)}
<div class="words" hidden><label for="words">Search</label>\
<input id="words" type="search" autocomplete="off" placeholder="prompt, model, id"></div>
{_LIVE if live else ""}<p id="shown" role="status"></p>
</search>
<main>
<ul id="runs" tabindex="-1">
"""


_LIVE = """\
<label class="live" hidden><input id="live" type="checkbox" checked>Live</label>
<noscript><p>Reload the page to see what is new.</p></noscript>
"""


def _filter_choice(name: str, legend: str, values: Iterable[str], counts: Counter[str], total: int) -> str:
    chips = [("", "all", total, " checked"), *((value, value, counts[value], "") for value in (*values, OTHER))]
    labels = "".join(
        f'<label data-count="{count}"><input type="radio" name="{name}" value="{value}"{checked}>{word}</label>'
        for value, word, count, checked in chips
    )
    return f"<fieldset><legend>{legend}</legend>{labels}</fieldset>"


def page_end(more: str = "") -> str:
    """Return the page after the cards; *more* is HTML with links to other pages."""
    return f"""</ul>
<p class="empty">There are no runs yet.</p>
<p id="none" hidden>No run fits.</p>
</main>
<footer>{more}<p>Made by flora-async. Pictures, videos and sounds are fetched from where they are, as you come by.</p>
</footer>
<script>{_read_asset("page.js")}</script>
</body>
</html>
"""
