"""Measure what the workers of one durable batch send under FLORA's rate limit, with and without their shared allowance.

PostgreSQL, and each worker and the sandbox a process of its own. Three workers, of which one is killed with SIGKILL in
the middle, are compared with one that has as many orders in flight. Counted at the sandbox, after a quarter of the
time: accepted requests as a share of the limit, and refused ones (429) for each accepted one.

    python -m benchmarks.durable.workers
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
from postgres import cluster

from flora_async import Flora, Order
from flora_async.durable import Batches
from flora_async.sandbox import Sandbox

SPAWN = multiprocessing.get_context("spawn")
CONCURRENCY = 120
"""Orders in flight, of all workers."""
RESULTS = Path(__file__).parents[1] / "results"
CASES = {"one worker": (1, True), "three, shared allowance": (3, True), "three, each for itself": (3, False)}


class Counting(Sandbox):
    """A sandbox that counts the requests that its rate limit accepts and refuses."""

    counts: Counter[str]

    def _check_rate(self, key: str) -> None:
        self.counts["refused"] += 1
        super()._check_rate(key)
        self.counts["refused"] -= 1
        self.counts["accepted"] += 1


def serve(limit: float, ready: Any, asked: Any, stopped: Signal) -> None:
    async def serving() -> None:
        async with Counting(time_scale=0.5, any_key=True, rate_limit=limit) as sandbox:
            sandbox.counts = Counter()
            ready.put(sandbox.base_url)
            while not stopped.is_set():
                await asyncio.sleep(0.02)
                if not asked.empty():
                    asked.get()
                    ready.put((time.monotonic(), sandbox.counts["accepted"], sandbox.counts["refused"]))
            ready.put((sandbox.accepted, [order.prompt for order in sandbox.orders.values()]))

    asyncio.run(serving())


def work(base_url: str, database: str, orders: int, concurrency: int, shared: bool) -> None:
    async def working() -> None:
        async with (
            Flora("key", base_url=base_url) as flora,
            Batches(flora, database=database, concurrency=concurrency, only="bench") as batches,
        ):
            if not shared:
                flora.allowance = None
            batch = batches["bench"]
            if orders:
                await batch.run(
                    Order(type="text", prompt=f"mug {number}", workspace_id="ws_1", project_id="prj_1")
                    for number in range(orders)
                )
            else:
                while not await batches.statuses():  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.1)
                await batch.finished()

    asyncio.run(working())


def measure(limit: float, workers: int, seconds: float, *, shared: bool) -> dict[str, float]:
    """Return the figures of one case: three quarters of the time are counted, and one worker is killed halfway."""
    ready, asked, stopped = SPAWN.Queue(), SPAWN.Queue(), SPAWN.Event()
    sandbox = SPAWN.Process(target=serve, args=(limit, ready, asked, stopped))
    sandbox.start()
    base_url = ready.get(timeout=60)

    def count() -> tuple[float, float, float]:
        asked.put(None)
        at, accepted, refused = ready.get(timeout=60)
        return at, accepted, refused

    with cluster() as url:
        processes = []
        for number in range(workers):
            orders = 0 if number else 1000 + int(limit * seconds)
            task = (base_url, url, orders, CONCURRENCY // workers, shared)
            processes.append(SPAWN.Process(target=work, args=task, daemon=True))
            processes[-1].start()
        while count_owners(url) < workers:
            time.sleep(0.1)
        time.sleep(seconds / 4)
        changes = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'flora_allowances'"
        first, first_changes = count(), ask(url, changes)
        time.sleep(seconds * 3 / 8)
        if workers > 1:
            os.kill(processes[-1].pid or 0, signal.SIGKILL)
        time.sleep(seconds * 3 / 8)
        last, last_changes = count(), ask(url, changes)
        for process in processes:
            process.kill()
            process.join()
    stopped.set()
    accepted, prompts = ready.get(timeout=60)
    sandbox.join()
    assert accepted == len(set(prompts)), "an order was billed twice"
    spent, admitted, refused = (after - before for before, after in zip(first, last, strict=True))
    return {
        "share": admitted / spent / limit,
        "refusals": refused / admitted,
        "accepted_per_second": admitted / spent,
        "changes_per_second": (last_changes - first_changes) / spent,
    }


def count_owners(url: str) -> int:
    """Return the number of workers that have orders in flight."""
    try:
        return ask(url, "SELECT count(DISTINCT owner) FROM flora_orders WHERE state = 'running'")
    except sa.exc.ProgrammingError:  # there is no table yet
        return 0


def ask(url: str, sql: str) -> int:
    """Return the number that a query yields."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return int(connection.scalar(sa.text(sql)) or 0)


def table(results: dict[str, Any]) -> str:
    """Return the results as a page of Markdown."""

    def span(values: list[float], digits: int) -> str:
        low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
        return f"{middle} [{low} .. {high}]"

    lines = [
        f"{results['date']}, {results['machine']}; {results['rounds']} rounds of {results['seconds']:g} s;",
        "median [least .. most]. Of three workers one is killed in the middle.",
        "",
        "| limit, requests/s | workers | accepted / limit | 429s for each accepted | changes of the row a second |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        figures = (span(row["share"], 3), span(row["refusals"], 3), span(row["changes_per_second"], 1))
        lines.append(f"| {row['limit']:g} | {row['case']} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", "    python -m benchmarks.durable.workers --write", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limits", type=float, nargs="+", default=[10, 50], help="requests a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of each case")
    parser.add_argument("--write", action="store_true", help="save the results: results/workers.json and .md")
    options = parser.parse_args()
    rows: dict[tuple[float, str], dict[str, Any]] = {}
    for number in range(options.rounds):
        for limit in options.limits:
            for case, (workers, shared) in CASES.items():
                figures = measure(limit, workers, options.seconds, shared=shared)
                row = rows.setdefault((limit, case), {"limit": limit, "case": case})
                for name, value in figures.items():
                    row.setdefault(name, []).append(round(value, 4))
                said = "  ".join(f"{name}={value:.3f}" for name, value in figures.items())
                print(f"round {number + 1}: {limit:g}/s, {case}: {said}", file=sys.stderr, flush=True)
        results = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "rounds": number + 1,
            "seconds": options.seconds,
            "concurrency": CONCURRENCY,
            "rows": list(rows.values()),
        }
        if options.write:
            (RESULTS / "workers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (RESULTS / "workers.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def machine() -> str:
    """Return the processor and the versions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{names[0] if names else 'unknown'}, {os.cpu_count()} cores, Python {python}"


if __name__ == "__main__":
    main()
