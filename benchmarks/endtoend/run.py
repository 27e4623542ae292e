"""Measure the time from the first order to the last output on disk, beside ``asyncio.gather`` over each peer's waiter.

All clients are the real packages over loopback sockets, in virtual time: no work takes time, only the latencies, the
runs and the limit of the server do (``server.py``). ``--real`` measures flora-async in real time too, where a cell
takes less than three minutes. Peers that are not installed are skipped. Prints a table; ``--write`` saves it, its
data and a picture as ``results/endtoend.*``.

    python -m benchmarks.endtoend.run --quick
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.calls import awaited
from benchmarks.endtoend import contestants
from benchmarks.endtoend.report import draw, markdown
from benchmarks.endtoend.server import CREATE_SECONDS, MEDIA_SECONDS, POLL_SECONDS, Workspace, serve
from flora_async.sandbox import _virtual_time

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("flora-async", "aiohttp", "openai", "runwayml", "elevenlabs", "fal-client", "replicate", "httpx")
KINDS = ("image", "video")
LIMITS = (2.0, 10.0, 50.0)
COUNTS = (1, 10, 100, 1000, 10_000)
MAX_SECONDS = 12 * 3600.0
"""Virtual seconds after which a cell is stopped."""
MAX_CPU_SECONDS = 200.0
"""CPU seconds after which a cell is stopped."""
MAX_REAL_SECONDS = 180.0
ROUNDS = 3
SHOWN_TIMES = 100
"""Largest number of runs whose single times are kept."""
DEFAULT = "flora-async, defaults"


@dataclass(frozen=True)
class Cell:
    """A workload: runs of a type under a limit of requests a second."""

    kind: str
    limit: float
    count: int


def _no_bytes(_selector: object) -> bool:
    return False


@contextmanager
def _virtual(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let all modules read the loop's clock: time-outs and idle connections of the clients then follow it too.

    Both ends of each connection are in this process, and Linux delivers on loopback within the call that sends. So the
    loop need not look for bytes in flight in thousands of sockets.
    """
    selector = _virtual_time._TimeSkippingSelector
    real = time.time, time.monotonic, time.perf_counter
    waiting = _virtual_time.YIELD_SECONDS, selector._bytes_in_flight
    time.time, time.monotonic, time.perf_counter = (lambda: awaited.UNIX + loop.time()), loop.time, loop.time
    _virtual_time.YIELD_SECONDS, selector._bytes_in_flight = 0.0, _no_bytes  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        time.time, time.monotonic, time.perf_counter = real
        _virtual_time.YIELD_SECONDS, selector._bytes_in_flight = waiting  # type: ignore[method-assign]


def lower_bound(cell: Cell) -> float:
    """Return the seconds that no client can beat: a request for each create, one for the last end, one download."""
    runs, burst = awaited.Runs(), max(1.0, cell.limit)
    for number in range(cell.count):
        runs.create(cell.kind, max(0.0, (number + 1 - burst) / cell.limit) + CREATE_SECONDS / 2)
    return max(runs.ends) + POLL_SECONDS / 2 + MEDIA_SECONDS


async def _measure(contestant: contestants.Contestant, cell: Cell, folder: Path) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    async with serve(cell.kind, cell.limit) as workspace:
        began, cpu = loop.time(), time.process_time()
        task = asyncio.ensure_future(contestant(workspace, cell.count, folder))
        while not task.done() and loop.time() - began < MAX_SECONDS and time.process_time() - cpu < MAX_CPU_SECONDS:
            await asyncio.wait([task], timeout=5)
        stopped = not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=stopped)
        return _figures(workspace, cell, began, loop.time()) | {"stopped": stopped}


def _figures(workspace: Workspace, cell: Cell, began: float, ended: float) -> dict[str, Any]:
    lags = [when - workspace.runs.ends[number] for number, when in workspace.saved.items()]
    times = sorted(round(when - began, 2) for when in workspace.saved.values())
    return {
        "count": cell.count,
        "seconds": max(workspace.saved.values(), default=ended) - began,
        "saved": len(workspace.saved),
        "failures": dict(workspace.failures),
        "created": len(workspace.runs.created),
        "requests": workspace.requests,
        "429s": workspace.refused,
        "mean lag": statistics.fmean(lags) if lags else None,
        "max lag": max(lags, default=None),
        **({"times": times} if len(workspace.runs.created) <= SHOWN_TIMES else {}),
    }


