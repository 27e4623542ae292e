"""Pure: how far to read the history from its head, and when that is worth it.

A sweep reads page after page from the head of the history, newest runs first. It ends when it has met every run it
looks for, or when more pages would cost more requests than polling the rest one by one.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import TypeAlias

from msgspec import Struct

MAX_PARTS = 8
"""Parts of the history that are read at once, where marks of the last reading lead into the middle of it."""
LEAST_PART = 4
"""Pages of a part."""
MARK_SECONDS = 20.0
"""How long a mark is used: newer runs shift it, which costs a page for each hundred."""
FRUITFUL = 2
"""Awaited runs on a page that make the next page worth reading for runs of unknown age."""
PACE_HALF_LIFE = 30.0
"""Seconds after which a measured pace counts half, so that a pace that is outdated is measured again."""


Wanted: TypeAlias = tuple[float, str]
"""The earliest time at which a run can have been created, in Unix seconds, and its id."""


class Mark(Struct, frozen=True):
    """The end of a page that was read: newer runs shift it towards the head, so no older run is before it."""

    created: float
    """Creation time of the last row."""
    cursor: str
    page: int
    """The number of pages from the head of the history to here."""
    at: float
    """When it was read, in Unix seconds."""


def count_worthwhile(ages: Sequence[float], pace: float, read: int = 0) -> int:
    """Return how many of the youngest runs a sweep should look for; 0: polling one by one is cheaper.

    *ages* are in seconds, ascending; *pace* is the number of pages for a second of history; *read* pages are known.
    """
    for count in range(len(ages), 1, -1):
        if max(1, math.ceil(max(0.0, ages[count - 1]) * pace) - read) < count:
            return count
    return 0


def split(
    wanted: Sequence[Wanted], unsure: Sequence[Wanted], marks: Sequence[Mark]
) -> list[tuple[Mark | None, Sequence[Wanted]]]:
    """Return the parts in which the history is read at once, each with the mark that it begins at and its runs.

    *marks* are those of the last readings, newest first. Runs whose creation is not known exactly are *unsure*: the
    first part looks for them. A part that has no runs is left out.
    """
    wanted = sorted(wanted, reverse=True)
    parts: list[tuple[Mark | None, Sequence[Wanted]]] = []
    start, begin, page = 0, None, 0
    step = max(LEAST_PART, marks[-1].page / MAX_PARTS) if marks else 0
    for mark in marks:
        if mark.page < page + step:
            continue
        # Runs of one moment share their creation time, and may be before the mark as well as behind it.
        end = bisect_right(wanted, -mark.created, lo=start, key=_from_now)
        parts.append((begin, wanted[start:end]))
        start, begin, page = end, mark, mark.page
    parts.append((begin, wanted[start:]))
    if unsure:
        parts[0] = None, sorted([*parts[0][1], *unsure], reverse=True)
    return [part for part in parts if part[1]]


def _from_now(wanted: Wanted) -> float:
    return -wanted[0]


class Sweep:
    """One reading of the history: the runs it looks for, and how far it has come."""

    def __init__(self, wanted: Sequence[Wanted], mark: Mark | None = None) -> None:
        self.wanted = wanted
        """The runs not met yet, youngest first."""
        self.cursor = mark.cursor if mark else None
        self.pages = mark.page if mark else 0
        """The number of pages from the head of the history to here."""
        self.mark: Mark | None = None
        """The end of the page that was read last."""
        self._limit = self.pages + len(wanted)
        self._cursors: set[str] = set()

    def take(
        self, met: Collection[str], oldest: float | None, cursor: str | None, now: float
    ) -> tuple[list[str], list[str]]:
        """Take in a page with the awaited runs *met* on it; *oldest* is the creation time of its last row.

        Returns the runs that should have been on the pages read so far, and those that are too far down to read on for.
        """
        self.pages += 1
        self.mark = None
        wanted = [each for each in self.wanted if each[1] not in met]
        if cursor is None or cursor in self._cursors:
            self.wanted = ()
            return [run_id for _, run_id in wanted], []
        self.cursor = cursor
        self._cursors.add(cursor)
        passed: list[str] = []
        if oldest is not None:
            self.mark = Mark(oldest, cursor, self.pages, now)
            top = math.inf if len(met) < FRUITFUL else sys.float_info.max
            passed = [run_id for created, run_id in wanted if oldest < created <= top]
            wanted = [each for each in wanted if not oldest < each[0] <= top]
        pace = self.pages / max(0.1, now - oldest) if oldest is not None else 0.0
        count = count_worthwhile([now - created for created, _ in wanted], pace, self.pages)
        if self.pages >= self._limit:
            count = 0
        self.wanted = wanted[:count]
        return passed, [run_id for _, run_id in wanted[count:]]
