"""The sandbox's front page: its newest runs as they go, for a browser."""

from __future__ import annotations

from datetime import UTC, datetime

from flora_async import _render
from flora_async.sandbox.runs import Runs, SandboxRun, Selection, generation_record

NEWEST = 200
"""How many runs are shown: a browser asks for them again each second."""


def front_page(runs: Runs, now: float, base_url: str) -> str:
    """Show the newest runs, with the prompts that they were ordered by."""
    newest, _, total = runs.page(Selection(limit=NEWEST), now)
    subtitle = f"A sandbox at {base_url}, live" + (f": the newest {NEWEST} of {total:,} runs" if total > NEWEST else "")
    cards = (_render.card(_record(run, now, base_url)) for run in newest)
    return "".join((_render.head("FLORA sandbox", subtitle, live=True), *cards, _render.foot()))


def _record(run: SandboxRun, now: float, base_url: str) -> dict[str, object]:
    created = datetime.fromtimestamp(run.created_at / 1000, UTC)
    return {**generation_record(run, now, base_url), "created": created, "prompt": run.order.prompt}
