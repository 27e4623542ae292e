"""Measure the cost of a call with each client, relative to the floor: aiohttp and msgspec by hand.

Each contestant is a separate process on one core, the stub server on another. In each round they run the same
workloads in shuffled order, one at a time. Each is compared with the floor of its round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.calls import server
from benchmarks.clients import floor
from flora_async import Flora

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results"

CONTESTANTS = {
    "floor": ["floor"],
    "flora-async": ["flora"],
    "floor, uvloop": ["floor", "--uvloop"],
    "flora-async, uvloop": ["flora", "--uvloop"],
    "FLORA's npm client": ["npm"],
    "openai (Stainless)": ["openai_client"],
    "runwayml (Stainless)": ["runwayml_client"],
    "runwayml on aiohttp": ["runwayml_aiohttp"],
    "replicate": ["replicate_client"],
    "fal": ["fal"],
    "elevenlabs": ["elevenlabs_client"],
    "httpx + pydantic": ["httpx_pydantic"],
}
WAITERS = ("fal", "elevenlabs")
"""Contestants that have only a waiter: their calls do not reach another API."""
CLOSE = ("floor", "flora-async")
"""Contestants that differ by a few per cent. They get several turns in each round."""
TURNS = 5

AWAITED = {1: 3, 1000: 1}
"""Number of runs that are awaited at once, with the number of rounds."""
MIXED = 10_000

WORKLOADS = {"retrieve": 150, "crowd": 512, "history": 1, "create": 512, "decode": 20}
"""Number of calls in a turn, by workload."""
TITLES = {
    "retrieve": "retrieve, one after another",
    "crowd": "retrieve, 64 at a time",
    "history": "history, per item",
    "create": "create, 64 at a time",
    "decode": "decode a page of 100",
    "waiting": "memory per waiting run",
    "import": "import",
}
PACKAGES = (
    "flora-async", "aiohttp", "msgspec", "anyio", "backoff", "uvloop", "openai", "runwayml", "replicate",
    "fal-client", "elevenlabs", "httpx",
    "httpx-aiohttp", "pydantic",
)  # fmt: skip


class Worker:
    """The process of a contestant."""

    node_modules = Path()
    """Folder of the npm client."""

    def __init__(self, name: str, base_url: str, cpus: tuple[int | None, int | None], page: Path) -> None:
        self.name = name
        which, *options = CONTESTANTS[name]
        if which == "npm":
            pinned = ["taskset", "-c", str(cpus[0])] if cpus[0] is not None else []
            script = [str(HERE / "worker.mjs"), str(HERE.parent / "clients" / "npm.mjs"), base_url, str(page)]
            command = [*pinned, "node", "--expose-gc", *script]
        else:
            pinned = ["--cpu", str(cpus[0])] if cpus[0] is not None else []
            command = [sys.executable, "-m", "benchmarks.calls.worker", which, base_url, *pinned, *options]
        self.missing: str | None = None
        folder = self.node_modules if which == "npm" else ROOT
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
            )
        except FileNotFoundError as error:
            self.missing = str(error)
            return
        ready = self._answer()
        self.missing = ready.get("missing")
        self.imports: str | None = ready.get("imports")
        self.api: str | None = ready.get("api")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, workload: str, calls: int) -> dict[str, Any]:
        """Run a workload and return its cost."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([workload, calls]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Close the process."""
        if hasattr(self, "_process"):
            self._process.communicate()


