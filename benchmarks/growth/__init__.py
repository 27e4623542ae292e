"""Growth: how time and memory change with the number of waits, of items in the history, and of orders in a batch."""

from __future__ import annotations

from pathlib import Path


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes. Unlike ``ru_maxrss`` it excludes the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
