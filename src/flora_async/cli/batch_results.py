"""The results of a batch as a file: one line for each order; outputs are saved beside it on request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from flora_async import Flora, errors
from flora_async.cli import output
from flora_async.cli.arguments import check_output_file
from flora_async.durable import Batch, BatchOutcome, BatchSettings

MAX_DOWNLOADS = 16
"""Orders whose outputs are saved at once."""
STDOUT = "-"


def check_out(out: str, *others: Path) -> None:
    """Refuse a file for the results that would replace one of *others*, a device, a folder or a link's target."""
    if out != STDOUT:
        for target in (Path(out), part_of(Path(out))):
            check_output_file("--out", target, *others)


def absolute(out: str) -> str:
    """Return the file for the results as it can be found from any folder."""
    return out if out == STDOUT else str(Path(out).absolute())


def part_of(path: Path) -> Path:
    """Return the file that the results are in until they are complete."""
    return path.with_name(f"{path.name}.part")


async def write_results(batch: Batch, flora: Flora, out: str, settings: BatchSettings) -> int:
    """Write the outcome of each order, and return how many had outputs that could not be saved."""
    saving: deque[asyncio.Task[tuple[BatchOutcome, str | None]]] = deque()
    folder = None if settings.download is None else Path(settings.download)
    unsaved = 0
    with _open_results(out) as write:
        try:
            async for outcome in batch.results(as_finished=settings.as_finished):
                saving.append(asyncio.create_task(_save(batch, flora, outcome, folder)))
                while len(saving) > MAX_DOWNLOADS or (saving and saving[0].done()):
                    unsaved += _write_line(write, *await saving.popleft())
                await asyncio.sleep(0)
            while saving:
                unsaved += _write_line(write, *await saving.popleft())
        finally:
            for task in saving:
                task.cancel()
    return unsaved


@contextmanager
def _open_results(out: str) -> Generator[Callable[[str], object]]:
    if out == STDOUT:
        yield partial(output.write, flush=True)
        return
    with part_of(Path(out)).open("w", encoding="utf-8", buffering=1) as lines:
        yield lines.write


def _write_line(write: Callable[[str], object], outcome: BatchOutcome, unsaved: str | None) -> bool:
    line: dict[str, Any] = outcome.to_dict()
    if unsaved is not None:
        line["download_error"] = unsaved
    write(msgspec.json.encode(line).decode() + "\n")
    return unsaved is not None


async def _save(
    batch: Batch, flora: Flora, outcome: BatchOutcome, folder: Path | None
) -> tuple[BatchOutcome, str | None]:
    """Save the outputs of a run, once. Outputs that a killed process has saved are not fetched again."""
    run = outcome.run
    if folder is None or run is None or outcome.files or not run.outputs:
        return outcome, None
    try:
        files = tuple(map(str, await flora.download(run, folder, on_existing="skip")))
    except errors.FloraError as error:
        output.print_status(f"{run.run_id}: {error}")
        return outcome, str(error)
    await batch.record_files(outcome.index, files)
    return msgspec.structs.replace(outcome, files=files), None
