"""Measure growth: waits in one client, items of a history, orders of a durable batch.

Prints tables. ``--write`` saves them as results/growth.md, the figures as growth.json and the curves as growth.png;
parts that are left out by ``--only`` stay as they are saved.

    nice python -m benchmarks.growth.run --window 1000000 --write

A million orders take 45 minutes. Without ``--window``, 20,000 orders of each batch are ordered.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.calls.run import machine, versions
from benchmarks.growth import batches, history, in_process, waits

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]
COLUMNS = {
    "waits": {
        "waits": ",d",
        "ended by": "",
        "collector": "",
        "memory, KiB a wait": ".2f",
        "objects a wait": ".0f",
        "begin: pass, ms": ".0f",
        "wait: pass, ms": ".0f",
        "end: pass, ms": ".0f",
        "longest collection, ms": ".0f",
        "CPU, µs a wait": ".0f",
        "planning, µs a wait": ".0f",
        "longest planning, ms": ".0f",
        "requests a wait": ".2f",
        "mean lag, s": ".1f",
    },
    "history": {
        "items": ",d",
        "items a second": ",.0f",
        "CPU, µs an item": ".1f",
        "peak memory, MB": ".1f",
        "seconds": ".1f",
    },
    "batches": {
        "database": "",
        "orders": ",d",
        "ordered": ",d",
        "stored orders a second": ",.0f",
        "store seconds": ".1f",
        "first order after the last is stored, seconds": ".2f",
        "orders a second": ".0f",
        "CPU, ms an order": ".2f",
        "peak memory of storing, MB": ".0f",
        "peak memory, MB": ".0f",
        "stored MB on disk": ".1f",
        "MB on disk": ".1f",
        "close seconds": ".2f",
        "status seconds": ".3f",
        "cost sums seconds": ".3f",
        "resume seconds": ".2f",
        "open, resume and first order, seconds": ".2f",
    },
}


def measure(part: str, *, quick: bool, window: int) -> Iterator[Row]:
    """Yield the rows of a part. Of each batch, *window* orders are ordered."""
    if part == "waits":
        for count in (200,) if quick else waits.COUNTS:
            for end in waits.ENDS:
                for collect in (True, False):
                    yield in_process(waits.measure, count, end, collect)
    elif part == "history":
        yield from history.measure(2_000 if quick else history.MARKS[-1])
    else:
        for kind, sizes in (batches.QUICK if quick else batches.SIZES).items():
            for size in sizes:
                yield batches.measure(kind, size, window)


def completed(row: Row) -> Row:
    """Return a row with the figures that are computed from others."""
    longest: Row = {}
    for what in ("pass", "collection"):
        values = [value for name, value in row.items() if name.endswith(f": {what}, ms")]
        longest |= {f"longest {what}, ms": max(values)} if values else {}
    return row | longest


def cell(value: object, form: str) -> str:
    return "" if value is None else format(value, form)


def report(results: dict[str, Any]) -> str:
    """Return the tables, in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = ["# Growth", "", f"{results['machine']}; {versions}", ""]
    lines += [results["note"], ""] if "note" in results else []
    for part, columns in COLUMNS.items():
        if part in results:
            date, rows = results[part]["date"], [completed(row) for row in results[part]["rows"]]
            used = [name for name in columns if any(row.get(name) is not None for row in rows)]
            lines += [f"## {part.capitalize()}, {date}", "", f"| {' | '.join(used)} |", "|---" * len(used) + "|"]
            lines += [f"| {' | '.join(cell(row.get(name), columns[name]) for name in used)} |" for row in rows] + [""]
    return "\n".join(lines)


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the curves."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(17, 7))
    rows = {part: [completed(row) for row in results.get(part, {"rows": []})["rows"]] for part in COLUMNS}

    def plot(axis: Any, title: str, part: str, x: str, y: str, names: dict[str, Callable[[Row], bool]]) -> None:
        for number, (name, chosen) in enumerate(names.items()):
            points = [(row[x], row[y]) for row in rows[part] if chosen(row) and row.get(y)]
            axis.plot(*zip(*points, strict=True), "os^v"[number] + "-", label=name) if points else None
        axis.set(title=title, xlabel=x, xscale="log", ylim=(0, 1.1 * axis.dataLim.y1))
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=8)

    through = {
        "collector on": lambda row: bool(row["ended by"] == "end" and row["collector"]),
        "collector off": lambda row: bool(row["ended by"] == "end" and not row["collector"]),
    }
    kinds = {  # batches that were ordered whole
        "SQLite": lambda row: bool(row["database"] == "SQLite" and row["ordered"] == row["orders"]),
        "PostgreSQL": lambda row: bool(row["database"] == "PostgreSQL" and row["ordered"] == row["orders"]),
    }
    plot(axes[0][0], "CPU of a wait, its planning and polls, µs", "waits", "waits", "CPU, µs a wait", through)
    plot(axes[0][1], "Longest pass of the loop, ms", "waits", "waits", "longest pass, ms", through)
    axes[0][1].axhline(50, color="grey", linestyle="--")
    plot(axes[0][2], "Peak memory of a walk, MB", "history", "items", "peak memory, MB", {"": lambda _: True})
    plot(axes[1][0], "CPU of a durable order, ms", "batches", "orders", "CPU, ms an order", kinds)
    plot(axes[1][1], "Peak memory of a batch, MB", "batches", "orders", "peak memory, MB", kinds)
    plot(axes[1][2], "Status of a batch, seconds", "batches", "orders", "status seconds", kinds)
    axes[1][2].set(yscale="log", ylim=(1e-3, 1))
    plot(axes[1][3], "Size of a finished batch, MB", "batches", "orders", "MB on disk", kinds)
    axes[1][3].set(yscale="log", ylim=(1, 2e3))
    samples: list[Row] = max((row["samples"] for row in rows["batches"]), key=len, default=[])
    for before, after in pairwise(samples):
        rate = (after["started"] - before["started"]) / (after["seconds"] - before["seconds"])
        axes[0][3].plot(after["started"], rate, "o", color="C0", markersize=3)
    axes[0][3].set(title="Orders a second within a batch", xlabel="orders before", ylim=(0, 500))
    axes[0][3].grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def postgres() -> str:
    """Return the version of PostgreSQL, or an empty text."""
    try:
        said = subprocess.run(["postgres", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.split()[2]


def main() -> None:
    """Measure, print, and save the results on request."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="*", choices=list(COLUMNS), default=list(COLUMNS), help="these parts")
    parser.add_argument("--window", type=int, default=batches.WINDOW, help="orders of a batch that are ordered")
    parser.add_argument("--write", action="store_true", help="save the results")
    options = parser.parse_args()
    saved = RESULTS / "growth.json"
    results: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    found = {name: number for name, number in versions(Path()).items() if name in ("Python", "flora-async", "aiohttp")}
    results |= {"machine": machine(), "versions": found | {"SQLite": sqlite3.sqlite_version, "PostgreSQL": postgres()}}
    results.pop("note", None)  # about earlier figures
    for part in options.only:
        rows = []
        for row in measure(part, quick=options.quick, window=options.window):
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
        results[part] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "rows": rows}
        if options.write:
            saved.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            (RESULTS / "growth.md").write_text(report(results) + "\n", encoding="utf-8")
            draw(results, RESULTS / "growth.png")
    print(report({name: results[name] for name in ("machine", "versions", *options.only)}))


if __name__ == "__main__":
    main()
