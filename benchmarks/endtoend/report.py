"""The table and the picture of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS = "flora-async"
DEFAULTS = "flora-async, defaults"
PEERS = ("openai", "runwayml", "elevenlabs", "fal", "replicate")
COLOURS = dict(zip(PEERS, ("#1565c0", "#6a1b9a", "#2e7d32", "#ef6c00", "#546e7a"), strict=True))
PINK = "#c2185b"
SHOWN = {"limit": 10, "count": 100}
"""The cells whose course is drawn."""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def _cell(figures: dict[str, Any] | None, count: int) -> str:
    """Return the time of a cell, or how many of its runs gave no output."""
    if figures is None:
        return "-"
    if figures["saved"] == count:
        return _seconds(figures["seconds"])
    lost = count - figures["saved"]
    state = "open when stopped" if figures["stopped"] else "failed"
    return f"{lost:,} of {count:,} {state}, {min(figures['created'], count) - figures['saved']:,} of them accepted"


def _row(row: dict[str, Any]) -> str:
    ours, count = row["of"].get(OURS), row["count"]
    cells = [row["kind"], f"{row['limit']:g}", f"{count:,}", _seconds(row["bound"]), f"**{_cell(ours, count)}**"]
    if ours is None:
        cells += ["-", "-", "-"]
    else:
        cells += [f"{ours['requests'] / count:.2f}", f"{ours['429s']:,}", f"{ours['mean lag']:.1f}"]
    cells += [_cell(row["of"].get(name), count) for name in (DEFAULTS, *PEERS)]
    return f"| {' | '.join(cells)} |"


def _real(row: dict[str, Any]) -> str:
    least, middle, most = row["real"]
    taken = f"{_seconds(middle)} [{_seconds(least)} .. {_seconds(most)}]"
    what = f"{row['count']:,} {row['kind']}s, {row['limit']:g}/s"
    return f"| {row['name']} | {what} | {_seconds(row['virtual'])} | {taken} |"


def markdown(results: dict[str, Any]) -> str:
    """Return the table, with the versions and the rounds in real time."""
    heads = ["run", "limit/s", "runs", "at best", OURS, "requests a run", "429s", "mean lag"]
    heads += ["flora-async, defaults", *PEERS]
    lines = [
        "# From the first order to the last output on disk",
        "",
        "Seconds in virtual time, by `python -m benchmarks.endtoend.run --real --write`; how it is measured:",
        '[benchmarks/README.md](../README.md). "Accepted" runs are those that the server had started:',
        "they would be billed, and their client has neither their output nor their end.",
        "",
        f"| {' | '.join(heads)} |",
        "| --- " * len(heads) + "|",
        *map(_row, results["rows"]),
        "",
    ]
    if results["real"]:
        lines += [
            "In real time, seconds, the median of three rounds with the least and the most:",
            "",
            "| client | cell | virtual | real |",
            "| --- | --- | --- | --- |",
            *map(_real, results["real"]),
            "",
        ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join([*lines, f"{results['date']}, {results['machine']}. {versions}.", ""])


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the course of one cell of each type, and the time against the number of runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11})
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4), constrained_layout=True)
    for axis, kind in zip(axes, ("image", "video"), strict=False):
        row = next(row for row in results["rows"] if {**row, "kind": kind, **SHOWN} == row)
        _draw_course(axis, row)
    _draw_sizes(axes[2], results["rows"])
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_course(axis: Any, row: dict[str, Any]) -> None:
    """Draw the number of outputs on disk over time, for each client."""
    taken = [figures["seconds"] for name, figures in row["of"].items() if name != DEFAULTS]
    last = 1.05 * max(taken)
    heights: list[float] = []
    for name in sorted((name for name in row["of"] if name != DEFAULTS), key=lambda name: row["of"][name]["saved"]):
        times, mine = row["of"][name]["times"], name == OURS
        shown = {"color": PINK if mine else COLOURS[name], "linewidth": 3.0 if mine else 1.6}
        axis.step([0, *times, last], [0, *range(1, len(times) + 1), len(times)], where="post", **shown)
        heights.append(max(len(times) - 2.0, heights[-1] + 7 if heights else 0.0))
        weight = "bold" if mine else "normal"
        axis.text(1.02 * last, heights[-1], f"{name}: {len(times)}", color=shown["color"], fontweight=weight)
    axis.set_title(f"{row['count']} {row['kind']}s, limit {row['limit']:g} requests/s")
    axis.set_xlabel("seconds since the first order")
    axis.set_ylabel("outputs on disk")
    axis.set_xlim(0, 1.45 * last)
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= last])
    axis.set_ylim(0, 106)


def _draw_sizes(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the time of flora-async, and the time at best, over the number of images."""
    for limit in sorted({row["limit"] for row in rows}):
        cells = [row for row in rows if (row["kind"], row["limit"]) == ("image", limit) and OURS in row["of"]]
        counts = [row["count"] for row in cells]
        axis.plot(counts, [row["bound"] for row in cells], color="#78909c", linestyle="--", linewidth=1.6)
        axis.plot(counts, [row["of"][OURS]["seconds"] for row in cells], color=PINK, marker="o", markersize=4)
        axis.text(1.25 * counts[-1], cells[-1]["of"][OURS]["seconds"], f"{limit:g}/s", color=PINK, va="center")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("flora-async, dashed: at best")
    axis.set_xlabel("images")
    axis.set_ylabel("seconds to the last output")
    axis.set_xlim(0.8, 4 * max(row["count"] for row in rows))
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(lambda value, _: f"{value:,.0f}")
        scale.set_minor_formatter(lambda *_: "")
