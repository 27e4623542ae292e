"""The command ``flora-async``: FLORA's own commands, and commands to wait, batch, browse and test."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from flora_async import errors
from flora_async.cli import arguments, commands, output
from flora_async.cli.demo import PROGRAM

__all__ = ["PROGRAM", "main"]

EXIT_RUN_FAILED, EXIT_USAGE, EXIT_ERROR, EXIT_TIMEOUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = (
    1,
    2,
    3,
    4,
    130,
    141,
    143,
)
"""Exit codes: a run failed; usage, settings or a file; API or connection error; timeout; interrupted; broken pipe;
terminated."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or one of the above. It prints no traceback.

    It may be called in any thread and with any stdout and stderr, ``None`` included. Signals are handled in the main
    thread only.
    """
    context = commands.CommandContext()
    options: argparse.Namespace | None = None
    with output.escape_unencodable():
        try:
            options = arguments.parse(argv)
            code = asyncio.run(_cancel_on_sigterm(commands.COMMANDS[options.command](options, context)))
            output.write("", flush=True)
            return code
        except SystemExit:  # argparse printed the help or a usage error
            _flush_or_discard()
            raise
        except KeyboardInterrupt:
            return _exit_with(EXIT_INTERRUPTED, "interrupted", *context.uncertain_orders(), *context.unfinished_runs())
        except asyncio.CancelledError:
            _exit_with(EXIT_TERMINATED, "terminated", *context.uncertain_orders(), *context.unfinished_runs())
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)  # the parent process must see the signal as the cause
            return EXIT_TERMINATED
        except output.OutputError as error:
            output.discard_buffer("stdout")
            messages = [] if error.reader_gone else [str(error)]
            return _exit_with(
                EXIT_BROKEN_PIPE if error.reader_gone else EXIT_USAGE, *messages, *context.unprinted_runs()
            )
        except (errors.FloraError, OSError, ValueError) as error:
            unfinished = context.unfinished_runs() if isinstance(error, errors.FloraError) else []
            return _exit_with(_code_of(error), arguments.use_flag_names(error, options), *unfinished)


def _code_of(error: Exception) -> int:
    match error:
        case errors.RunFailedError():
            return EXIT_RUN_FAILED
        case errors.RunTimeoutError():
            return EXIT_TIMEOUT
        case errors.FloraError() if not isinstance(error, errors.ConfigurationError):
            return EXIT_ERROR
        case _:
            return EXIT_USAGE


async def _cancel_on_sigterm(command: Coroutine[Any, Any, int]) -> int:
    """Run a command, and cancel it on SIGTERM: the terminal is restored and unfinished runs are reported."""
    task = asyncio.ensure_future(command)
    commands.handle_signal(signal.SIGTERM, task.cancel)
    return await task


def _flush_or_discard() -> None:
    try:
        output.write("", flush=True)
    except output.OutputError:
        output.discard_buffer("stdout")


def _exit_with(code: int, *messages: str) -> int:
    output.print_status(*messages)
    return code
