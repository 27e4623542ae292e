"""Measure one walk through a history of 10 million items: memory, time and CPU at 1,000, 100,000, 1 and 10 million.

The server sends prepared pages of 100 items from another process. The memory is the peak until then.

    python -m benchmarks.growth.history --items 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from typing import Any

from benchmarks.growth import in_process, peak_memory
from benchmarks.growth.server import serving
from flora_async import Flora

MARKS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


async def walk(base_url: str, items: int) -> list[dict[str, Any]]:
    """Return the figures at each mark."""
    marks = iter(sorted({mark for mark in MARKS if mark < items} | {items}))
    rows: list[dict[str, Any]] = []
    async with Flora("sk_live_bench", base_url=base_url) as flora:
        await anext(flora.generations.list().pages())  # the first request of a client takes longer
        wall, used, count, mark = time.perf_counter(), time.process_time(), 0, next(marks)
        async for _ in flora.generations.list(limit=100):
            count += 1
            if count == mark:
                seconds, cpu = time.perf_counter() - wall, time.process_time() - used
                row = {"items": count, "seconds": seconds, "items a second": count / seconds}
                row |= {"CPU, µs an item": 1e6 * cpu / count, "peak memory, MB": peak_memory() / 1e6}
                rows.append({**row, "tracked objects": len(gc.get_objects())})
                mark = next(marks, 0)
    assert count == items, f"{count} of {items} items"
    return rows


def _walked(base_url: str, items: int) -> dict[str, Any]:
    return {"rows": asyncio.run(walk(base_url, items))}


def measure(items: int) -> list[dict[str, Any]]:
    """Return the figures of a walk in a process of its own."""
    with serving(history=items) as base_url:
        rows: list[dict[str, Any]] = in_process(_walked, base_url, items)["rows"]
        return rows


def main() -> None:
    """Print a line of JSON for each mark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=MARKS[-1])
    for row in measure(parser.parse_args().items):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
