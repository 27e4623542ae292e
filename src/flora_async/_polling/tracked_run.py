"""The state of one awaited run."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterator
from contextvars import Context, copy_context
from itertools import count
from operator import attrgetter
from typing import Generic, TypeVar

from flora_async._polling import schedule
from flora_async._polling.schedule import (
    AdaptiveSchedule,
    PollFactory,
    PollPolicy,
    PollSchedule,
    WebhookFallbackSchedule,
)
from flora_async._polling.sweep import Sweep
from flora_async._polling.targets import Scope, WaitTarget
from flora_async.models import Generation, Run

T = TypeVar("T")

EARLY_POLL_SHARE = 0.25
"""Share of its interval by which a schedule accepts an earlier poll of another wait as its own."""

REMOVED_ENTRIES = 30
"""Maximum number of dropped entries that one look at the first item of an agenda removes."""
MOVED_ENTRIES = 4
"""Number of entries of an agenda that one drop moves to its new heap."""


class Agenda(Generic[T]):
    """A priority queue of items by due time. Each item has one due time.

    The entry of a dropped item stays in the heap. If most entries are such, the others move to a new heap, a few with
    each further drop: a heap of 100,000 items rebuilt at once would stall the event loop.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._old_heap: list[tuple[float, int, T]] = []
        """The heap whose live entries move to the new one."""
        self._numbers: dict[T, int] = {}
        self._count = count()

    def __len__(self) -> int:
        return len(self._numbers)

    def put(self, item: T, due: float) -> None:
        """Set the due time of an item."""
        number = self._numbers[item] = next(self._count)
        heapq.heappush(self._heap, (due, number, item))

    def drop(self, item: T) -> None:
        """Remove an item if it is present."""
        if self._numbers.pop(item, None) is None:
            return
        if not self._old_heap and len(self._heap) > 2 * len(self._numbers) + 64:
            self._old_heap, self._heap = self._heap, []
        for _ in range(min(MOVED_ENTRIES, len(self._old_heap))):
            entry = self._old_heap.pop()  # without the last entry of its list, a heap is still one
            if self._numbers.get(entry[2]) == entry[1]:
                heapq.heappush(self._heap, entry)

    def __iter__(self) -> Iterator[T]:
        return iter(self._numbers)

    def _first_heap(self) -> list[tuple[float, int, T]]:
        """Return the heap whose top is the first item, or a dropped one before it. It is empty if the agenda is."""
        heap = self._without_dropped_top(self._heap)
        if not self._old_heap:
            return heap
        return min((each for each in (heap, self._without_dropped_top(self._old_heap)) if each), default=heap)

    def _without_dropped_top(self, heap: list[tuple[float, int, T]]) -> list[tuple[float, int, T]]:
        for _ in range(REMOVED_ENTRIES):
            if not heap or self._numbers.get(heap[0][2]) == heap[0][1]:
                break
            heapq.heappop(heap)
        return heap

    def next_due(self) -> float:
        """Return the earliest due time, or an earlier one behind very many dropped items; infinity if it is empty."""
        heap = self._first_heap()
        return heap[0][0] if heap else math.inf

    def first(self, until: float) -> T | None:
        """Return the first item due by *until*, or ``None``. It is also ``None`` behind very many dropped items."""
        heap = self._first_heap()
        if not heap or heap[0][0] > until:
            return None
        _, number, item = heap[0]
        return item if self._numbers.get(item) == number else None

    def pop(self, until: float) -> T | None:
        """Remove and return the first item due by *until*, or ``None``, as :meth:`first`."""
        item = self.first(until)
        if item is not None:
            heapq.heappop(self._first_heap())
            del self._numbers[item]
        return item


class Plan:
    """A started poll schedule, shared by the waits with the same ``poll`` function."""

    __slots__ = ("_custom", "_default", "_policy", "due", "interval", "poll", "waiters", "webhook_expected")

    def __init__(self, policy: PollPolicy, target: WaitTarget, poll: PollFactory | None, now: float) -> None:
        self._policy: PollPolicy = policy
        self.poll: PollFactory | None = poll
        self.webhook_expected: bool = target.webhook_expected and poll is None
        self._custom: PollSchedule | None = None if poll is None else schedule.start_schedule(poll)
        default = WebhookFallbackSchedule if self.webhook_expected else AdaptiveSchedule
        self._default: AdaptiveSchedule | WebhookFallbackSchedule = default(policy, target.estimate)
        self.interval: float = policy.min_delay
        self.due: float = now
        self.waiters: int = 0
        if target.loop_created is not None:
            self.advance(now, now - target.loop_created, None)

    def advance(self, now: float, age: float, run: Run | None) -> None:
        """Schedule the next poll, after a poll at the given age of the run in seconds."""
        if self._custom is None:
            self.interval = self._default.next_delay(age, run)
        elif self.due > now + EARLY_POLL_SHARE * self.interval:
            return  # a poll of another wait: keep the due time of this schedule
        else:
            self.interval = schedule.next_delay(self._custom, self.interval)
        self.due = now + self.interval

    def restart(self) -> None:
        """Replace the default schedule by one for a run without an estimate. A custom schedule stays."""
        self._default = AdaptiveSchedule(self._policy, None)