@contextmanager
def canned(cpu: int | None) -> Iterator[tuple[str, int]]:
    """Run the stub server. Yield its base URL and process id."""
    command = [sys.executable, "-m", "benchmarks.calls.server", *(["--cpu", str(cpu)] if cpu is not None else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.terminate()


def busy(pid: int) -> float:
    """Return the CPU seconds used by a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def race(workers: list[Worker], rounds: int, scale: float, server_pid: int) -> dict[str, Any]:
    """Run all workloads in rounds. Return the figures by contestant and round, and the load of the server."""
    figures: dict[str, dict[str, list[float]]] = {workload: {} for workload in WORKLOADS}
    walls: dict[str, dict[str, list[float]]] = {workload: {} for workload in WORKLOADS}
    load: dict[str, list[float]] = {workload: [] for workload in WORKLOADS}
    for number in range(rounds):
        for workload, calls in WORKLOADS.items():
            able = [worker for worker in workers if worker.name not in WAITERS]
            turns = [worker for worker in able for _ in range(TURNS if worker.name in CLOSE else 1)]
            costs: dict[str, list[dict[str, float]]] = {}
            for worker in random.sample(turns, len(turns)):
                before, began = busy(server_pid), time.monotonic()
                costs.setdefault(worker.name, []).append(worker.do(workload, max(1, int(calls * scale))))
                if worker.name == "flora-async":
                    load[workload].append((busy(server_pid) - before) / (time.monotonic() - began))
            for name, parts in costs.items():
                figures[workload].setdefault(name, []).append(statistics.fmean(part["cpu"] for part in parts))
                walls[workload].setdefault(name, []).append(statistics.fmean(part["wall"] for part in parts))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {"cpu": figures, "wall": walls, "server": {name: statistics.fmean(shares) for name, shares in load.items()}}


def memory(names: list[str], url: str, cpus: tuple[int | None, int | None], page: Path, runs: int, rounds: int) -> Any:
    """Return the bytes per waiting run by contestant, each measured in a new process."""
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            worker = Worker(name, url, cpus, page)
            figures.setdefault(name, []).append(worker.do("waiting", runs)["bytes"])
            worker.close()
    return figures


def counts(url: str) -> dict[str, Any]:
    """Return the requests to the runs of the server and the times at which they end."""
    with urllib.request.urlopen(f"{url}/await/counts") as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def await_runs(names: list[str], url: str, cpus: tuple[int | None, int | None], page: Path) -> dict[str, Any]:
    """Await runs of ten seconds by each client's own waiter. Return CPU, requests and lag of a run by contestant."""
    figures: dict[str, Any] = {}
    for runs, rounds in AWAITED.items():
        for _ in range(rounds):
            for name in random.sample(names, len(names)):
                worker = Worker(name, url, cpus, page)
                if worker.api is not None and "uvloop" not in name:
                    before = counts(url)
                    figure = worker.do("await", runs)
                    after = counts(url)
                    ends = sorted(after["ends"][len(before["ends"]) :])
                    lags = [known - end for known, end in zip(sorted(figure["ended"]), ends, strict=False)]
                    row = {
                        "cpu": figure["cpu"],
                        "requests": (after["requests"] - before["requests"]) / runs,
                        "lag": statistics.fmean(lags) if lags else None,
                        "failures": figure["failures"],
                    }
                    figures.setdefault(str(runs), {}).setdefault(name, []).append(row)
                worker.close()
    return figures


def mixed_waits(url: str, cpus: tuple[int | None, int | None], page: Path, rounds: int) -> dict[str, list[float]]:
    """Return the share of a core that ten thousand mixed waits take, by contestant."""
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        worker = Worker("flora-async", url, cpus, page)
        figures.setdefault("flora-async", []).append(worker.do("mixed", MIXED)["share"])
        worker.close()
    return figures


def imports(workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each import from bytecode, less those of a bare interpreter."""
    modules = {worker.name: worker.imports for worker in workers if worker.imports and "uvloop" not in worker.name}
    figures: dict[str, list[float]] = {name: [] for name in modules}
    for module in modules.values():
        _imported(f"import {module}")  # writes the bytecode
    for _ in range(rounds):
        bare = _imported("")
        for name in random.sample(list(modules), len(modules)):
            figures[name].append(_imported(f"import {modules[name]}") - bare)
    return figures


def _imported(statement: str) -> float:
    code = f"{statement}\nimport resource as r\nu = r.getrusage(r.RUSAGE_SELF)\nprint(u.ru_utime + u.ru_stime)"
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=kept)
    return float(ran.stdout)


def measure(
    workers: list[Worker],
    where: tuple[str, tuple[int | None, int | None], Path],
    server_pid: int,
    rounds: int,
    *,
    quick: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the figures of one kind after another; *where* are the base URL, the cores and the page for decoding."""
    base_url, pages = where[0], 20 if quick else server.PAGES
    yield race(workers, rounds, 0.5 if quick else 1.0, server_pid)
    yield {"import": imports(workers, rounds)}
    yield {"prefetch": {"pages": pages, **asyncio.run(prefetch(f"{base_url}/late", pages))}}
    if not quick:
        names = [worker.name for worker in workers]
        yield {"waiting": memory([name for name in names if name in CLOSE], *where, runs=2000, rounds=7)}
        yield {"mixed": mixed_waits(*where, rounds=3)}
        yield {"await": await_runs(names, *where)}


async def prefetch(base_url: str, pages: int) -> dict[str, float]:
    """Return the seconds to read *pages* of the history, if server and reader each need 50 ms for a page."""
    cursor: str | None = ""
    async with floor.connect(base_url) as by_hand:
        await by_hand.retrieve("run_bench")
        began = time.monotonic()
        for _ in range(pages):
            cursor = (await by_hand.page(cursor)).meta.next_cursor
            await asyncio.sleep(server.LATE)
    without = time.monotonic() - began
    async with Flora("any", base_url=base_url) as flora:
        await flora.generations.retrieve("run_bench")
        began, left = time.monotonic(), pages
        async for _page in flora.generations.list(limit=100).pages():
            await asyncio.sleep(server.LATE)
            left -= 1
            if not left:
                break
    return {"without": without, "with": time.monotonic() - began}


def ratios(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """Compare each with the floor of the same round."""
    floor = figures["floor"]
    return {name: [own / base for own, base in zip(values, floor, strict=True)] for name, values in figures.items()}


def spread(values: list[float]) -> str:
    """Format a median and its range."""
    return f"**{statistics.median(values):.2f}** [{min(values):.2f} .. {max(values):.2f}]"


def table(results: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    columns = [*WORKLOADS, "waiting", "import"]
    lines = ["| | " + " | ".join(TITLES[column] for column in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in results["contestants"]:
        cells = []
        for column in columns:
            if column == "waiting":
                values = [size / 1024 for size in results.get("waiting", {}).get(name, [])]
                cells.append(f"{spread(values)} KiB" if values else "-")
            else:
                figures = results["import"] if column == "import" else results["cpu"][column]
                cells.append(spread(ratios(figures)[name]) if name in figures else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def await_table(results: dict[str, Any]) -> str:
    """Format the figures of awaited runs as a Markdown table."""
    columns = list(results["await"])
    titles = [f"{int(runs):,} {'run' if runs == '1' else 'runs'}: CPU ms, requests, lag s" for runs in columns]
    lines = ["| | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(columns)]
    for name in results["contestants"]:
        cells = []
        for runs in columns:
            rows = results["await"][runs].get(name, [])
            if not rows:
                continue
            cpu, requests = (statistics.median(row[what] for row in rows) for what in ("cpu", "requests"))
            lags = [row["lag"] for row in rows if row["lag"] is not None]
            failed = sum(sum(row["failures"].values()) for row in rows)
            kinds = ", ".join(sorted({kind for row in rows for kind in row["failures"]}))
            cell = f"{1000 * cpu:.1f}, {requests:.1f}, {statistics.median(lags) if lags else math.nan:.1f}"
            cells.append(cell + (f" ({failed} of {int(runs) * len(rows)} failed: {kinds})" if failed else ""))
        if cells:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _awaited(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if "await" in results:
        intro = "Runs of 10 seconds (median, log-normal), started at once, awaited by each client's own waiter:"
        lines += [intro, await_table(results)]
    if "mixed" in results:
        shares = [100 * share for share in results["mixed"]["flora-async"]]
        lines.append(f"{MIXED:,} mixed waits of flora-async take {spread(shares)} % of a core.")
    return lines


def report(results: dict[str, Any]) -> str:
    """Format the conditions of a run."""
    floor = results["cpu"]
    costs = ", ".join(
        f"{TITLES[workload]} {1e6 * statistics.median(floor[workload]['floor']):.3g} us" for workload in WORKLOADS
    )
    share = ", ".join(f"{TITLES[workload]} {100 * load:.0f} %" for workload, load in results["server"].items())
    late = results["prefetch"]
    return "\n\n".join(
        [
            f"{results['date']}, {results['machine']}; {results['rounds']} rounds. "
            + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
            + ".",
            "CPU against the floor of the same round, median [least .. most]; memory in KiB:",
            table(results),
            f"The floor itself, CPU: {costs}.",
            f"The server was busy, while flora-async was measured, for: {share}.",
            *_awaited(results),
            (
                f"{late['pages']} pages, 50 ms each at the server and 50 ms at the reader: {late['with']:.2f} s with "
                f"the look-ahead of flora-async, {late['without']:.2f} s without: {late['with'] / late['without']:.2f}."
            ),
        ]
    )


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the CPU of all contestants as multiples of the floor."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    workloads = ["retrieve", "crowd", "history", "create"]
    names = [name for name in results["contestants"] if name != "floor" and name not in WAITERS]
    figure, axes = plt.subplots(1, len(workloads), figsize=(13, 3.6), sharey=True)
    for axis, workload in zip(axes, workloads, strict=True):
        against = ratios(results["cpu"][workload])
        for place, name in enumerate(reversed(names)):
            values = against[name]
            middle = statistics.median(values)
            axis.barh(place, middle, color="#1b7f5c" if name.startswith("flora-async") else "#9aa5b1")
            axis.plot([min(values), max(values)], [place, place], color="#30363d", linewidth=1)
            axis.text(max(max(values), middle) * 1.08, place, f"{middle:.2f}", va="center", fontsize=8)
        axis.axvline(1, color="#c0392b", linewidth=1, linestyle="--")
        axis.set_xscale("log")
        axis.set_xlim(0.5, 60)
        axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axis.minorticks_off()
        axis.set_title(TITLES[workload], fontsize=10)
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("CPU per call, in times of aiohttp + msgspec by hand (dashed); log scale", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def versions(node_modules: Path) -> dict[str, str]:
    """Return the versions of all packages."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    package_json = node_modules / "node_modules" / "@flora-ai" / "flora" / "package.json"
    if package_json.exists():
        found["@flora-ai/flora"] = json.loads(package_json.read_text(encoding="utf-8"))["version"]
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
        found["node"] = node.stdout.strip().removeprefix("v")
    return found


def machine() -> str:
    """Return a description of the machine."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Measure, print, and save the results on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one smaller round, without the memory")
    parser.add_argument("--rounds", type=int, help="how many rounds")
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS), help="these contestants, and the floor")
    parser.add_argument("--node-modules", type=Path, default=Path(), help="folder of node_modules")
    parser.add_argument("--write", action="store_true", help="save the results: results/calls.json, .md and .png")
    arguments = parser.parse_args()
    Worker.node_modules = arguments.node_modules
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    cores = sorted(os.sched_getaffinity(0))
    cpus = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        base_url, server_pid = stack.enter_context(canned(cpus[1]))
        page = Path(stack.enter_context(TemporaryDirectory())) / "page.json"
        page.write_bytes(server.page(0))
        workers: list[Worker] = []
        for name in CONTESTANTS:
            if arguments.only is not None and name not in (*arguments.only, "floor"):
                continue
            worker = Worker(name, base_url, cpus, page)
            stack.callback(worker.close)
            if worker.missing:
                print(f"{name} is left out: {worker.missing}", file=sys.stderr)
            else:
                workers.append(worker)
        results: dict[str, Any] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine(),
            "rounds": rounds,
            "versions": versions(arguments.node_modules),
            "contestants": [worker.name for worker in workers],
        }
        for figures in measure(workers, (base_url, cpus, page), server_pid, rounds, quick=arguments.quick):
            results |= figures
            if arguments.write:
                (RESULTS / "calls.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(results))
    if arguments.write:
        (RESULTS / "calls.md").write_text(report(results) + "\n", encoding="utf-8")
        draw(results, RESULTS / "calls.png")


if __name__ == "__main__":
    main()
