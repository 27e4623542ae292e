"""Pure: choose the next polls: single runs, or pages of the history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TypeAlias

from msgspec import Struct

from flora_async._polling.sweep import MARK_LIFETIME, PACE_HALF_LIFE, Mark, Wanted, count_worthwhile, split
from flora_async._polling.targets import Scope

POLL_EVICTION_SECONDS = 0.5
"""Seconds after which a poll in flight can be cancelled for another run, if the maximum is reached."""
CLOCK_SKEW = 5.0
"""Maximum error in seconds of an estimated creation time."""

GroupKey: TypeAlias = tuple[bool, bool]
"""A group of runs: (their last poll failed, they must be polled individually)."""


class ReadyGroup(Struct, frozen=True):
    """The first run of a group of due runs."""

    due: float
    """Time at which it is due; infinity if the group is empty."""
    failures: int = 0
    """Number of its failed polls in sequence."""


def choose_group(
    ready: Mapping[GroupKey, ReadyGroup], *, now: float, sweeping: bool, oldest_poll: float | None
) -> tuple[float, GroupKey | None]:
    """Return the group whose first run is polled next, or ``None`` and the time to choose again.

    While a sweep reads the history, only runs that must be polled individually are. *oldest_poll* is the start of the
    oldest poll of a single run if no further poll is allowed: it is replaced after a time that grows with the failures
    of the run that is due. It is ``None`` if a further poll is allowed.
    """
    later = math.inf
    for failing in (False, True):
        key = failing, sweeping or ready[failing, True].due <= ready[failing, False].due
        group = ready[key]
        replace_at = -math.inf
        if oldest_poll is not None and group.due <= now:
            replace_at = oldest_poll + POLL_EVICTION_SECONDS * 2 ** min(group.failures, 10)
        if max(group.due, replace_at) <= now:
            return now, key
        later = min(later, max(group.due, replace_at))
    return later, None


class SweepPlan(Struct, frozen=True):
    """The sweeps of the history that save requests."""

    parts: Sequence[tuple[Mark | None, Sequence[Wanted]]]
    """For each sweep, where it starts (``None``: at the head of the history), and its runs, youngest first."""
    distant: Sequence[Wanted]
    """Runs that are polled one by one, because they are too far from the start of a sweep."""


def plan_sweeps(
    known: Sequence[Wanted], estimated: Sequence[Wanted], marks: Sequence[Mark], now: float, *, pace: float
) -> SweepPlan:
    """Plan sweeps for runs with a *known* and runs with an *estimated* creation time; *now* is in Unix seconds."""
    newest_first = sorted(marks, key=attrgetter("created"), reverse=True)
    unsure = [(created - CLOCK_SKEW, run_id) for created, run_id in estimated]
    parts: list[tuple[Mark | None, Sequence[Wanted]]] = []
    distant: list[Wanted] = []
    for mark, part in split(known, unsure, newest_first):
        count = count_worthwhile([now - created for created, _ in part], pace, mark.page if mark else 0)
        distant.extend(part[count:])
        if count:
            parts.append((mark, part[:count]))
    return SweepPlan(parts, distant)


def measured_pace(marks: Sequence[Mark], now: float) -> float:
    """Return the pages for each second of history by the last mark. An older mark counts less; 0 without a mark."""
    if not marks:
        return 0.0
    last = marks[-1]
    return last.page / max(0.1, now - last.created) * math.exp2((last.at - now) / PACE_HALF_LIFE)


def valid_marks(marks: Sequence[Mark], now: float) -> list[Mark]:
    """Return the marks that have not expired, at least the last one."""
    return [mark for mark in marks if mark.at > now - MARK_LIFETIME] or list(marks[-1:])


def narrowest_scope(scopes: Iterable[Scope]) -> Scope:
    """Return the narrowest scope of the history that contains all the *scopes*."""
    workspaces, projects = zip(*scopes, strict=True)
    return (
        workspaces[0] if len(set(workspaces)) == 1 else None,
        projects[0] if len(set(projects)) == 1 else None,
    )
