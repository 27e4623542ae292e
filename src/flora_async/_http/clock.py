"""Pure: FLORA's clock, learned from the ``Date`` header of each response."""

from __future__ import annotations

import math
from collections import deque

REMEMBERED_SECONDS = 300.0
"""Seconds for which an estimate counts after another has replaced it."""


class ServerClock:
    """Estimates FLORA's time from two local clocks: one that never steps (steady), one that never stops (wall).

    ``Date`` has whole seconds and is set between sending and receiving, so each response bounds the offset from both
    sides: the estimate moves up and down as little as the bounds require. The steady clock can stand still while the
    machine sleeps, the wall clock can be set back: the later estimate counts.

    A stray response is dated when it was made, so a single estimate can be wrong. A span of time is therefore bounded
    by all estimates of the last minutes (:meth:`earliest`, :meth:`latest`).
    """

    def __init__(self) -> None:
        self._steady: float | None = None
        self._wall = 0.0
        self._lowest = _RecentMinimum()
        """Lowest of the replaced estimates of the last minutes."""
        self._highest = _RecentMinimum()
        """Highest of them, negated."""

    @property
    def known(self) -> bool:
        """Whether any response has told FLORA's time."""
        return self._steady is not None

    def observe(self, date: float, *, sent: float, received: float, wall: float) -> None:
        """Learn from a response: its date in Unix seconds, the steady times around it, the wall clock now."""
        earliest, latest = date - received, date + 1 - sent
        before = self._steady
        self._steady = earliest if before is None else min(max(before, earliest), latest)
        self._lowest.forget(received - REMEMBERED_SECONDS)
        self._highest.forget(received - REMEMBERED_SECONDS)
        if before is not None and before != self._steady:
            self._lowest.add(received, before)
            self._highest.add(received, -before)
        self._wall = received + self._steady - wall

    def now(self, *, steady: float, wall: float) -> float:
        """Return FLORA's time in Unix seconds; the wall clock's, where nothing is known."""
        return wall if self._steady is None else max(steady + self._steady, wall + self._wall)

    def at(self, steady: float) -> float | None:
        """Return FLORA's time at a steady time; ``None`` where nothing is known."""
        return None if self._steady is None else steady + self._steady

    def earliest(self, steady: float) -> float | None:
        """Return the earliest time that it can have been at FLORA at a steady time; ``None`` where nothing is known."""
        return None if self._steady is None else steady + min(self._steady, self._lowest.value)

    def latest(self, *, steady: float, wall: float) -> float:
        """Return the latest time that it can be at FLORA; the wall clock's, where nothing is known."""
        return max(self.now(steady=steady, wall=wall), steady - self._highest.value)


class _RecentMinimum:
    """Minimum of the values that were added since a time, kept in few entries: those that are still a minimum later."""

    def __init__(self) -> None:
        self._rising: deque[tuple[float, float]] = deque()
        self.value = math.inf

    def add(self, time: float, value: float) -> None:
        while self._rising and self._rising[-1][1] >= value:
            self._rising.pop()
        self._rising.append((time, value))
        self.value = self._rising[0][1]

    def forget(self, before: float) -> None:
        while self._rising and self._rising[0][0] < before:
            self._rising.popleft()
            self.value = self._rising[0][1] if self._rising else math.inf
