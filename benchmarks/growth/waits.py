"""Measure 1,000 to 100,000 waits in one client: the real poller and rate limiter, in virtual time.

All waits begin at once, each in a task of its own, for runs that take two minutes (median). A pass is all that an event
loop does between two looks at its sockets and timers; the longest is the longest stall of everything else. It is
measured in CPU time of the thread, which a busy machine does not change. The figures contain the simulated server. Runs
are also left to time out together, and to a client that closes.

    python -m benchmarks.growth.waits --counts 1000 10000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import random
import selectors
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.growth import in_process, resident_memory
from benchmarks.polling.simulation import Simulated, SimulatedFlora, VirtualTimeLoop, _Selector, started
from flora_async import FloraError
from flora_async._polling.poller import Poller
from flora_async._polling.waiting import wait_for_run

COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)
ENDS = ("end", "timeout", "close")
"""How the waits end: with their runs, by one timeout for all, or because the client is closed."""
STEP = 200
"""Waits that the caller begins in one pass."""
TIMEOUT = 120.0


class Passes(_Selector):
    """Measures the passes of the event loop, and its garbage collections."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = self.longest_collection = self._began = self._collection = 0.0
        self.over = 0
        """Number of passes over 50 ms."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        seconds = time.thread_time() - self._began if self._began else 0.0
        self.longest = max(self.longest, seconds)
        self.over += seconds > 0.05
        ready = super().select(timeout)
        self._began = time.thread_time()
        return ready

    def on_collection(self, phase: str, _details: object) -> None:
        if phase == "start":
            self._collection = time.thread_time()
        else:
            self.longest_collection = max(self.longest_collection, time.thread_time() - self._collection)

    def take(self) -> dict[str, float]:
        """Return the figures since the last call."""
        taken = {
            "pass, ms": 1e3 * self.longest,
            "collection, ms": 1e3 * self.longest_collection,
            "over 50 ms": self.over,
        }
        self.longest = self.longest_collection = 0.0
        self.over = 0
        return taken


class MeasuredLoop(VirtualTimeLoop):
    """A loop in virtual time whose passes are measured."""

    def __init__(self) -> None:
        self.passes = self._virtual = Passes()
        asyncio.SelectorEventLoop.__init__(self, self._virtual)


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return the function, and add the seconds of each call to *spent*."""

    def measured(*arguments: Any) -> Any:
        began = time.thread_time()
        result = function(*arguments)
        spent.append(time.thread_time() - began)
        return result

    return measured


async def _wait(poller: Poller, run: Simulated, timeout: float | None, lags: list[float]) -> None:
    target = started(run, (run.ends - run.began) * 1.1)
    try:
        await wait_for_run(poller, target, poll=None, timeout=timeout, on_update=None)
    except FloraError:
        return
    lags.append(asyncio.get_running_loop().time() - run.ends)


async def _measure(count: int, end: str) -> dict[str, Any]:
    loop, chance = asyncio.get_running_loop(), random.Random(count)
    assert isinstance(loop, MeasuredLoop)
    flora = SimulatedFlora()
    runs = []
    for number in range(count):
        works = 120 * math.exp(0.5 * chance.gauss(0, 1)) if end == "end" else math.inf
        runs.append(Simulated(f"run_{number}", -30 * number / count, chance.expovariate(1), works))
        flora.add(runs[-1])
    poller, planning, lags = Poller(flora.operations()), list[float](), list[float]()
    poller._start_polls = timed(poller._start_polls, planning)  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()  # the simulated runs are no objects of a client
    objects, memory, used = len(gc.get_objects()), resident_memory(), time.process_time()
    await asyncio.sleep(0)
    loop.passes.take()
    tasks = list[asyncio.Task[None]]()
    for number, run in enumerate(runs):
        wait = _wait(poller, run, TIMEOUT if end == "timeout" else None, lags)
        tasks.append(asyncio.create_task(wait))
        if number % STEP == STEP - 1:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    held = resident_memory() - memory
    figures: dict[str, Any] = {"waits": count, "ended by": end}
    figures["objects a wait"] = (len(gc.get_objects()) - objects) / count
    figures["memory, KiB a wait"] = held / count / 1024
    figures |= {f"begin: {name}": value for name, value in loop.passes.take().items()}
    await asyncio.sleep(0)
    loop.passes.take()  # the pass that counted the objects is none of the client
    if end == "close":
        await asyncio.sleep(10)
        figures |= {f"wait: {name}": value for name, value in loop.passes.take().items()}
        await poller.close()
    elif end == "timeout":
        await asyncio.sleep(TIMEOUT - 10)
        figures |= {f"wait: {name}": value for name, value in loop.passes.take().items()}
    for task in tasks:
        await task
    await asyncio.sleep(1)
    figures |= {f"end: {name}": value for name, value in loop.passes.take().items()}
    used = time.process_time() - used
    return figures | {
        "CPU, µs a wait": 1e6 * used / count,
        "planning, µs a wait": 1e6 * sum(planning) / count,
        "longest planning, ms": 1e3 * max(planning),
        "requests a wait": flora.requests / count,
        "mean lag, s": statistics.fmean(lags) if lags else None,
    }


def measure(count: int, end: str, collect: bool) -> dict[str, Any]:
    """Measure one cell in this process."""
    with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MeasuredLoop)
        if not collect:
            gc.disable()
        gc.callbacks.append(loop.passes.on_collection)
        try:
            return {"collector": collect, **runner.run(_measure(count, end))}
        finally:
            gc.callbacks.remove(loop.passes.on_collection)
            gc.unfreeze()
            gc.enable()


def main() -> None:
    """Print a line of JSON for each cell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS)
    parser.add_argument("--ends", nargs="*", choices=ENDS, default=ENDS)
    options = parser.parse_args()
    for count in options.counts:
        for end in options.ends:
            for collect in (True, False):
                print(json.dumps(in_process(measure, count, end, collect)), flush=True)


if __name__ == "__main__":
    main()
