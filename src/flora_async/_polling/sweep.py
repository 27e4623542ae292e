"""Pure: how far to read the history from its head, and when that is worth it.

A sweep reads pages in sequence from the head of the history, newest runs first. It ends when it has found all of its
runs, or when more pages would cost more requests than polling the remaining runs one by one.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import TypeAlias

from msgspec import Struct

MAX_PARTS = 8
"""Maximum number of sweeps in parallel. Marks of earlier pages allow a sweep to start inside the history."""
MIN_PART_PAGES = 4
"""Minimum number of pages in a part."""
MARK_LIFETIME = 20.0
"""Seconds until a mark expires. Newer runs shift it, which costs a page for each hundred runs."""
MIN_RUNS_PER_PAGE = 2
"""Awaited runs a page must contain, so that the next page is read for runs of unknown age."""
PACE_HALF_LIFE = 30.0
"""Half-life in seconds of a measured pace. An outdated pace is measured again."""


Wanted: TypeAlias = tuple[float, str]
"""The earliest possible creation time of a run, in Unix seconds, and its id."""


class Mark(Struct, frozen=True):
    """The end of a page. Newer runs shift the cursor towards the head, so no older run is before it."""

    created: float
    """Creation time of the last row."""
    cursor: str
    page: int
    """The number of pages from the head of the history to here."""
    at: float
    """Time of reading, in Unix seconds."""


def count_worthwhile(ages: Sequence[float], pace: float, read: int = 0) -> int:
    """Return how many of the youngest runs a sweep should search for; 0 if polling one by one is cheaper.

    *ages* are in seconds, ascending; *pace* is the number of pages per second of history; *read* pages are done.
    """
    for count in range(len(ages), 1, -1):
        if max(1, math.ceil(max(0.0, ages[count - 1]) * pace) - read) < count:
            return count
    return 0


def split(
    wanted: Sequence[Wanted], unsure: Sequence[Wanted], marks: Sequence[Mark]
) -> list[tuple[Mark | None, Sequence[Wanted]]]:
    """Return the parts of the history to read in parallel, each with its start mark and its runs.

    *marks* are from earlier pages, newest first. Runs in *unsure* have an estimated creation time. They belong to the
    first part. Parts without runs are omitted.
    """
    wanted = sorted(wanted, reverse=True)
    parts: list[tuple[Mark | None, Sequence[Wanted]]] = []
    start, begin, page = 0, None, 0
    step = max(MIN_PART_PAGES, marks[-1].page / MAX_PARTS) if marks else 0
    for mark in marks:
        if mark.page < page + step:
            continue
        # Runs with the creation time of the mark may be on either side of it.
        end = bisect_right(wanted, -mark.created, lo=start, key=_negated_time)
        parts.append((begin, wanted[start:end]))
        start, begin, page = end, mark, mark.page
    parts.append((begin, wanted[start:]))
    if unsure:
        parts[0] = None, sorted([*parts[0][1], *unsure], reverse=True)
    return [part for part in parts if part[1]]


def _negated_time(wanted: Wanted) -> float:
    return -wanted[0]


class Sweep:
    """One reading of the history: the runs to find and the position reached."""

    def __init__(self, wanted: Sequence[Wanted], mark: Mark | None = None) -> None:
        self.wanted: Sequence[Wanted] = wanted
        """The runs not found yet, youngest first."""
        self.cursor: str | None = mark.cursor if mark else None
        self.pages: int = mark.page if mark else 0
        """The number of pages from the head of the history to here."""
        self.mark: Mark | None = None
        """The end of the last page."""
        self._limit = self.pages + len(wanted)
        self._cursors: set[str] = set()

    def apply_page(
        self, met: Collection[str], oldest: float | None, cursor: str | None, now: float
    ) -> tuple[list[str], list[str]]:
        """Update the position: the awaited runs *met* on a page and *oldest*, the creation time of the last row.

        Returns the runs that are missing from the pages read so far, and the runs that are too far from the head.
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
            top = math.inf if len(met) < MIN_RUNS_PER_PAGE else sys.float_info.max
            passed = [run_id for created, run_id in wanted if oldest < created <= top]
            wanted = [each for each in wanted if not oldest < each[0] <= top]
        pace = self.pages / max(0.1, now - oldest) if oldest is not None else 0.0
        count = count_worthwhile([now - created for created, _ in wanted], pace, self.pages)
        if self.pages >= self._limit:
            count = 0
        self.wanted = wanted[:count]
        return passed, [run_id for _, run_id in wanted[count:]]
