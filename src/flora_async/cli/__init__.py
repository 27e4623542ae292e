"""The command ``flora-async``: FLORA's own command line, and what a terminal wants beyond it."""

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

FAILED, WRONG, BROKEN, LATE, INTERRUPTED, PIPE, TERMINATED = 1, 2, 3, 4, 130, 141, 143
"""Exit codes: a run failed; usage, settings or a file; API or connection error; timeout; interrupted; broken pipe;
terminated."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or one of the above; never a traceback.

    It may be called in any thread and with any stdout and stderr, ``None`` included. Signals are handled in the main
    thread only.
    """
    session = commands.CommandContext()
    options: argparse.Namespace | None = None
    with output.lossless_streams():
        try:
            options = arguments.parse(argv)
            code = asyncio.run(_ended_by_signals(commands.COMMANDS[options.command](options, session)))
            output.write("", flush=True)
            return code
        except SystemExit:  # help was printed, or argparse has said what is wrong
            _flush_or_discard()
            raise
        except KeyboardInterrupt:
            return _exit_with(INTERRUPTED, "interrupted", *session.doubtful(), *session.going_on())
        except asyncio.CancelledError:
            _exit_with(TERMINATED, "terminated", *session.doubtful(), *session.going_on())
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)  # so that whoever sent it sees that it was heeded
            return TERMINATED
        except output.OutputError as error:
            output.discard("stdout")
            said = [] if error.reader_gone else [str(error)]
            return _exit_with(PIPE if error.reader_gone else WRONG, *said, *session.unreported())
        except (errors.FloraError, OSError, ValueError) as error:
            going_on = session.going_on() if isinstance(error, errors.FloraError) else []
            return _exit_with(_code_of(error), arguments.speak_of_flags(error, options), *going_on)


def _code_of(error: Exception) -> int:
    match error:
        case errors.RunFailedError():
            return FAILED
        case errors.RunTimeoutError():
            return LATE
        case errors.FloraError() if not isinstance(error, errors.ConfigurationError):
            return BROKEN
        case _:
            return WRONG


async def _ended_by_signals(command: Coroutine[Any, Any, int]) -> int:
    """Have SIGTERM end a command as Ctrl-C does: with the terminal as it was, and the runs that go on told."""
    ours = asyncio.ensure_future(command)
    commands.on_signal(signal.SIGTERM, ours.cancel)
    return await ours


def _flush_or_discard() -> None:
    try:
        output.write("", flush=True)
    except output.OutputError:
        output.discard("stdout")


def _exit_with(code: int, *messages: str) -> int:
    output.tell(*messages)
    return code
