"""A run that a command has started: printed, awaited, and its outputs saved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flora_async import Flora, Run, StartedRun, errors
from flora_async.cli import output

if TYPE_CHECKING:
    from flora_async.cli.commands import CommandContext

DEFAULT_WAIT_TIMEOUT = 600.0
"""Seconds that `--wait` and `wait` wait for each run by default."""


async def report_started(
    flora: Flora, started: StartedRun, options: argparse.Namespace, context: CommandContext
) -> int:
    """Print a started run, or with ``--wait`` or ``--download`` the finished one. Return the exit code."""
    context.record_created(started.run_id)
    if not (options.wait or options.download):
        output.print_json(output.to_dict(started, estimated_seconds=started.estimated_seconds))
        return 0
    try:
        with output.show_progress() as report:
            report(started.run_id, "ordered", 0)
            run = await flora.wait_for_run(
                started, timeout=wait_timeout(options), on_update=output.progress_callback(report)
            )
    except errors.RunFailedError as error:
        output.print_json(output.run_to_dict(error.run))
        raise
    context.record_finished(run.run_id)
    try:
        await save_outputs(flora, run, options)
    finally:
        output.print_json(output.to_dict(run))  # printed even if saving fails: the run is billed
    return 0


def wait_timeout(options: argparse.Namespace) -> float:
    """Return the seconds of ``--timeout``."""
    return DEFAULT_WAIT_TIMEOUT if options.timeout is None else float(options.timeout)


async def save_outputs(flora: Flora, run: Run, options: argparse.Namespace) -> None:
    """Save the outputs of a run in ``--download``."""
    if options.download is not None:
        for path in await flora.download(run, options.download, on_existing=options.on_existing):
            output.print_status(f"saved {path}")
