"""``flora-async batch``: thousands of orders, from a file to a file, on any number of machines."""

from __future__ import annotations

import argparse
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flora_async import AnyOrder, Flora, PriceHistory, errors
from flora_async._aio import run_in_thread
from flora_async.cli import arguments, batch_progress, batch_results, costs, model_checks, output
from flora_async.cli.order_files import STDIN, OrderFile, open_orders
from flora_async.durable import Batch, Batches, BatchSettings, BatchStatus

MAX_FAULTS = 20
"""Faulty lines that are named."""
DONE, INCOMPLETE, STOPPED = 0, 1, 3
"""Exit codes: all completed; some did not, or a limit was reached; FLORA refuses the key or payment."""
OWN_STOPS = {
    "max_cost": "the next order could cost more than --max-cost",
    "cancelled": "it was cancelled",
}

Counts = Counter[tuple[str, str | None]]
Samples = dict[tuple[str, str | None], AnyOrder]


class Noted(Protocol):
    """A session that tells, when the command is interrupted, how to continue."""

    notes: list[str]


async def run(options: argparse.Namespace, session: Noted) -> int:
    """Run ``flora-async batch OPERATION``."""
    if options.operation == "run":
        return await _run(options, session)
    if options.operation in ("resume", "retry-failed", "worker"):
        return await _continue(options, session)
    async with Batches(None, database=options.database) as batches:
        return await _manage(options, batches)


async def _manage(options: argparse.Namespace, batches: Batches) -> int:
    """Run an operation that orders nothing."""
    if options.operation in ("reassign", "adopt"):
        count = await batches.reassign(options.executor)
        output.print_status(f"{count} orders of {options.executor} are left to the workers on this database")
        return DONE
    if options.operation == "list" or (options.operation == "status" and options.batch is None):
        plain = [_plain(status) for status in await batches.statuses()]
        output.print_json(plain[0] if len(plain) == 1 and options.operation == "status" else {"batches": plain})
        return DONE
    batch = batches[options.batch or await _only_batch(batches)]
    if options.operation == "status":
        output.print_json(_plain(await batch.status()))
    elif options.operation == "cancel":
        await batch.cancel()
        output.print_status(f"{batch.name}: no more orders are sent; runs that were started continue and are billed")
    elif options.operation == "skip":
        output.print_status(
            f"{batch.name}: {await batch.skip(options.number)} of {len(options.number)} orders are skipped"
        )
    else:
        await batch.delete()
        output.print_status(f"{batch.name} is deleted")
    return DONE


def _plain(status: BatchStatus) -> dict[str, Any]:
    return output.to_dict(status, ended=status.ended)


async def _run(options: argparse.Namespace, session: Noted) -> int:
    settings = BatchSettings(
        out=batch_results.absolute(options.out),
        as_finished=options.as_finished,
        download=None if options.download is None else str(options.download.absolute()),
        rate=options.rate,
        run_timeout=options.run_timeout,
        retry_failed=options.retry_failed,
    )
    _check_files(options, settings, options.orders)
    with open_orders(options.orders) as source:
        async with Flora(options.api_key) as flora:
            validate = await model_checks.checked_by(flora, options.check_params)
            counts, samples = await run_in_thread(_count, source, validate, options)
            output.print_status(await _estimate(flora, options, counts, samples))
            same = await _find_same(options, source, flora, counts.total()) if options.batch is None else None
            if same is not None:
                raise arguments.UsageError(
                    f"the batch {same} has these orders, and is not finished: `flora-async batch resume --batch "
                    f"{same}` continues it; --batch NAME orders them all once more"
                )
            if options.dry_run:
                return DONE
            name = options.batch or _name(options.orders)
            async with _open_batches(flora, options, name) as batches:
                orders = _orders(source, flora, options)
                await batches[name].add(
                    orders, max_cost=options.max_cost, settings=settings, check_params="off"
                )  # all lines were compared above
                return await _finish(batches, batches[name], flora, settings, options, session)


async def _continue(options: argparse.Namespace, session: Noted) -> int:
    async with Batches(None, database=options.database) as batches:
        name = options.batch or await _only_batch(batches)
        kept = await batches[name].settings()
    if options.operation == "worker":
        async with Flora(options.api_key) as flora, _open_batches(flora, options, name) as batches:
            session.notes = [f"other workers continue with the orders of {name}"]
            with batch_progress.show_progress(batches, batches[name]):
                status = await batches[name].finished()
        return _report(status, options)
    settings = msgspec.structs.replace(
        kept,
        out=kept.out if options.out is None else batch_results.absolute(options.out),
        as_finished=kept.as_finished or options.as_finished,
        download=kept.download if options.download is None else str(options.download.absolute()),
    )
    _check_files(options, settings)
    async with Flora(options.api_key) as flora, _open_batches(flora, options, name) as batches:
        batch = batches[name]
        for executor in await batch.lost_executors():
            output.print_status(f"{executor} is gone; its orders are taken over within seconds")
        if options.operation == "retry-failed":
            output.print_status(f"{await batch.retry_failed()} orders of {name} are queued again")
        await batch.resume(max_cost=options.max_cost, wait=False)
        return await _finish(batches, batch, flora, settings, options, session)


def _check_files(options: argparse.Namespace, settings: BatchSettings, *inputs: Path) -> None:
    """Refuse files that cannot be written, or would replace others, before anything is stored."""
    if settings.out is None:
        raise arguments.UsageError("missing --out FILE (where to write the results)")
    database = options.database.removeprefix("sqlite:///")
    batch_results.check_out(settings.out, *(path for path in inputs if path != STDIN), Path(database))
    arguments.check_folder("--download", None if settings.download is None else Path(settings.download))