def measure(name: str, cell: Cell) -> dict[str, Any]:
    """Measure one cell in virtual time. Raises ImportError if the package of the contestant is not installed."""
    contestant = contestants.load(name)
    random.seed(1)
    with (
        asyncio.Runner(loop_factory=_virtual_time.VirtualTimeLoop) as runner,
        TemporaryDirectory() as folder,
        _virtual(runner.get_loop()),
    ):
        return runner.run(_measure(contestant, cell, Path(folder)))


def _is_worth(name: str, cell: Cell, before: dict[str, Any] | None) -> bool:
    """Return whether a cell is measured, after the same contestant's cell with fewer runs."""
    if before is None:
        return True
    if name in contestants.OURS:  # the defaults keep 32 runs open: ten times the runs take ten times as long
        return cell.count <= 1000 or name != DEFAULT
    return bool(before["saved"] == before["count"])  # more runs fail where fewer did


def measure_all(names: list[str], limits: tuple[float, ...], counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure all cells of all contestants. Return a row for each cell."""
    rows: list[dict[str, Any]] = [
        {**asdict(cell), "bound": lower_bound(cell), "of": {}}
        for cell in (Cell(kind, limit, count) for kind in KINDS for limit in limits for count in counts)
    ]
    missing: set[str] = set()
    for name in names:
        before: dict[str, Any] | None = None
        for row in rows:
            cell = Cell(row["kind"], row["limit"], row["count"])
            before = None if cell.count == counts[0] else before
            if name in missing or not _is_worth(name, cell, before):
                before = before and {**before, "saved": -1}
                continue
            began = time.process_time()
            try:
                before = row["of"][name] = measure(name, cell)
            except ImportError as error:
                missing.add(name)
                print(f"{name} is left out: {error}", flush=True)
                continue
            shown = {key: value for key, value in before.items() if key != "times"}
            print(f"{name}, {cell}: {shown}, {time.process_time() - began:.1f} s of CPU", flush=True)
    return rows


async def _measure_round(short: list[tuple[str, Cell]]) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        paths = [Path(folder, str(number)) for number in range(len(short))]
        for path in paths:
            path.mkdir()
        return await asyncio.gather(
            *(_measure(contestants.load(name), cell, path) for (name, cell), path in zip(short, paths, strict=True))
        )


def measure_real(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure the short cells of flora-async in real time, all at the same time in each round."""
    short = [
        (name, Cell(row["kind"], row["limit"], row["count"]), figures["seconds"])
        for row in rows
        for name, figures in row["of"].items()
        if name in contestants.OURS and figures["seconds"] < MAX_REAL_SECONDS
    ]
    rounds = [asyncio.run(_measure_round([(name, cell) for name, cell, _ in short])) for _ in range(ROUNDS)]
    measured = []
    for (name, cell, virtual), *taken in zip(short, *rounds, strict=True):
        seconds = sorted(figures["seconds"] for figures in taken)
        row = {"name": name, **asdict(cell), "virtual": virtual, "real": seconds}
        measured.append({**row, "429s": sorted(figures["429s"] for figures in taken)})
        print(row, flush=True)
    return measured


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one limit, 100 runs at most")
    parser.add_argument("--only", action="append", help="name of a contestant", metavar="NAME")
    parser.add_argument("--real", action="store_true", help="measure flora-async in real time too")
    parser.add_argument("--write", action="store_true", help="save the results")
    options = parser.parse_args()
    names = options.only or [*contestants.OURS, *contestants.PEERS]
    rows = measure_all(names, (10.0,) if options.quick else LIMITS, COUNTS[:3] if options.quick else COUNTS)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "versions": _versions(),
        "rows": rows,
        "real": measure_real(rows) if options.real else [],
    }
    print(markdown(results))
    if options.write:
        (RESULTS / "endtoend.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "endtoend.md").write_text(markdown(results), encoding="utf-8")
        draw(results, RESULTS / "endtoend.png")


if __name__ == "__main__":
    main()
