"""Pure: where in the history a run should stand, by when it was created and by the pages that were read.

The history is newest first, so a run's place is the number of runs created after it: those that we know of, times how
many strangers come between them, counted from the nearest row whose place was seen. A wrong place costs a request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort

from msgspec import Struct

from flora_async.models import GenerationPage

PAGE = 100
REMEMBERED = 50_000
"""Of how many runs it is known when they were created; of older ones only what pages tell."""


class _Anchor(Struct, frozen=True, order=True):
    """The last row of a page, as it was read."""

    created: float
    place: int
    entered: int
    """How many runs had been entered by then: those since have moved it on."""


class Places:
    """A map of the history, of one scope of it."""

    def __init__(self) -> None:
        self.cursors: list[str | None] = [None]
        """How each page that can be reached is asked for."""
        self._complete = False
        self._density = 1.0
        self._times: list[float] = []
        self._entered = 0
        self._by_page: dict[int, _Anchor] = {}
        self._anchors: list[_Anchor] = []

    @property
    def last(self) -> int:
        """The last page that can be reached."""
        return len(self.cursors) - 1

    def enter(self, created: float) -> None:
        """Count a run of ours, by its creation in Unix seconds; infinite: nobody knows."""
        if created < math.inf:
            insort(self._times, created)
            self._entered += 1
            if len(self._times) > REMEMBERED:
                del self._times[: REMEMBERED // 10]

    def forget(self) -> None:
        """Forget the pages: their cursors no longer hold, or another part of the history is read."""
        self.cursors = [None]
        self._complete = False
        self._by_page.clear()
        self._anchors.clear()

    def page_of(self, created: float, floor: int) -> int | None:
        """Say on which page a run should be, not before *floor*; ``None`` if the history ends before."""
        number = max(int(self._place(created)) // PAGE, floor)
        if not self._complete:
            return number
        return None if floor > self.last else min(number, self.last)

    def _place(self, created: float) -> float:
        times = self._times
        newer = bisect_right(times, created)
        if not self._anchors:
            return (len(times) - newer) * self._density
        at = bisect_left(self._anchors, created, key=_created)
        if at == len(self._anchors) or self._anchors[at].created != created:
            at = max(at - 1, 0)  # the next older one; of several of one moment, the newest place
        anchor = self._anchors[at]
        between = bisect_right(times, anchor.created) - newer  # negative where the anchor is the older one
        moved = self._entered - anchor.entered
        return max(0.0, anchor.place + (moved + between) * self._density)

    def note(self, number: int, page: GenerationPage) -> None:
        """Take in a page that was read."""
        following = page.next_cursor
        if following is None or (number == self.last and following in self.cursors):  # the end, or a circle
            del self.cursors[number + 1 :]
            self._complete = True
        elif number == self.last:
            self.cursors.append(following)
            self._complete = False
        rows = page.generations
        if not rows:
            return
        newest, oldest = rows[0].created.timestamp(), rows[-1].created.timestamp()
        ours = bisect_right(self._times, newest) - bisect_left(self._times, oldest)
        if ours > 0:
            self._density = 0.5 * self._density + 0.5 * max(1.0, len(rows) / ours)
        self._by_page[number] = _Anchor(oldest, number * PAGE + len(rows) - 1, self._entered)
        self._anchors = sorted(self._by_page.values())


def _created(anchor: _Anchor) -> float:
    return anchor.created
