"""Measure durable batches of 1,000 to 1,000,000 orders on SQLite, and to 100,000 on PostgreSQL.

A process stores the batch, orders from ``server.py`` and closes. A second one opens the database again, reads the
status and resumes. A batch of more than ``--window`` orders is not ordered whole: its throughput is that of the window,
in the whole table.

    python -m benchmarks.growth.batches --sizes 1000 10000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
from postgres import cluster

from benchmarks.growth import in_process, peak_memory
from benchmarks.growth.server import serving
from flora_async import Flora, Order
from flora_async.durable import Batch, Batches
from flora_async.durable._store.orders import read_costs

T = TypeVar("T")

SIZES = {"SQLite": (1_000, 10_000, 100_000, 1_000_000), "PostgreSQL": (1_000, 10_000, 100_000)}
QUICK = {"SQLite": (100, 1_000), "PostgreSQL": (100,)}
WINDOW = 20_000
WARM_UP = 2_000
"""Orders of a window that are not measured."""
SAMPLE_SECONDS = 60.0


async def seen(base_url: str) -> dict[str, Any]:
    """Return the figures of the server."""

    def ask() -> Any:
        with urllib.request.urlopen(f"{base_url}/growth") as response:
            return json.load(response)

    figures: dict[str, Any] = await asyncio.get_running_loop().run_in_executor(None, ask)
    return figures


async def started(base_url: str, count: int, pause: float = 0.2) -> dict[str, Any]:
    """Return the figures of the server once it has started *count* runs."""
    while (figures := await seen(base_url))["started"] < count:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(pause)
    return figures


async def timed(work: Awaitable[T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = await work
    return time.perf_counter() - began, result


@asynccontextmanager
async def opened(base_url: str, database: str) -> AsyncIterator[Batch]:
    flora = Flora("sk_live_bench", base_url=base_url, check_params="off")
    async with flora:
        await anext(flora.generations.list().pages())  # the first request of a client takes longer
        async with Batches(flora, database=database, executor="bench", only="bench") as batches:
            yield batches["bench"]


async def orders(size: int) -> AsyncIterator[tuple[Order, dict[str, Any]]]:
    for number in range(size):
        prompt = f"A mug, seen from the {number}th side, on a wooden table in the light of the morning"
        yield Order(type="image", model="t2i-flux-2-pro", prompt=prompt, workspace_id="ws_1", project_id="prj_1"), {}


def disk(database: str) -> int:
    """Return the bytes of a database."""
    if database.startswith("sqlite"):
        file = Path(database.removeprefix("sqlite:///"))
        return sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*"))
    engine = sa.create_engine(database.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)


async def observe(base_url: str, database: str, batch: Batch, count: int, seconds: float) -> list[dict[str, float]]:
    """Return the state of a batch about each minute, until *count* runs have started or *seconds* are over."""
    began, figures = time.time(), await seen(base_url)
    samples: list[dict[str, float]] = []
    while figures["started"] < count and time.time() < began + seconds:
        await asyncio.sleep(0.2)
        figures = await seen(base_url)
        if time.time() >= began + SAMPLE_SECONDS * (len(samples) + 1):
            status_seconds, status = await timed(batch.status())
            sample = {"seconds": time.time() - began, "started": figures["started"], "ended": status.ended}
            sample |= {"memory, MB": peak_memory() / 1e6, "MB on disk": disk(database) / 1e6}
            samples.append({**sample, "status seconds": status_seconds, "server CPU seconds": figures["cpu"]})
            print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    return samples


async def order(base_url: str, database: str, size: int, window: int, seconds: float) -> dict[str, Any]:
    """Store a batch and order the window of it."""
    part = min(size, window)
    async with opened(base_url, database) as batch:
        began = time.time()
        await batch.add(orders(size))
        stored, memory, stored_bytes = time.time(), peak_memory(), disk(database)
        first = (await started(base_url, 1, pause=0.01))["first"]
        used = time.process_time()
        warm = await started(base_url, WARM_UP if part > 2 * WARM_UP else 1)
        used_warm = time.process_time()
        samples = await observe(base_url, database, batch, part, seconds)
        done = await seen(base_url)
        whole = done["started"] >= size
        if whole:
            await batch.finished()
        ended, count = (time.time(), size) if whole else (done["last"], done["started"] - warm["started"])
        measured, used = time.time(), time.process_time() - (used if whole else used_warm)
    return {
        "store seconds": stored - began,
        "stored orders a second": size / (stored - began),
        "first order after the last is stored, seconds": max(0.0, first - stored),
        "first order, seconds": first - began,
        "ordered": done["started"],
        "orders a second": count / (ended - (first if whole else warm["last"])),
        "CPU, ms an order": 1e3 * used / count,
        "peak memory of storing, MB": memory / 1e6,
        "peak memory, MB": peak_memory() / 1e6,
        "stored MB on disk": stored_bytes / 1e6,
        "close seconds": time.time() - measured,
        "samples": samples,
    }


async def resume(base_url: str, database: str) -> dict[str, float]:
    """Open the database again."""
    async with Batches(None, database=database) as batches:
        status_seconds, _ = await timed(batches["bench"].status())
        cost_seconds, _ = await timed(batches["bench"]._read(read_costs))
    before = (await seen(base_url))["started"]
    began = time.perf_counter()
    async with opened(base_url, database) as batch:
        resume_seconds, _ = await timed(batch.resume(wait=False))
        figures = {
            "status seconds": status_seconds,
            "resume seconds": resume_seconds,
            "cost sums seconds": cost_seconds,
        }
        if not await batch.is_finished():
            await started(base_url, before + 1, 0.01)
            figures["open, resume and first order, seconds"] = time.perf_counter() - began
    return figures | {"MB on disk": disk(database) / 1e6}


def ordered(*arguments: Any) -> dict[str, Any]:
    return asyncio.run(order(*arguments))


def resumed(*arguments: Any) -> dict[str, Any]:
    return asyncio.run(resume(*arguments))


@contextmanager
def fresh(kind: str) -> Iterator[str]:
    """Yield the URL of a fresh database."""
    if kind == "PostgreSQL":
        with cluster() as url:
            yield url
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/batch.db"


def measure(kind: str, size: int, window: int = WINDOW, seconds: float = math.inf) -> dict[str, Any]:
    """Measure one batch."""
    with serving() as base_url, fresh(kind) as database:
        figures = in_process(ordered, base_url, database, size, window, seconds)
        figures |= in_process(resumed, base_url, database)
    return {"database": kind, "orders": size, **figures}


def main() -> None:
    """Print a line of JSON for each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--databases", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--sizes", nargs="*", type=int)
    parser.add_argument("--window", type=int, default=WINDOW, help="orders of a batch that are ordered")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end the ordering of a batch after this time")
    options = parser.parse_args()
    for kind in options.databases:
        for size in options.sizes or SIZES[kind]:
            print(json.dumps(measure(kind, size, options.window, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
