"""Measure runs per second of durable batches: SQLite with one worker, PostgreSQL with one, two and three.

Each worker is a separate process, and so is the sandbox, whose runs take no time. All share one machine. Workers poll
by the default schedule. Prints a table, or JSON with ``--json``: wall seconds from the first stored order to the last
recorded end, and the CPU time of each part per run, which shows the bottleneck.

    python -m benchmarks.durable.throughput --runs 4000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
from postgres import cluster

from flora_async import Flora, Order
from flora_async.durable import Batches
from flora_async.sandbox import Sandbox

SPAWN = multiprocessing.get_context("spawn")


def serve(ready: Any, stopped: Signal) -> None:
    async def serving() -> None:
        async with Sandbox(time_scale=0.001, any_key=True) as sandbox:
            ready.put(sandbox.base_url)
            while not stopped.is_set():  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
            ready.put((sandbox.accepted, cpu()))

    asyncio.run(serving())


def work(base_url: str, database: str, name: str, runs: int, concurrency: int, said: Any) -> None:
    async def working() -> None:
        async with (
            Flora("key", base_url=base_url) as flora,
            Batches(flora, database=database, executor=name, concurrency=concurrency, only="bench") as batches,
        ):
            began, used = time.monotonic(), cpu()
            batch = batches["bench"]
            if runs:
                await batch.run(
                    Order(type="text", prompt=f"mug {number}", workspace_id="ws_1", project_id="prj_1")
                    for number in range(runs)
                )
            else:
                await batch.finished()
            said.put((time.monotonic() - began, cpu() - used))

    asyncio.run(working())


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder, cluster() as url:
        yield {"SQLite": f"sqlite:///{folder}/batch.db", "PostgreSQL": url}


def measure(kind: str, workers: int, runs: int, concurrency: int) -> dict[str, object]:
    ready, said, stopped = SPAWN.Queue(), SPAWN.Queue(), SPAWN.Event()
    sandbox = SPAWN.Process(target=serve, args=(ready, stopped))
    sandbox.start()
    base_url = ready.get(timeout=60)
    with databases() as urls:
        others = []
        first = SPAWN.Process(target=work, args=(base_url, urls[kind], "worker-0", runs, concurrency, said))
        first.start()
        for number in range(1, workers):
            time.sleep(1 if number == 1 else 0)  # the batch is there by then
            each = (base_url, urls[kind], f"worker-{number}", 0, concurrency, said)
            others.append(SPAWN.Process(target=work, args=each))
            others[-1].start()
        ends = [said.get(timeout=600) for _ in range(workers)]
        for process in (first, *others):
            process.join()
    stopped.set()
    accepted, sandbox_cpu = ready.get(timeout=60)
    sandbox.join()
    seconds = max(wall for wall, _ in ends)
    return {
        "database": kind,
        "workers": workers,
        "concurrency": concurrency,
        "runs": runs,
        "billed": accepted,
        "seconds": round(seconds, 2),
        "runs_per_second": round(runs / seconds, 1),
        "worker_cpu_ms_per_run": round(1000 * sum(used for _, used in ends) / runs, 2),
        "sandbox_cpu_ms_per_run": round(1000 * sandbox_cpu / runs, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=1000, help="of each worker")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for kind, workers in (("SQLite", 1), ("PostgreSQL", 1), ("PostgreSQL", 2), ("PostgreSQL", 3)):
        rows.append(measure(kind, workers, options.runs, options.concurrency))
        if not options.json:
            print("  ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
