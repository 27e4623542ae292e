"""Pure: FLORA's clock, learned from the ``Date`` header of each response."""

from __future__ import annotations


class ServerClock:
    """Estimates FLORA's time from two local clocks: one that never steps (steady), one that never stops (wall).

    ``Date`` has whole seconds and is set between sending and receiving, so each response bounds the offset from both
    sides: the estimate moves up and down as little as the bounds require. The steady clock can stand still while the
    machine sleeps, the wall clock can be set back: the later estimate counts.
    """

    def __init__(self) -> None:
        self._steady: float | None = None
        self._wall = 0.0

    @property
    def known(self) -> bool:
        """Whether any response has told FLORA's time."""
        return self._steady is not None

    def observe(self, date: float, *, sent: float, received: float, wall: float) -> None:
        """Learn from a response: its date in Unix seconds, the steady times around it, the wall clock now."""
        earliest, latest = date - received, date + 1 - sent
        self._steady = earliest if self._steady is None else min(max(self._steady, earliest), latest)
        self._wall = received + self._steady - wall

    def now(self, *, steady: float, wall: float) -> float:
        """Return FLORA's time in Unix seconds; the wall clock's, where nothing is known."""
        return wall if self._steady is None else max(steady + self._steady, wall + self._wall)

    def at(self, steady: float) -> float | None:
        """Return FLORA's time at a steady time; ``None`` where nothing is known."""
        return None if self._steady is None else steady + self._steady
