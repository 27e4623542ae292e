"""Growth: how time and memory change with the number of waits, of items in the history, and of orders in a batch."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes. Unlike ``ru_maxrss`` it excludes the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def resident_memory() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def in_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the figures of a function that runs in a process of its own."""
    said = SPAWN.Queue()
    process = SPAWN.Process(target=_put, args=(said, work, *arguments))
    process.start()
    while process.is_alive() and said.empty():
        process.join(0.2)
    figures: dict[str, Any] = said.get(timeout=5)
    process.join()
    return figures


def _put(said: Any, work: Callable[..., dict[str, Any]], *arguments: Any) -> None:
    said.put(work(*arguments))
