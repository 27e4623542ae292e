"""Progress of a batch in the terminal: one line, with the rate of late and the time to go."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from flora_async.cli import output
from flora_async.durable import Batch, Batches, BatchStatus

TICK = 1.0
"""Seconds between two lines."""
RATE_WINDOW = 60.0
"""Seconds over which the rate is measured."""


def describe(status: BatchStatus) -> str:
    """Return where a batch stands, as one line."""
    bad = status.failed + status.refused
    unknown = f", {status.unknown} unknown" if status.unknown else ""
    skipped = f", {status.skipped} skipped" if status.skipped else ""
    return (
        f"{status.batch}: {status.ended} of {status.total} done, {status.running} running, "
        f"{bad} failed{unknown}{skipped}, {status.cost:.2f} USD"
    )


def describe_pace(samples: deque[tuple[float, int]], total: int) -> str:
    """Return the rate over the samples (time, ended orders), and the time to go; nothing before two samples."""
    (began, first), (now, ended) = samples[0], samples[-1]
    if now <= began or ended <= first:
        return ""
    rate = (ended - first) / (now - began)
    return f", {rate:.3g} a second, {(total - ended) / rate:.0f} s to go"


@contextmanager
def show_progress(batches: Batches, batch: Batch) -> Generator[None]:
    """Show the progress of a batch for as long as the block is entered."""
    with _display() as show:
        task = asyncio.get_running_loop().create_task(_keep_showing(batches, batch, show))
        try:
            yield
        finally:
            task.cancel()


async def _keep_showing(batches: Batches, batch: Batch, show: Callable[[int, int, str], None]) -> None:
    samples: deque[tuple[float, int]] = deque()
    status: BatchStatus | None = None
    reading: asyncio.Task[BatchStatus] | None = None
    try:
        while True:
            reading = reading or asyncio.get_running_loop().create_task(batch.status())
            await asyncio.wait([reading], timeout=TICK)
            if reading.done():
                status, reading = reading.result(), None
                samples.append((time.monotonic(), status.ended))
                while samples[-1][0] - samples[0][0] > RATE_WINDOW:
                    samples.popleft()
            trouble = "" if batches.trouble is None else f"; pausing, it continues by itself: {batches.trouble}"
            if status is not None:
                show(status.ended, status.total, f"{describe(status)}{describe_pace(samples, status.total)}{trouble}")
            elif trouble:
                show(0, 1, trouble[2:])
            await asyncio.sleep(TICK)
    finally:
        if reading is not None:
            reading.cancel()


@contextmanager
def _display() -> Generator[Callable[[int, int, str], None]]:
    """Return a function that shows progress: a bar on a terminal that can, else a line after each change."""
    if output.is_live():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
        except ModuleNotFoundError:
            pass
        else:
            columns = BarColumn(), TextColumn("{task.description}", markup=False)
            with Progress(*columns, console=Console(stderr=True)) as bars:
                bar = bars.add_task("", total=None)
                yield lambda ended, total, text: bars.update(bar, completed=ended, total=total, description=text)
            return
    shown: list[tuple[int, str]] = []

    def tell(ended: int, _total: int, text: str) -> None:
        news = ended, text.partition(";")[2]
        if news not in shown:
            shown[:] = [news]
            output.print_status(text)

    yield tell
