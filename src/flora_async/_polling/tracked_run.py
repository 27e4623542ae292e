"""The state of one awaited run."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterator
from contextvars import Context, copy_context
from itertools import count
from typing import Generic, TypeVar

from flora_async._polling import schedule
from flora_async._polling.schedule import PollFactory, PollSchedule, PollState
from flora_async._polling.sweep import Sweep
from flora_async._polling.targets import Scope, WaitTarget
from flora_async.models import Generation, Run

T = TypeVar("T")

EARLY = 0.25
"""A poll of another wait counts as the poll of a schedule that is due within this share of its interval."""


class Agenda(Generic[T]):
    """Things and the times at which each is due, each at one time only."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._numbers: dict[T, int] = {}
        self._count = count()

    def __len__(self) -> int:
        return len(self._numbers)

    def put(self, thing: T, due: float) -> None:
        """Set the time of a thing."""
        number = self._numbers[thing] = next(self._count)
        heapq.heappush(self._heap, (due, number, thing))

    def drop(self, thing: T) -> None:
        """Remove a thing."""
        if self._numbers.pop(thing, None) is not None and len(self._heap) > 2 * len(self._numbers) + 64:
            self._heap = [item for item in self._heap if self._numbers.get(item[2]) == item[1]]
            heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[T]:
        return iter(self._numbers)

    def next_due(self) -> float:
        """Return the earliest time; infinity if there is none."""
        while self._heap and self._numbers.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def first(self, until: float) -> T | None:
        """Return the thing that is due first, if that is by *until*."""
        return None if self.next_due() > until else self._heap[0][2]

    def pop(self, until: float) -> T | None:
        """Remove and return the thing that is due first, if that is by *until*."""
        thing = self.first(until)
        if thing is not None:
            heapq.heappop(self._heap)
            del self._numbers[thing]
        return thing


class Plan:
    """A poll schedule under way: when the waits that share it want the run to be polled next."""

    __slots__ = ("_schedule", "due", "interval", "poll", "told", "waiters")

    def __init__(self, subject: WaitTarget, poll: PollFactory | None, now: float) -> None:
        self.poll = poll
        self.told = subject.told and poll is None
        adaptive = schedule.webhook_fallback_schedule if self.told else schedule.adaptive_schedule
        self._schedule: PollSchedule = schedule.start_schedule(poll or (lambda: adaptive(subject.estimate)))
        self.interval: float = schedule.POLL_FLOOR
        self.due: float = now
        self.waiters: int = 0
        if subject.born is not None:
            self.advance(now, now - subject.born, None)

    def advance(self, now: float, age: float, run: Run | None) -> None:
        """Schedule the next poll, after one at which the run was *age* seconds old."""
        if self.poll is None:
            self.interval = self._schedule.send(PollState(age, run))
        elif self.due > now + EARLY * self.interval:
            return  # a poll for another wait: this schedule's own is still to come
        else:
            self.interval = schedule.next_delay(self._schedule, self.interval)
        self.due = now + self.interval

    def restart(self) -> None:
        """Schedule as for a run without an estimate from here on, where no caller has set the schedule."""
        if self.poll is None:
            self._schedule = schedule.start_schedule(lambda: schedule.adaptive_schedule(None))


class Waiter(asyncio.Future[Run | None]):
    """One wait for a run: gets the run, or ``None`` when its time is up."""

    __slots__ = ("changes", "context", "deadline", "entry", "plan")

    entry: TrackedRun
    plan: Plan
    deadline: float
    changes: bool
    """Whether it ends with any change of the run, not only with its end."""
    context: Context
    """In which the run is polled, as long as this waiter is the first: a trace of the request shows its purpose."""


class Interest:
    """What a caller wants to know about a run, from its first wait to its last."""

    __slots__ = ("context", "entry", "plan")

    def __init__(self, entry: TrackedRun, plan: Plan) -> None:
        self.entry = entry
        self.plan = plan
        self.context: Context = copy_context()


class TrackedRun:
    """An awaited run."""

    __slots__ = (
        "alone",
        "born",
        "created",
        "direct",
        "exact",
        "failures",
        "known_age",
        "misses",
        "plans",
        "poll",
        "polls",
        "retry_at",
        "run",
        "run_id",
        "scope",
        "sweep",
        "target",
        "trouble",
        "waiters",
    )  # fmt: skip

    def __init__(self, subject: WaitTarget, now: float) -> None:
        self.run_id: str = subject.run_id
        self.scope: Scope = subject.scope
        self.plans: list[Plan] = []
        self.born: float = now - (subject.age or 0.0) if subject.born is None else subject.born
        self.created: float = subject.created
        """Unix seconds by FLORA's clock; infinite while it is unknown, like that of a run of this moment."""
        self.exact: bool = subject.run is not None
        self.known_age: bool = subject.born is not None or subject.age is not None
        self.run: Run | None = None
        self.waiters: dict[Waiter, None] = {}
        self.target: str | None = None
        self.direct: bool = False
        """Whether its ``poll_url`` did not work."""
        self.alone: bool = False
        """Whether the next poll is by its own address."""
        self.misses: int = 0
        """How often it was not where it should have been in the history."""
        self.poll: asyncio.Task[None] | None = None
        self.sweep: Sweep | None = None
        """The sweep that looks for it."""
        self.polls: int = 0
        """How many requests have asked for it or returned it."""
        self.failures: int = 0
        self.trouble: str | None = None
        self.retry_at: float | None = None
        """When it is polled next, whatever the schedules say."""

    @property
    def due(self) -> float:
        """When it is to be polled next."""
        if self.retry_at is not None:
            return self.retry_at
        return min([plan.due for plan in self.plans], default=math.inf)

    @property
    def gap(self) -> float:
        """Seconds between the last poll and the next, by the most frequent schedule."""
        return min([plan.interval for plan in self.plans], default=math.inf)

    def join(self, plan: Plan) -> Plan:
        """Add a wait's schedule. Waits share the schedule of one *poll* function, and each default one."""
        for each in self.plans:
            if each is plan or (each.poll is plan.poll and each.told == plan.told):
                each.waiters += 1
                return each
        self.plans.append(plan)
        plan.waiters = 1
        return plan

    def part(self, plan: Plan) -> None:
        """Remove a wait's schedule, unless another wait shares it."""
        plan.waiters -= 1
        if not plan.waiters and plan in self.plans:
            self.plans.remove(plan)

    def poll_now(self, now: float) -> None:
        """Poll now, and as usual from there on: FLORA has reported the end of the run."""
        self.retry_at = now
        for plan in self.plans:
            plan.restart()


def is_change(run: Run, before: Run | None) -> bool:
    """Say whether *run* tells more than what was known *before*."""
    if before is None or run.finished or run.status != before.status:
        return True
    if run.progress != before.progress:
        return run.progress > before.progress
    return (run.started_at, run.outputs) != (before.started_at, before.outputs)


def to_run(row: Generation) -> Run:
    """Leave out of an item of the history what a run does not say."""
    return Run(**{name: getattr(row, name) for name in Run.__struct_fields__})
