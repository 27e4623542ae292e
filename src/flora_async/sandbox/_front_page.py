"""The sandbox's front page: its history with the prompts. The page reloads itself while runs change."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from flora_async._html.cards import Record, card
from flora_async._html.page import Totals, content_policy, page_end, page_start
from flora_async.sandbox._runs import SandboxRun, generation_record

RUNS_PER_PAGE = 100
"""Number of runs on a page."""

HEADERS = {
    "Content-Security-Policy": f"{content_policy(live=True)}; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page(runs: Iterable[SandboxRun], now: float, base_url: str, *, total: int, older: str | None) -> str:
    """Return the page of some of *total* runs; *older* is the URL of the next page."""
    records = [_record(run, now, base_url) for run in runs]
    about = f"{base_url}, the newest {len(records)} of {total:,}" if older else base_url
    more = f'<nav aria-label="Pages"><a href="/">Newest</a> <a href="{escape(older)}">Older</a></nav>' if older else ""
    return page_start("FLORA sandbox", about, Totals(records), live=True) + "".join(map(card, records)) + page_end(more)


def _record(run: SandboxRun, now: float, base_url: str) -> Record:
    extra = {
        "created": datetime.fromtimestamp(run.created_at / 1000, UTC),
        "prompt": run.order.prompt,
        "type": run.order.type,
    }
    return generation_record(run, now, base_url) | extra
