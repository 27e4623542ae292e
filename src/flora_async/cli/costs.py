"""``flora-async costs``, and the estimates of ``--dry-run``."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta

from flora_async import CostTable, Estimate, KindEstimate
from flora_async.cli import arguments, output

BAR_WIDTH = 30
"""Characters of the longest bar."""

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_SPAN = re.compile(r"(\d{1,6})([hdw])")


def parse_since(text: str | None) -> datetime | timedelta | None:
    """Parse ``--since``: a span before now like ``24h``, ``30d`` or ``4w``, or a time of ISO 8601, by default in UTC.

    Raises:
        UsageError: the text is neither.
    """
    if text is None:
        return None
    span = _SPAN.fullmatch(text)
    if span is not None:
        return int(span[1]) * _UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise arguments.UsageError(f"--since takes a span like 24h or a date like 2026-11-25, not {text!r}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def print_table(table: CostTable, options: argparse.Namespace) -> None:
    """Print the rows and their sum in the format of the options."""
    if table.broken:
        output.print_status(f"{table.broken} items of the history cannot be parsed, and are not counted")
    if options.format == "json":
        output.print_json({**output.to_dict(table), "total": output.to_dict(table.total)})
        return
    if options.format == "jsonl":
        for row in table.rows:
            output.print_json_line(output.to_dict(row))
        return
    highest = max((row.charged for row in table.rows), default=0.0)
    fields = ("runs", "completed", "failed", "unsettled", "charged")
    columns = [table.by, *fields, *(["bar"] if options.draw else [])]
    printed = output.Rows(options.format, columns)
    for name, row in [*((row.key or "(none)", row) for row in table.rows), ("total", table.total)]:
        cells: dict[str, object] = {table.by: name, **{field: getattr(row, field) for field in fields}}
        if options.format == "table":
            cells["charged"] = f"{row.charged:.4f}"
        if options.draw and name != "total":
            cells["bar"] = _bar(row.charged, highest)
        printed.add(cells)
    printed.end()


def _bar(amount: float, highest: float) -> str:
    character = "█" if (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf") else "#"
    return character * max(amount > 0, round(BAR_WIDTH * amount / highest)) if highest else ""


def describe_kind(estimate: KindEstimate, count: int) -> str:
    """Return the expected cost of *count* orders of one kind as a phrase."""
    orders = f"{count} {estimate.kind}{f' by {estimate.endpoint}' if estimate.endpoint else ''}"
    if estimate.usd is None or estimate.low is None or estimate.high is None:
        return f"{orders}: cost unknown until the first run is charged"
    each = count / estimate.orders
    source = {"charges": f"as {estimate.runs} earlier runs here", "quote": "by FLORA's quote"}
    text = f"{orders}: about {each * estimate.usd:.2f} USD, {source.get(estimate.basis, 'by the catalogue')}"
    if estimate.high > estimate.low:
        text += f", {each * estimate.low:.2f} to {each * estimate.high:.2f}"
    return text


def estimate_to_dict(estimate: Estimate) -> dict[str, object]:
    """Return an estimate as plain JSON types, with its sums."""
    sums = {name: getattr(estimate, name) for name in ("orders", "usd", "low", "high", "seconds", "basis")}
    return {**sums, **output.to_dict(estimate)}