def _open_batches(flora: Flora, options: argparse.Namespace, name: str) -> Batches:
    return Batches(
        flora, database=options.database, executor=options.executor, concurrency=options.concurrency, only=name
    )


async def _finish(
    batches: Batches, batch: Batch, flora: Flora, settings: BatchSettings, options: argparse.Namespace, session: Noted
) -> int:
    session.notes = [f"runs that were started continue at FLORA; continue with: {_resume_command(batch.name, options)}"]
    out = settings.out or batch_results.STDOUT
    with batch_progress.show_progress(batches, batch):
        unsaved = await batch_results.write_results(batch, flora, out, settings)
        status = await batch.finished()
    if out != batch_results.STDOUT:
        path = Path(out)
        part = batch_results.part_of(path)
        if status.finished:
            part.replace(path)
        output.print_status(
            f"the results {'are' if status.finished else 'so far are'} in {path if status.finished else part}"
        )
    if unsaved:
        output.print_status(f"the outputs of {unsaved} orders were not saved: `resume` tries again")
    return _report(status, options) or (INCOMPLETE if unsaved else DONE)


def _resume_command(name: str, options: argparse.Namespace) -> str:
    return f"flora-async batch resume --database {arguments.hide_password(options.database)} --batch {name}"


def _report(status: BatchStatus, options: argparse.Namespace) -> int:
    """Print how the batch ended; return the exit code."""
    output.print_status(batch_progress.describe(status))
    if status.stopped is not None and not status.finished:
        output.print_status(
            f"stopped with {status.waiting} orders left: {OWN_STOPS.get(status.stopped, status.stopped)}",
            f"continue with: {_resume_command(status.batch, options)}",
        )
        return INCOMPLETE if status.stopped in OWN_STOPS else STOPPED
    return DONE if status.completed + status.skipped == status.total else INCOMPLETE


# -- before anything is billed


def _defaults(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("type", "prompt", "model", "workspace_id", "project_id")}
    return {name: value for name, value in given.items() if value is not None}


def _count(
    source: OrderFile, validate: Callable[[AnyOrder], AnyOrder], options: argparse.Namespace
) -> tuple[Counts, Samples]:
    """Read all lines once; return the number and one order of each kind, or refuse the file with its faults."""
    counts: Counts = Counter()
    samples: Samples = {}
    faults: list[str] = []
    wrong = 0
    for line in source.read(validate, _defaults(options)):
        if line.order is None:
            wrong += 1
            if wrong <= MAX_FAULTS:
                faults.append(f"line {line.number}: {line.fault}")
        else:
            key = line.order.kind, line.order.endpoint
            counts[key] += 1
            samples.setdefault(key, line.order)
    if wrong:
        more = [f"and {wrong - MAX_FAULTS} more"] if wrong > MAX_FAULTS else []
        raise arguments.UsageError("\n  ".join([f"{options.orders}: nothing was ordered", *faults, *more]))
    if not counts:
        raise arguments.UsageError(f"{options.orders}: there are no orders")
    return counts, samples


async def _orders(
    source: OrderFile, flora: Flora, options: argparse.Namespace
) -> AsyncIterator[tuple[AnyOrder, Mapping[str, Any]]]:
    for line in source.read(flora.generations.validate, _defaults(options)):
        if line.order is None:
            raise arguments.UsageError(f"{options.orders} has changed: line {line.number}: {line.fault}")
        yield line.order, line.columns


async def _find_same(options: argparse.Namespace, source: OrderFile, flora: Flora, total: int) -> str | None:
    try:
        async with Batches(None, database=options.database) as batches:
            return await batches.find_same_orders(total, _orders(source, flora, options))
    except errors.ConfigurationError:
        return None  # there is no database yet, or one that is refused when it is opened


async def _estimate(flora: Flora, options: argparse.Namespace, counts: Counts, samples: Samples) -> str:
    """Return the expected cost, as far as it is known, from this database or FLORA's catalogue."""
    past: dict[tuple[str, str | None], PriceHistory] = {}
    try:
        async with Batches(None, database=options.database) as batches:
            past = await batches.past_costs()
    except errors.ConfigurationError:
        pass  # as above
    try:
        estimate = await flora.estimate(samples.values(), past=past)
    except errors.FloraError as error:
        output.print_status(f"the catalogue, with its prices, cannot be read: {error}")
        return f"{counts.total()} orders: cost unknown"
    kinds = sorted(estimate.kinds, key=lambda kind: (kind.kind, kind.endpoint or ""))
    known = sum(counts[kind.kind, kind.endpoint] * kind.usd for kind in kinds if kind.usd is not None)
    parts = "; ".join(costs.describe_kind(kind, counts[kind.kind, kind.endpoint]) for kind in kinds)
    whole = f"{counts.total()} orders"
    return f"{whole}, about {known:.2f} USD: {parts}" if known else f"{whole}: {parts}"


def _name(path: Path) -> str:
    stem = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in path.stem)[:60]
    return f"{stem.strip('-') or 'orders'}-{secrets.token_hex(3)}"


async def _only_batch(batches: Batches) -> str:
    found = [status.batch for status in await batches.statuses()]
    if len(found) == 1:
        return found[0]
    raise arguments.UsageError(f"which batch? --batch ID; there are: {', '.join(found) or 'none'}")