class Waiter(asyncio.Future[Run | None]):
    """One wait for a run. Its result is the run, or ``None`` after a timeout."""

    __slots__ = ("changes", "context", "deadline", "plan", "settle", "tracked")

    tracked: TrackedRun
    plan: Plan
    deadline: float
    changes: bool
    """Whether any change of the run resolves it, not only the end."""
    settle: bool
    """Whether it waits for the charge of a completed run."""
    context: Context
    """Context of the polls while this waiter is the first. Traces then show the purpose of a request."""

    def fail(self, error: Exception) -> None:
        """Set the error that ends the wait. asyncio does not log it if the caller has gone."""
        self.set_exception(error)
        self.exception()  # which marks it as seen


class Interest:
    """One caller's waits for a run, from the first to the last."""

    __slots__ = ("context", "plan", "tracked")

    def __init__(self, tracked: TrackedRun, plan: Plan) -> None:
        self.tracked: TrackedRun = tracked
        self.plan: Plan = plan
        self.context: Context = copy_context()


class TrackedRun:
    """State of one awaited run, shared by all its waits."""

    __slots__ = (
        "age_known",
        "created",
        "created_known",
        "failures",
        "ignore_poll_url",
        "last_error",
        "loop_created",
        "misses",
        "plans",
        "poll_individually",
        "poll_task",
        "poll_url",
        "polls",
        "ready",
        "retry_at",
        "run",
        "run_id",
        "scope",
        "settle_until",
        "shown_poll_url",
        "sweep",
        "waiters",
    )  # fmt: skip

    def __init__(self, target: WaitTarget, now: float) -> None:
        self.run_id: str = target.run_id
        self.scope: Scope = target.scope
        self.plans: list[Plan] = []
        self.loop_created: float = now - (target.age or 0.0) if target.loop_created is None else target.loop_created
        self.created: float = target.created
        """Unix seconds by the server's clock. Infinite if unknown: such a run sorts as the newest."""
        self.created_known: bool = target.run is not None
        self.age_known: bool = target.loop_created is not None or target.age is not None
        self.run: Run | None = None
        self.waiters: dict[Waiter, None] = {}
        self.poll_url: str | None = None
        """The allowed URL at which it is polled; ``None``: its own."""
        self.shown_poll_url: str | None = None
        """The last ``poll_url`` in a record, which :attr:`poll_url` was resolved from."""
        self.ignore_poll_url: bool = False
        """Whether its ``poll_url`` has failed."""
        self.poll_individually: bool = not target.in_history
        """Whether the next poll uses the run's own URL, not a history page."""
        self.misses: float = 0 if target.in_history else math.inf
        """Number of history pages that should have contained the run."""
        self.poll_task: asyncio.Task[None] | None = None
        self.sweep: Sweep | None = None
        """The sweep that searches for it."""
        self.ready: Agenda[TrackedRun] | None = None
        """The agenda of due runs that it is in."""
        self.polls: int = 0
        """Number of requests that polled it or returned it."""
        self.failures: int = 0
        self.last_error: str | None = None
        self.retry_at: float | None = None
        """Time of the next poll; overrides the schedules."""
        self.settle_until: float = math.inf
        """Time until which the charge of the completed run is awaited; infinite before the run has completed."""

    @property
    def settles(self) -> bool:
        """Whether the run has completed and its charge is awaited."""
        return self.settle_until < math.inf

    @property
    def due(self) -> float:
        """Time of the next poll."""
        if self.retry_at is not None:
            return self.retry_at
        return min([plan.due for plan in self.plans], default=math.inf)

    @property
    def interval(self) -> float:
        """Seconds between the last poll and the next, by the most frequent plan."""
        return min([plan.interval for plan in self.plans], default=math.inf)

    def add_plan(self, plan: Plan) -> Plan:
        """Add the plan of a wait and return the plan in use. Waits with the same ``poll`` function share one."""
        for each in self.plans:
            if each is plan or (each.poll is plan.poll and each.webhook_expected == plan.webhook_expected):
                each.waiters += 1
                return each
        self.plans.append(plan)
        plan.waiters = 1
        return plan

    def remove_plan(self, plan: Plan) -> None:
        """Remove the plan of a wait, unless another wait shares it."""
        plan.waiters -= 1
        if not plan.waiters and plan in self.plans:
            self.plans.remove(plan)

    def poll_now(self, now: float) -> None:
        """Schedule a poll now, then by the default schedule, because the end of the run was reported."""
        self.retry_at = now
        for plan in self.plans:
            plan.restart()


def is_change(run: Run, before: Run | None) -> bool:
    """Return whether *run* has new information compared to *before*."""
    if before is None or run.finished or run.status != before.status:
        return True
    if run.progress != before.progress:
        return run.progress > before.progress
    return (run.started_at, run.outputs) != (before.started_at, before.outputs)


def to_run(row: Generation) -> Run:
    """Convert a history item to a Run."""
    return Run(**dict(zip(Run.__struct_fields__, _run_values(row), strict=True)))


_run_values = attrgetter(*Run.__struct_fields__)
