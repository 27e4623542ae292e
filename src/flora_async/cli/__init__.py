"""The command ``flora-async``: FLORA's own command line, and what a terminal wants beyond it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from flora_async import errors
from flora_async.cli import commands, parsing, showing
from flora_async.cli.demo import PROGRAM

__all__ = ["PROGRAM", "main"]

FAILED, WRONG, BROKEN, LATE, INTERRUPTED, PIPE = 1, 2, 3, 4, 130, 141
"""Exit codes: a run failed; usage or settings; FLORA or the way to it; too late; Ctrl-C; nobody reads on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or one of the above; never a traceback."""
    session = commands.Session()
    try:
        options = parsing.parser().parse_args(arguments)
        code = asyncio.run(commands.COMMANDS[options.command](options, session))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        showing.tell("interrupted", *session.left_behind())
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on; nor shall the interpreter try to flush into nothing as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except errors.RunFailedError as error:
        return _told(FAILED, error)
    except errors.RunTimeoutError as error:
        return _told(LATE, error, *session.left_behind())
    except (errors.ConfigurationError, parsing.UsageError) as error:
        return _told(WRONG, error)
    except errors.FloraError as error:
        return _told(BROKEN, error, *session.left_behind())
    except (OSError, ValueError) as error:
        return _told(WRONG, error)


def _told(code: int, error: Exception, *more: str) -> int:
    showing.tell(str(error), *more)
    return code
