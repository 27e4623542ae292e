"""Pure: what is known of a run that somebody waits for, and when it is to be looked at next."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context, copy_context
from typing import TypeAlias

from msgspec import Struct

from flora_async import _pacing
from flora_async._pacing import PollFactory, PollSchedule, Sighting
from flora_async.models import Generation, Run

Scope: TypeAlias = tuple[str | None, str | None]
"""The workspace and the project that a run is in, where they are known."""

Waiter: TypeAlias = "asyncio.Future[Run | None]"
"""Gets the run, or ``None`` when its time is up."""


class Look(Struct, frozen=True, gc=False):
    """What one request told about a run."""

    run: Run
    age: float
    """Seconds since the run's creation, by FLORA's clock."""


class Subject(Struct, frozen=True):
    """What is known of a run before it is looked at."""

    run_id: str
    poll_url: str | None = None
    born: float | None = None
    """When this client was told of its creation, by the event loop's clock; ``None``: it was not, so look at once."""
    age: float | None = None
    """Seconds since its creation, where that is known otherwise."""
    estimate: float | None = None
    """Seconds that it should take."""
    run: Run | None = None
    """Its last record."""
    scope: Scope = (None, None)
    created: float = math.inf
    """When it was created, in Unix seconds by FLORA's clock, where that is known."""
    told: bool = False
    """Whether a call-back will say that it has ended, so that looking is a safety net."""


class Entry:
    """A run that somebody waits for."""

    __slots__ = (
        "alone", "born", "busy", "context", "created", "direct", "due", "exact", "failures", "floor", "fresh", "gap",
        "known_age", "last_delay", "look", "looks", "misses", "own", "run", "run_id", "schedule", "scope", "seen_at",
        "target", "trouble", "waiters",
    )  # fmt: skip

    def __init__(self, subject: Subject, poll: PollFactory | None, now: float) -> None:
        self.run_id: str = subject.run_id
        self.scope: Scope = subject.scope
        self.own: bool = poll is None
        plan = _pacing.safety_net if subject.told else _pacing.run_schedule
        self.schedule: PollSchedule = plan(subject.estimate) if poll is None else poll()
        next(self.schedule)
        self.last_delay: float = _pacing.POLL_FLOOR
        self.fresh: bool = subject.born is not None
        self.born: float = now - (subject.age or 0.0) if subject.born is None else subject.born
        self.created: float = subject.created
        """Unix seconds by FLORA's clock; infinite while nobody knows, like a run of this moment."""
        self.exact: bool = subject.run is not None
        self.known_age: bool = subject.born is not None or subject.age is not None
        self.run: Run | None = None
        self.waiters: dict[Waiter, bool] = {}
        """Each waiter, and whether it waits for any change (or the end only)."""
        self.target: str | None = None
        self.direct: bool = False
        self.alone: bool = False
        """The next look is by its own address."""
        self.misses: int = 0
        self.floor: int = 0
        """The first page that it can be on, for all that was read since it was last seen."""
        self.busy: bool = False
        self.look: asyncio.Task[None] | None = None
        self.looks: int = 0
        """How often it was asked for."""
        self.context: Context = copy_context()
        """Of a wait for it: it is looked at as if that looked, so that a trace of the request knows what it is for."""
        self.failures: int = 0
        self.trouble: str | None = None
        self.seen_at: float = now
        self.gap: float = 0.0
        self.due: float = now
        if self.fresh:
            self.plan(now, None)

    def hurry(self, now: float) -> None:
        """Look now, and as usual from there on: somebody says that the run has ended."""
        self.due = now
        if self.own:
            self.schedule = _pacing.run_schedule(None)
            next(self.schedule)

    def lateness(self, now: float) -> float:
        """Say how long it was not looked at, in its own gaps: what a look at it is worth."""
        return (now - self.seen_at) / max(self.gap, 1e-3)

    def plan(self, now: float, run: Run | None) -> None:
        """Plan the next look."""
        if self.own:
            self.gap = self.schedule.send(Sighting(now - self.born, run))
        else:
            self.gap = self.last_delay = _pacing.next_delay(self.schedule, self.last_delay)
        self.seen_at = now
        self.due = now + self.gap


def is_news(run: Run, before: Run | None) -> bool:
    """Say whether *run* tells more than what was known *before*."""
    if before is None or run.finished or run.status != before.status:
        return True
    if run.progress != before.progress:
        return run.progress > before.progress
    return (run.started_at, run.outputs) != (before.started_at, before.outputs)


def as_run(row: Generation) -> Run:
    """Leave out of an item of the history what a run does not say."""
    return Run(**{name: getattr(row, name) for name in Run.__struct_fields__})
