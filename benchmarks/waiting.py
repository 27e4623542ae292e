"""What a waiting run costs its process: memory and CPU, over real sockets.

A sandbox in a process of its own holds the runs, none of which finishes meanwhile; this process waits for all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from flora_async import Flora, StartedRun


def cpu() -> float:
    """Give the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident() -> int:
    """Give the bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


async def measure(base_url: str, count: int, seconds: float) -> None:
    """Wait for *count* runs for a while, and say what it cost."""
    asked = 0

    async def note(*_: object) -> None:
        nonlocal asked
        asked += 1

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    async with (
        aiohttp.ClientSession(trace_configs=[trace], cookie_jar=aiohttp.DummyCookieJar()) as session,
        Flora("any", base_url=base_url, session=session) as flora,
    ):
        begun: list[StartedRun] = []
        while len(begun) < count:
            batch = min(64, count - len(begun))
            orders = (
                flora.generations.create(
                    type="video", prompt="[slow] a day", workspace_id="ws_bench", project_id="prj_bench"
                )
                for _ in range(batch)
            )
            begun.extend(await asyncio.gather(*orders))
        memory, spent = resident(), cpu()
        waits = [asyncio.create_task(flora.wait_for_run(run, timeout=None)) for run in begun]
        await asyncio.sleep(0)
        start = (cpu() - spent) / count
        await asyncio.sleep(0.2)
        memory = resident() - memory
        asked, spent, began = 0, cpu(), time.monotonic()
        await asyncio.sleep(seconds)
        passed = time.monotonic() - began
        print(
            f"{count:7,} waits: {memory / count / 1024:6.2f} KiB and {start * 1e6:5.1f} us to start each; "
            f"in {passed:.0f} s {asked / passed:5.1f} requests/s, {100 * (cpu() - spent) / passed:5.2f} % of one core",
            flush=True,
        )
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def main() -> None:
    """Start a sandbox and measure crowds of several sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, less long")
    quick = parser.parse_args().quick
    command = [sys.executable, "-m", "flora_async.cli", "sandbox", "--port", "0", "--time-scale", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sandbox:
        try:
            assert sandbox.stdout is not None
            base_url = sandbox.stdout.readline().split("=", 1)[1].strip()
            for count in (10, 100, 1000) if quick else (10, 100, 1000, 10_000):
                asyncio.run(measure(base_url, count, 5 if quick else 30))
        finally:
            sandbox.terminate()


if __name__ == "__main__":
    main()
