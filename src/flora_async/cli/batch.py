"""``flora-async batch``: orders by the thousand, from a file to a file, whatever happens in between."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec
from anyio.to_thread import run_sync

from flora_async import Flora, Order, Run, errors
from flora_async._addresses import parse_base_url
from flora_async._client import DEFAULT_BASE_URL
from flora_async.cli import parsing, showing
from flora_async.durable import Batch, Batches, BatchOutcome, BatchStatus, _storing, adopt
from flora_async.durable._batches import ask
from flora_async.durable._ledger import OUT_OF_MONEY
from flora_async.durable._orders import read_orders
from flora_async.durable._plain import plain_error
from flora_async.durable._storing import BatchSettings
from flora_async.durable._tables import without_password

SHOWN_FAULTS = 20
DOWNLOADS = 16
"""Outcomes whose outputs are saved at once."""
TICK = 1.0
"""Seconds between two looks at how it goes."""


class Noted(Protocol):
    """Whoever tells what goes on without us."""

    notes: list[str]


async def run(options: argparse.Namespace, session: Noted) -> int:
    """Do what was typed after ``flora-async batch``."""
    if options.operation == "run":
        return await _run(options, session)
    if options.operation == "status":
        found = await ask(options.database, lambda connection: _storing.statuses(connection, options.batch))
        if not found:
            raise parsing.UsageError(f"there is no batch {options.batch!r} in this database")
        plain = [showing.plain(status, ended=status.ended) for status in found]
        showing.show(plain[0] if len(plain) == 1 else {"batches": plain})
        return 0
    if options.operation == "adopt":
        chunks = await adopt(options.database, options.executor)
        showing.tell(f"{chunks} chunks of {options.executor} wait for whoever works on this database")
        return 0
    return await _go_on(options, session)


async def _run(options: argparse.Namespace, session: Noted) -> int:
    counts, digest = _survey(options)
    unfinished = await _same_orders(options.database, digest)
    if unfinished is not None and options.batch is None:
        raise parsing.UsageError(
            f"the batch {unfinished} has these orders, and is not finished: `flora-async batch resume --batch "
            f"{unfinished}` goes on with it; --batch NAME orders them all once more"
        )
    async with Flora(options.api_key) as flora:
        showing.tell(await _estimate(flora, options, counts))
        if options.dry_run:
            return 0
        name = options.batch or _name(options.orders)
        settings = BatchSettings(
            out=str(options.out.absolute()),
            as_finished=options.as_finished,
            download=None if options.download is None else str(options.download.absolute()),
            rate=options.rate,
        )
        async with _opened(flora, options, name) as batches:
            batch = batches[name]
            orders = _orders(options)
            await batch.add(orders, max_cost=options.max_cost, settings=settings)
            return await _see_through(batches, batch, flora, settings, options, session)


async def _go_on(options: argparse.Namespace, session: Noted) -> int:
    name = options.batch or await _only(options.database)
    async with Flora(options.api_key) as flora, _opened(flora, options, name) as batches:
        batch = batches[name]
        for executor in await batch.gone():
            showing.tell(
                f"{executor} is gone, and holds orders of {name}: if it does not come back, "
                f"flora-async batch adopt --executor {executor} --database {without_password(options.database)}"
            )
        if options.operation == "worker":
            session.notes = [f"others can go on with what this worker had begun of {name}"]
            with _progress(batches, batch):
                status = await batch.finished()
            return _told(status, options)
        if options.operation == "retry-failed":
            showing.tell(f"{await batch.retry_failed()} orders of {name} are worked on again")
        kept = await batch.settings()
        settings = BatchSettings(
            out=kept.out if options.out is None else str(options.out),
            as_finished=kept.as_finished or options.as_finished,
            download=kept.download if options.download is None else str(options.download),
        )
        await batch.go_on(max_cost=options.max_cost)
        return await _see_through(batches, batch, flora, settings, options, session)


def _opened(flora: Flora, options: argparse.Namespace, name: str) -> Batches:
    return Batches(
        flora, database=options.database, executor=options.executor, concurrency=options.concurrency, only=name
    )


async def _see_through(
    batches: Batches, batch: Batch, flora: Flora, settings: BatchSettings, options: argparse.Namespace, session: Noted
) -> int:
    again = f"flora-async batch resume --database {without_password(options.database)} --batch {batch.name}"
    session.notes = [f"the runs that were begun go on at FLORA, and nothing is lost; go on with: {again}"]
    with _progress(batches, batch):
        if settings.out is None:
            raise parsing.UsageError("where shall the results go? --out FILE")
        await _write(batch, flora, Path(settings.out), settings)
        status = await batch.finished()
    showing.tell(f"the results are in {settings.out}")
    return _told(status, options)


def _told(status: BatchStatus, options: argparse.Namespace) -> int:
    """Say how it ended; give the exit code."""
    showing.tell(_line(status))
    if status.stopped is not None:
        why = "the next order would cost more than --max-cost" if status.stopped == OUT_OF_MONEY else status.stopped
        showing.tell(
            f"stopped with {status.waiting} orders left: {why}",
            f"go on with: flora-async batch resume --database {without_password(options.database)} "
            f"--batch {status.batch}",
        )
        return 1 if status.stopped == OUT_OF_MONEY else 3
    return 0 if status.completed == status.total else 1


# -- before anything is paid


def _always(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("type", "prompt", "model", "workspace_id", "project_id")}
    return {name: value for name, value in given.items() if value is not None}


def _survey(options: argparse.Namespace) -> tuple[Counter[tuple[str, str | None]], str]:
    """Read all lines once; count them by type and model, or refuse the file with what is wrong."""
    counts: Counter[tuple[str, str | None]] = Counter()
    storing = _storing.Storing("")
    faults: list[str] = []
    wrong = 0
    for line in read_orders(options.orders, parse_base_url(DEFAULT_BASE_URL), _always(options)):
        if line.order is None:
            wrong += 1
            if wrong <= SHOWN_FAULTS:
                faults.append(f"line {line.number}: {line.fault}")
        elif not wrong:
            counts[line.order.type, line.order.model] += 1
            storing.rows([(line.order, line.columns)])
    if wrong:
        more = [f"and {wrong - SHOWN_FAULTS} more"] if wrong > SHOWN_FAULTS else []
        raise parsing.UsageError("\n  ".join([f"{options.orders}: nothing was ordered", *faults, *more]))
    if not counts:
        raise parsing.UsageError(f"{options.orders}: there are no orders")
    return counts, storing.digest


async def _orders(options: argparse.Namespace) -> AsyncIterator[tuple[Order, Mapping[str, Any]]]:
    for line in read_orders(options.orders, parse_base_url(DEFAULT_BASE_URL), _always(options)):
        if line.order is None:
            raise parsing.UsageError(f"{options.orders} has changed: line {line.number}: {line.fault}")
        yield line.order, line.columns


async def _same_orders(database: str, digest: str) -> str | None:
    try:
        return await ask(database, lambda connection: _storing.same_orders(connection, digest))
    except errors.ConfigurationError:
        return None  # there is none at all


async def _estimate(flora: Flora, options: argparse.Namespace, counts: Counter[tuple[str, str | None]]) -> str:
    """Say what it may cost, as far as anybody can know: FLORA tells a price only as it charges it."""
    try:
        past = await ask(options.database, _storing.past_costs)
    except errors.ConfigurationError:
        past = {}
    rates: dict[str, float] = {}
    if set(counts) - set(past):
        try:
            rates = {m.model_id: m.estimated_credits for m in await flora.models.list() if m.estimated_credits}
        except errors.FloraError as error:
            showing.tell(f"the models could not be asked what they cost: {error}")
    known = 0.0
    parts: list[str] = []
    for (kind, model), count in sorted(counts.items(), key=str):
        what = f"{count} {kind}{f' by {model}' if model else ''}"
        if (kind, model) in past:
            known += count * past[kind, model]
            parts.append(f"{what}: about {count * past[kind, model]:.2f} USD, as earlier runs here")
        elif model in rates:
            parts.append(f"{what}: about {count * rates[model]:g} credits")
        else:
            parts.append(f"{what}: nobody knows the cost before the first")
    whole = f"{sum(counts.values())} orders"
    return f"{whole}, about {known:.2f} USD: {'; '.join(parts)}" if known else f"{whole}: {'; '.join(parts)}"


def _name(path: Path) -> str:
    stem = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in path.stem)[:60]
    return f"{stem.strip('-') or 'orders'}-{secrets.token_hex(3)}"


async def _only(database: str) -> str:
    found = await ask(database, _storing.statuses)
    if len(found) == 1:
        return found[0].batch
    names = ", ".join(status.batch for status in found) or "none"
    raise parsing.UsageError(f"which batch? --batch ID; there are: {names}")


# -- results


async def _write(batch: Batch, flora: Flora, out: Path, settings: BatchSettings) -> None:
    """Write what became of each order; the file has its name only when it is whole."""
    part = out.with_name(f"{out.name}.part")
    saving: deque[asyncio.Task[BatchOutcome]] = deque()
    folder = None if settings.download is None else Path(settings.download)
    with part.open("w", encoding="utf-8", buffering=1) as lines:
        async for outcome in batch.results(as_finished=settings.as_finished):
            saving.append(asyncio.create_task(_saved(batch, flora, outcome, folder)))
            while len(saving) > DOWNLOADS or (saving and saving[0].done()):
                _write_line(lines, await saving.popleft())
            await asyncio.sleep(0)
        for task in saving:
            _write_line(lines, await task)
    part.replace(out)


def _write_line(lines: TextIO, outcome: BatchOutcome) -> None:
    line: dict[str, Any] = {"index": outcome.index, "state": outcome.state, "key": outcome.key, "cost": outcome.cost}
    line |= {"order": outcome.order, "columns": outcome.columns}
    if outcome.error is not None:
        line["error"] = plain_error(outcome.error)
    else:
        line["run"] = outcome.run
    if outcome.files:
        line["files"] = outcome.files
    lines.write(msgspec.json.encode(line).decode() + "\n")


async def _saved(batch: Batch, flora: Flora, outcome: BatchOutcome, folder: Path | None) -> BatchOutcome:
    """Save the outputs of a run, once; what a killed process has saved is not fetched again."""
    run = outcome.run
    if folder is None or run is None or outcome.files:
        return outcome
    found = await run_sync(_whole, folder, run)
    if not found and run.outputs:
        try:
            found = await flora.download(run, folder)
        except errors.DownloadError as error:
            showing.tell(f"{run.run_id}: {error}")
            return outcome
    files = tuple(map(str, found))
    await batch.note_files(outcome.index, files)
    return msgspec.structs.replace(outcome, files=files)


def _whole(folder: Path, run: Run) -> list[Path]:
    """Give the saved outputs of a run, if all are there; else none is."""
    found = sorted(folder.glob(f"{run.run_id}_*")) if folder.is_dir() else []
    if len(found) >= len(run.outputs):
        return found
    for path in found:
        path.unlink()
    return []


# -- progress


def _line(status: BatchStatus) -> str:
    bad = status.failed + status.refused
    unknown = f", {status.unknown} unknown" if status.unknown else ""
    return (
        f"{status.batch}: {status.ended} of {status.total} done, {status.running} running, {bad} failed{unknown}, "
        f"{status.cost:.2f} USD"
    )


@contextmanager
def _progress(batches: Batches, batch: Batch) -> Generator[None]:
    with _shown() as show:
        task = asyncio.get_running_loop().create_task(_tick(batches, batch, show))
        try:
            yield
        finally:
            task.cancel()


async def _tick(batches: Batches, batch: Batch, show: Callable[[BatchStatus, str], None]) -> None:
    began, first = time.monotonic(), None
    while True:
        status = await batch.status()
        first = status.ended if first is None else first
        rate = (status.ended - first) / max(time.monotonic() - began, 1e-3)
        left = "" if rate <= 0 else f", {(status.total - status.ended) / rate:.0f} s to go"
        pausing = "" if batches.trouble is None else f"; pausing, it goes on by itself: {batches.trouble}"
        show(status, f"{_line(status)}{left}{pausing}")
        await asyncio.sleep(TICK)


@contextmanager
def _shown() -> Generator[Callable[[BatchStatus, str], None]]:
    """Show how it goes: a bar on a terminal that can, else a line whenever something has changed."""
    if showing.is_live():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
        except ModuleNotFoundError:
            pass
        else:
            with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
                bar = bars.add_task("", total=None)
                yield lambda status, text: bars.update(
                    bar, completed=status.ended, total=status.total, description=text
                )
            return
    last: list[str] = []

    def say(status: BatchStatus, text: str) -> None:
        if _line(status) not in last:
            last[:] = [_line(status)]
            showing.tell(text)

    yield say
