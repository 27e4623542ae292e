"""Run programs in forks of one process that has imported the package: the import takes longer than most programs.

Each line on stdin is a JSON array: a number, a folder with ``program.py``, and the environment. The output goes to the
files ``<folder>.out`` and ``<folder>.err``. When a program has ended, its number and its exit status are printed.
"""

import json
import os
import runpy
import select
import sys
from io import FileIO

import aiohttp  # noqa: F401 - imported for the programs
import backoff  # noqa: F401

from flora_async import Flora, errors, events, webhooks  # noqa: F401

AT_ONCE = 6
POLL_SECONDS = 0.02


def serve() -> bool:
    """Fork for each line. Return True in the fork of a program, and False when all programs have ended."""
    stdin = FileIO(0, closefd=False)
    running: dict[int, int] = {}
    reading = True
    while reading or running:
        if reading and len(running) < AT_ONCE and select.select([stdin], [], [], POLL_SECONDS)[0]:
            line = stdin.readline()
            reading = bool(line)
            if line:
                number, folder, environment = json.loads(line)
                process = os.fork()
                if process == 0:
                    prepare(folder, environment)
                    return True
                running[process] = number
        report(running, block=not reading or len(running) == AT_ONCE)
    return False


def report(running: dict[int, int], *, block: bool) -> None:
    """Print the numbers and exit statuses of the processes that have ended. Wait for one if ``block`` is set."""
    while running:
        process, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        block = False
        if process == 0:
            return
        os.write(1, b"%d %d\n" % (running.pop(process), os.waitstatus_to_exitcode(status)))


def prepare(folder: str, environment: dict[str, str]) -> None:
    """Make this process look like a new one that runs the program in a folder."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{folder}.out", os.O_WRONLY | os.O_CREAT),
        (2, f"{folder}.err", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.path[0] = folder
    sys.argv[:] = ["program.py"]


if __name__ == "__main__" and serve():
    runpy.run_path("program.py", run_name="__main__")
