"""Run one contestant: read a workload from each line of stdin, print its cost."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.calls import server

AT_ONCE = 64
POLL_INTERVAL = 30.0
AWAIT_SECONDS = 150.0
"""Time after which runs that are still awaited are given up. The slowest of a thousand runs takes 50 seconds."""


def spent() -> float:
    """Return the CPU seconds used by this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


async def _crowd(calls: int, call: Callable[[int], Awaitable[object]]) -> None:
    numbers = iter(range(calls))

    async def one() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def _waiting(contestant: Any, runs: int) -> float:
    """Return the bytes per run of *runs* waiting runs."""

    async def poll_and_sleep(run_id: str) -> None:
        while (await contestant.retrieve(run_id)).status != "completed":  # noqa: ASYNC110 - polls are measured
            await asyncio.sleep(POLL_INTERVAL)

    wait = getattr(contestant, "wait", poll_and_sleep)
    ids = [f"run_slow{number:010}" for number in range(runs)]
    await _crowd(4 * AT_ONCE, lambda _: contestant.retrieve("run_bench"))
    before = resident()
    waits: list[asyncio.Task[object]] = []
    for first in range(0, runs, AT_ONCE):
        waits += [asyncio.create_task(wait(run_id)) for run_id in ids[first : first + AT_ONCE]]
        await asyncio.sleep(0.25)
    await asyncio.sleep(1)
    after = resident()
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return (after - before) / runs


async def _await_runs(module: Any, base_url: str, runs: int) -> dict[str, Any]:
    """Start *runs* runs at once and await each by the client's own waiter. Return CPU seconds and end times."""
    ended: list[float] = []

    async def one(contestant: Any, number: int) -> None:
        try:
            await contestant.await_run(number)
        except Exception as error:  # noqa: BLE001 - counted, whatever a client raises
            failures[type(error).__name__] = failures.get(type(error).__name__, 0) + 1
        else:
            ended.append(time.monotonic())

    failures: dict[str, int] = {}
    async with module.connect(f"{base_url}/await/{module.API}") as contestant:
        before = spent()
        tasks = [asyncio.create_task(one(contestant, number)) for number in range(runs)]
        _, late = await asyncio.wait(tasks, timeout=AWAIT_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            failures["given up"] = len(late)
        return {"cpu": (spent() - before) / runs, "ended": ended, "failures": failures}


async def _mixed_waits(module: Any, base_url: str, runs: int) -> dict[str, float]:
    """Return the share of a core that *runs* waits take in their first minute, once all have started."""
    kinds = random.Random(1).choices(("image", "video", "audio", "text"), (60, 25, 10, 5), k=runs)
    async with module.connect(f"{base_url}/await/{module.API}") as contestant:
        started = [await contestant.create(number, type=kind) for number, kind in enumerate(kinds)]
        waits = [asyncio.create_task(contestant.wait(run)) for run in started]
        await asyncio.sleep(1)
        began, before = time.monotonic(), spent()
        await asyncio.sleep(60)
        share = (spent() - before) / (time.monotonic() - began)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return {"share": share}


def _decode(decode: Callable[[bytes], object], calls: int) -> None:
    body = server.page(0)
    for _ in range(calls):
        decode(body)


async def _measure(module: Any, base_url: str, contestant: Any, workload: str, calls: int) -> dict[str, Any]:
    """Run a workload. Return its figures."""
    if workload == "waiting":
        return {"bytes": await _waiting(contestant, calls)}
    if workload == "await":
        return await _await_runs(module, base_url, calls)
    if workload == "mixed":
        return await _mixed_waits(module, base_url, calls)
    if workload == "decode":
        _decode(module.decode_page, 2)
        began, before = time.perf_counter(), spent()
        _decode(module.decode_page, calls)
        return {"cpu": (spent() - before) / calls, "wall": (time.perf_counter() - began) / calls}
    return await _call(contestant, workload, calls)


async def _call(contestant: Any, workload: str, calls: int) -> dict[str, float]:
    """Make calls after a warm-up. Return CPU and wall seconds per call, or per item of the history."""
    await _crowd(AT_ONCE if workload in ("create", "crowd") else 1, lambda _: contestant.retrieve("run_bench"))
    if workload == "create":
        await _crowd(AT_ONCE, contestant.create)
    gc.collect()
    began, before = time.perf_counter(), spent()
    if workload == "history":
        calls = await contestant.history()
    elif workload == "create":
        await _crowd(calls, contestant.create)
    elif workload == "crowd":
        await _crowd(calls, lambda _: contestant.retrieve("run_bench"))
    else:
        for _ in range(calls):
            await contestant.retrieve("run_bench")
    return {"cpu": (spent() - before) / calls, "wall": (time.perf_counter() - began) / calls}


async def _work(module: Any, base_url: str) -> None:
    async with module.connect(base_url) as contestant:
        while line := await asyncio.to_thread(sys.stdin.readline):
            workload, calls = json.loads(line)
            print(json.dumps(await _measure(module, base_url, contestant, workload, calls)), flush=True)


def main() -> None:
    """Print that it is ready or which module is missing, then work until the end of stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant")
    parser.add_argument("base_url")
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    try:
        module = importlib.import_module(f"benchmarks.clients.{arguments.contestant}")
        factory = importlib.import_module("uvloop").new_event_loop if arguments.uvloop else None
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"imports": module.IMPORTS, "api": getattr(module, "API", None)}), flush=True)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_work(module, arguments.base_url))


if __name__ == "__main__":
    main()
