"""Waiting: one run looked at until it has finished.

:class:`RunWatch` is the one loop; waiting for a run is reading its watch to the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Self, TypeAlias

import anyio
from msgspec import Struct

from flora_async import _pacing, errors
from flora_async._pacing import PollFactory, PollSchedule, Sighting
from flora_async.models import Run

log = logging.getLogger("flora_async")

_KNOWN = ("pending", "running", "completed", "failed")

OnUpdate: TypeAlias = Callable[[Run], object]
"""Called with each change of a run; what it raises ends the wait."""


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
    """Seconds since its creation by its own record, where there is one."""
    estimate: float | None = None
    """Seconds that it should take."""
    run: Run | None = None
    """Its last record."""


class RunWatch:
    """The changes of one run, ending with the finished run: iterate over it with ``async for``.

    A look that shows less progress and the same status is not handed out. A failed run is the last item, not an
    exception. Nothing runs between two items, so there is nothing to close after ``break``.

    Raises:
        RunTimeoutError: the time is up; the run goes on at FLORA.
        AuthenticationError, PermissionDeniedError, BadRequestError: the run may not be looked at.
        NotFoundError: there is no such run, 10 seconds after its creation (or after the first look).
    """

    def __init__(
        self,
        subject: Subject,
        *,
        look: Callable[[str, str | None], Awaitable[Look]],
        target: Callable[[str], str | None],
        pause: Callable[[float], Awaitable[None]],
        poll: PollFactory | None,
        timeout: float | None,
    ) -> None:
        self._subject = subject
        self._look = look
        self._target_of = target
        self._pause = pause
        self._poll = poll
        self._timeout = math.inf if timeout is None else timeout
        self._deadline: float | None = None
        self._schedule: PollSchedule | None = None
        self._last_delay = _pacing.POLL_FLOOR
        self._born = 0.0
        self._due = 0.0
        self._target = target(subject.poll_url) if subject.poll_url else None
        self._direct = False
        self._run: Run | None = None
        self._failures = 0
        self._trouble: str | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Run:
        if self._over:
            raise StopAsyncIteration
        now = anyio.current_time()
        if self._deadline is None:
            self._deadline = now + self._timeout
            self._begin(now)
        self._over = True  # unless this ends with a run that is not finished
        with anyio.move_on_after(self._deadline - now):
            run = await self._next_change()
            self._over = run.finished
            self._run = run
            return run
        raise errors.RunTimeoutError(self._subject.run_id, timeout=self._timeout, run=self._run, trouble=self._trouble)

    def _begin(self, now: float) -> None:
        subject = self._subject
        self._schedule = _pacing.run_schedule(subject.estimate) if self._poll is None else self._poll()
        next(self._schedule)
        if subject.born is not None:
            self._born = subject.born
            self._due = now + self._delay(None, now)
        else:
            self._born = now - (subject.age or 0.0)
            self._due = now

    def _delay(self, run: Run | None, now: float) -> float:
        schedule = self._schedule
        if schedule is None:
            return 0.0
        if self._poll is None:
            return schedule.send(Sighting(now - self._born, run))
        self._last_delay = _pacing.next_delay(schedule, self._last_delay)
        return self._last_delay

    async def _next_change(self) -> Run:
        known = self._subject.run
        if known is not None and known.finished:
            return known
        while True:
            wait = self._due - anyio.current_time()
            if wait > 0:
                await self._pause(wait)
            run = await self._sighted()
            if run is not None and _is_news(run, self._run):
                return run

    async def _sighted(self) -> Run | None:
        """Look once, and plan the next look; ``None`` if this one told nothing."""
        subject = self._subject
        try:
            look = await self._look(subject.run_id, self._target)
        except errors.FloraError as failure:
            now = anyio.current_time()
            self._trouble = str(failure)
            final = _pacing.ends_wait(failure, age=now - self._born)
            if self._target is not None and _pacing.blames_address(failure):
                # The run's own address decides; until it has spoken nothing is final.
                self._direct, self._target = True, None
                return None
            if final:
                failure.run_id = subject.run_id
                raise
            self._failures += 1
            self._due = now + _pacing.pause_after_failed_look(failure, self._failures)
            log.info("%s: a look failed (%s), waiting goes on", subject.run_id, type(failure).__name__)
            return None
        now, run = anyio.current_time(), look.run
        self._failures, self._trouble = 0, None
        if run.poll_url and not self._direct:
            self._target = self._target_of(run.poll_url)
        if subject.born is None:
            self._born = now - look.age
        if run.status not in _KNOWN and (self._run is None or self._run.status != run.status):
            log.warning("%s: unknown status %r, waiting goes on", run.run_id, run.status)
        if not run.finished:
            self._due = now + self._delay(run, now)
        return run


def _is_news(run: Run, before: Run | None) -> bool:
    if before is None or run.finished or run.status != before.status:
        return True
    if run.progress != before.progress:
        return run.progress > before.progress
    return (run.started_at, run.outputs) != (before.started_at, before.outputs)
