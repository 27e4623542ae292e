"""The command ``flora-async``: FLORA's own command line, and what a terminal wants beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from flora_async import errors
from flora_async.cli import commands, parsing, showing
from flora_async.cli.demo import PROGRAM

__all__ = ["PROGRAM", "main"]

FAILED, WRONG, BROKEN, LATE, INTERRUPTED, PIPE, TERMINATED = 1, 2, 3, 4, 130, 141, 143
"""Exit codes: a run failed; usage or settings; FLORA or the way to it; too late; Ctrl-C; nobody reads on; SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or one of the above; never a traceback."""
    session = commands.Session()
    try:
        options = parsing.parser().parse_args(arguments)
        code = asyncio.run(_ended_by_signals(commands.COMMANDS[options.command](options, session)))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        showing.tell("interrupted", *session.doubtful(), *session.going_on())
        return INTERRUPTED
    except asyncio.CancelledError:
        showing.tell("terminated", *session.doubtful(), *session.going_on())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # so that whoever sent it sees that it was heeded
        return TERMINATED
    except BrokenPipeError:
        # Nobody reads on; nor shall the interpreter try to flush into nothing as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except errors.RunFailedError as error:
        return _told(FAILED, error)
    except errors.RunTimeoutError as error:
        return _told(LATE, error, *session.going_on())
    except (errors.ConfigurationError, parsing.UsageError) as error:
        return _told(WRONG, error)
    except errors.FloraError as error:
        return _told(BROKEN, error, *session.going_on())
    except (OSError, ValueError) as error:
        return _told(WRONG, error)


async def _ended_by_signals(command: Coroutine[Any, Any, int]) -> int:
    """Have SIGTERM end a command as Ctrl-C does: with the terminal as it was, and the runs that go on told."""
    ours = asyncio.ensure_future(command)
    with contextlib.suppress(NotImplementedError):  # where there are no such signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ours.cancel)
    return await ours


def _told(code: int, error: Exception, *more: str) -> int:
    showing.tell(str(error), *more)
    return code
