"""Poll all awaited runs of a client: one TrackedRun for each run, one future for each waiter.

Each run is polled at its own URL on its own schedule. If several runs are due, the poller reads pages of the history,
which return more runs for each request (see ``sweep.py``). Pages are an optimization. A run is removed only by a
finished record of the run, by a fatal error, or with its last waiter. A shifted page, an outdated row or a missing row
costs one request and loses no run.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from contextvars import Context
from copy import copy
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async._aio import require_loop, running_loop
from flora_async._bounded_dict import BoundedDict
from flora_async._http.rate_limit import Lane
from flora_async._http.retry import RetryPolicy
from flora_async._polling.planner import (
    ReadyGroup,
    choose_group,
    measured_pace,
    narrowest_scope,
    plan_sweeps,
    valid_marks,
)
from flora_async._polling.schedule import PollFactory, PollPolicy, should_drop_poll_url
from flora_async._polling.sweep import Mark, Sweep
from flora_async._polling.targets import PollResult, Scope, WaitTarget
from flora_async._polling.tracked_run import Agenda, Interest, Plan, TrackedRun, Waiter, is_change, to_run
from flora_async.events import Emit, PollFinished, PollStarted
from flora_async.models import Generation, GenerationPage, Run, lacks_charge, lacks_outputs

log = logging.getLogger("flora_async")

PAGE_TIMEOUT = 1.5
"""Seconds until a page request times out. Its runs are then polled one by one."""
SWEEP_LOOKAHEAD = 1.0
"""A sweep includes the runs that are due within this many seconds."""
RUNS_PER_STEP = 500
"""Maximum number of due runs, of waits that time out, or of closed runs processed in one step of the event loop."""
MAX_SWEEP_RUNS = 2000
"""Maximum number of runs that sweeps search for. Other awaited runs on the same pages are updated too."""
FINAL_POLL_LEAD = 5.0
"""Seconds before its deadline at which a wait for a webhook polls once more. The webhook may be lost."""
MAX_PAGE_MISSES = 2
"""Number of pages that lack a run after which the run is always polled at its own URL."""
MAX_FINISHED_EARLY = 100_000
"""Maximum number of run ids remembered as finished before a wait for them starts."""

SETTLE_SECONDS = 90.0
"""Seconds after the end of a completed run for which its charge is awaited. FLORA shows it within a minute."""
MIN_SETTLE_SECONDS = 5.0
"""Seconds for which the charge of a run that completed long ago is awaited."""

_KNOWN = ("pending", "running", "completed", "failed")


ReadPage: TypeAlias = Callable[[str | None, Scope, float], Coroutine[Any, Any, GenerationPage]]
"""Reads a page of the history: cursor, workspace and project, time of the granted turn."""


class PollOperations(Struct, frozen=True):
    """API operations of the poller, with its limiter lane, clock and callbacks."""

    retrieve_run: Callable[[str, str | None, float], Coroutine[Any, Any, PollResult]]
    """Polls one run: run id, ``poll_url`` or ``None``, time of the granted turn."""
    read_page: ReadPage | None
    """``None`` disables sweeps."""
    resolve_poll_url: Callable[[str, str], str | None]
    """Returns the allowed URL for a run id and its ``poll_url``, or ``None``."""
    lane: Lane
    """The rate limiter's lane for polls."""
    clock: Callable[[], float]
    """Returns the server time in Unix seconds."""
    on_finished: Callable[[Run, float], object]
    """Called with each finished run and its age in seconds."""
    emit: Emit | None = None
    """Emits the events of each poll."""
    policy: PollPolicy = PollPolicy()
    retry_policy: RetryPolicy = RetryPolicy()


class _Poll(Struct, eq=False):
    """A request in flight."""

    started_at: float
    tracked: TrackedRun | None = None
    """The polled run; ``None`` for a page."""
    sweep: Sweep | None = None
    """The sweep that a page belongs to."""
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    evicted: bool = False


class Poller:
    """Polls all awaited runs of a client. Its task runs while runs are awaited."""

    def __init__(self, operations: PollOperations) -> None:
        self._operations = operations
        self._policy = operations.policy
        self.emit: Emit | None = operations.emit
        self._tracked: dict[str, TrackedRun] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._wake_at = math.inf
        self._closed = False
        self._deadlines: Agenda[Waiter] = Agenda()
        self._due: Agenda[TrackedRun] = Agenda()
        self._ready: dict[tuple[bool, bool], Agenda[TrackedRun]] = {
            (failing, alone): Agenda() for failing in (False, True) for alone in (False, True)
        }
        """Runs that are due now or soon: (last poll failed, must be polled individually)."""
        self._polls: dict[_Poll, None] = {}
        self._turn: float | None = None
        """Time of a granted turn that is not used yet."""
        self._turn_task: asyncio.Task[None] | None = None
        self._sweeps: dict[Sweep, Scope] = {}
        """Sweeps in progress, oldest first."""
        self._next_sweep = 0.0
        self._reading: set[Sweep] = set()
        self._scope: Scope = (None, None)
        self._marks: list[Mark] = []
        """Ends of the last pages read in ``_scope``."""
        self._pages_resume_at = 0.0
        self._page_failures = 0
        self._page_next = False
        self._finished_early: BoundedDict[str, None] = BoundedDict(MAX_FINISHED_EARLY)

    def track(self, target: WaitTarget, poll: PollFactory | None) -> Interest:
        """Return the caller's interest in a run. Polling starts with :meth:`add_waiter`."""
        self._loop = require_loop(self._loop)
        now = self._loop.time()
        plan = Plan(self._policy, target, poll, now)
        tracked = self._tracked.get(target.run_id)
        if tracked is None:
            tracked = TrackedRun(target, now)
            if target.run is not None and target.run.finished:
                tracked.run, tracked.settle_until = target.run, self._settle_until(target.run, now)
            self._use_poll_url(tracked, target.poll_url)
            if tracked.run_id in self._finished_early:
                del self._finished_early[tracked.run_id]
                tracked.retry_at = now
                plan.restart()
        return Interest(tracked, plan)

    def _use_poll_url(self, tracked: TrackedRun, shown: str | None) -> None:
        """Poll a run at the URL that FLORA has shown, if it is new and allowed. Without one, the URL in use stays."""
        if shown and shown != tracked.shown_poll_url and not tracked.ignore_poll_url:
            tracked.shown_poll_url = shown
            tracked.poll_url = self._operations.resolve_poll_url(tracked.run_id, shown)

    def notify_finished(self, run_id: str) -> None:
        """Poll a run now, because a webhook reported its end. Thread-safe."""
        if self._loop is None:
            self._finished_early[run_id] = None
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_run_finished, run_id)

    def _on_run_finished(self, run_id: str) -> None:
        tracked = self._tracked.get(run_id)
        if tracked is None:
            self._finished_early[run_id] = None
            return
        # The response to a request in flight may predate the end. Poll again, at the run's own URL.
        tracked.poll_now(asyncio.get_running_loop().time())
        tracked.poll_individually, tracked.sweep = True, None
        if tracked.poll_task is None:
            self._schedule(tracked)
        else:
            tracked.poll_task.cancel()

    def add_waiter(
        self,
        interest: Interest,
        *,
        deadline: float,
        known: Run | None = None,
        changes: bool = False,
        settle: bool = False,
    ) -> Waiter:
        """Return a future for the end of a run, or (*changes*) for a record other than *known*. Cancel it to leave.

        With *settle*, a completed run resolves it when its charge is known, at most ``SETTLE_SECONDS`` after its end.
        """
        if self._closed:
            raise errors.ClientClosedError("this client is closed: open a new one with Flora(...)")
        loop = asyncio.get_running_loop()
        tracked = interest.tracked = self._tracked.setdefault(interest.tracked.run_id, interest.tracked)
        plan = interest.plan = tracked.add_plan(interest.plan)
        waiter = Waiter(loop=loop)
        waiter.tracked, waiter.plan, waiter.changes, waiter.context = tracked, plan, changes, interest.context
        tracked.waiters[waiter] = None
        waiter.add_done_callback(self._on_waiter_done, context=interest.context)
        waiter.settle = settle
        news = tracked.run is not None and is_change(tracked.run, known)
        if news and (changes or (tracked.settles and not settle)):
            waiter.set_result(tracked.run)
        waiter.deadline = deadline = min(deadline, tracked.settle_until) if settle else deadline
        if deadline < math.inf:
            before = min(FINAL_POLL_LEAD, (deadline - loop.time()) / 2) if plan.webhook_expected else 0.0
            self._deadlines.put(waiter, deadline - before)
        if plan.waiters == 1:
            self._schedule(tracked)
        if self._task is None or self._task.done():
            self._task = _create_task(self._run_loop(), Context())
        elif min(tracked.due, self._deadlines.next_due()) < self._wake_at:
            self._wake.set()
        return waiter

    def _schedule(self, tracked: TrackedRun) -> None:
        """Schedule the next poll of a run, unless a request in flight includes it."""
        if tracked.poll_task is None and tracked.sweep is None and self._tracked.get(tracked.run_id) is tracked:
            self._drop_ready(tracked)
            self._due.put(tracked, tracked.due)
            if tracked.due < self._wake_at:
                self._wake.set()

    def _drop_ready(self, tracked: TrackedRun) -> None:
        if tracked.ready is not None:
            tracked.ready.drop(tracked)
            tracked.ready = None

    def _untrack(self, tracked: TrackedRun) -> None:
        if self._tracked.get(tracked.run_id) is not tracked:
            return
        del self._tracked[tracked.run_id]
        self._due.drop(tracked)
        self._drop_ready(tracked)
        tracked.sweep = None
        if tracked.poll_task is not None:
            tracked.poll_task.cancel()
        if not self._tracked:
            self._wake.set()

    def _on_waiter_done(self, waiter: Waiter) -> None:
        self._deadlines.drop(waiter)
        tracked = waiter.tracked
        del tracked.waiters[waiter]
        tracked.remove_plan(waiter.plan)
        if not tracked.waiters:
            self._untrack(tracked)

    async def close(self) -> None:
        """End all waits with ClientClosedError and cancel all polls."""
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            return
        if self._loop is not running_loop():
            self._loop.call_soon_threadsafe(self._end_all)
            return
        try:
            for ended, tracked in enumerate(list(self._tracked.values())):
                if ended % RUNS_PER_STEP == RUNS_PER_STEP - 1:
                    await asyncio.sleep(0)
                self._end_closed(tracked)
        finally:  # after a cancellation too, end all waits
            ending = self._end_all()
        if ending:
            await asyncio.wait(ending)

    def _end_closed(self, tracked: TrackedRun) -> None:
        reason = f"cannot wait for {tracked.run_id}: the client was closed. The run continues at FLORA"
        self._resolve_waiters(tracked, errors.ClientClosedError(reason))

    def _end_all(self) -> list[asyncio.Task[None]]:
        for tracked in list(self._tracked.values()):
            self._end_closed(tracked)
        tasks = (self._task, self._turn_task, *(poll.task for poll in self._polls))
        ending = [task for task in tasks if task is not None and not task.done()]
        for task in ending:
            task.cancel()
        return ending

    # -- the loop

    async def _run_loop(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._tracked:
                self._wake.clear()
                now = loop.time()
                self._expire_deadlines(now)
                soonest = min(self._start_polls(now), self._deadlines.next_due())
                self._wake_at = max(now + 0.001, soonest)
                timer = loop.call_at(self._wake_at, self._wake.set) if self._wake_at < math.inf else None
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
        except BaseException as error:
            for tracked in list(self._tracked.values()):
                self._resolve_waiters(
                    tracked,
                    error
                    if isinstance(error, Exception)
                    else errors.ClientClosedError("cannot wait for runs: the event loop ended"),
                )
            raise
        finally:
            self._wake_at = math.inf
            self._sweeps.clear()
            if self._turn_task is not None:
                self._turn_task.cancel()
            self._return_turn()
            for poll in list(self._polls):
                if poll.task is not None:
                    poll.task.cancel()

    def _expire_deadlines(self, now: float) -> None:
        for _ in range(RUNS_PER_STEP):
            waiter = self._deadlines.pop(now)
            if waiter is None:
                return
            if waiter.done():
                continue
            if waiter.deadline <= now:
                waiter.set_result(waiter.tracked.run if waiter.tracked.settles else None)
            else:  # no webhook received yet: poll once more
                self._deadlines.put(waiter, waiter.deadline)
                waiter.tracked.retry_at = now
                self._schedule(waiter.tracked)

    def _start_polls(self, now: float) -> float:
        """Start the due polls that the rate limiter allows. Return the time of the next planning."""
        for _ in range(RUNS_PER_STEP):
            tracked = self._due.pop(now + SWEEP_LOOKAHEAD)
            if tracked is None:
                break
            tracked.ready = self._ready[tracked.failures > 0, tracked.poll_individually]
            tracked.ready.put(tracked, tracked.due)
        self._start_sweeps(now)
        while True:
            later, start = self._choose_poll(now)
            if start is None:
                self._return_turn()
                return min(later, self._due.next_due())
            turn = self._acquire_turn(now)
            if turn is None:
                return self._due.next_due()  # the granted turn wakes the loop
            start(turn)

    def _acquire_turn(self, now: float) -> float | None:
        """Return the time of a granted turn for one poll, or ``None``. A later turn wakes the loop."""
        turn, self._turn = self._turn, None
        if turn is not None:
            return turn
        if self._turn_task is None or self._turn_task.done():
            if self._operations.lane.try_acquire(now):
                return now
            self._turn_task = _create_task(self._await_turn(now), Context())
        return None

    async def _await_turn(self, started_at: float) -> None:
        try:
            self._turn = await self._operations.lane.acquire(started_at)
        except errors.FloraError:  # the client is closed
            return
        self._wake.set()

    def _return_turn(self) -> None:
        if self._turn is not None:
            self._operations.lane.release(self._turn, succeeded=False)
            self._turn = None

    def _choose_poll(self, now: float) -> tuple[float, Callable[[float], None] | None]:
        """Return the next poll to start, or ``None`` and the time to choose again. Pages and single runs alternate."""
        read = self._operations.read_page
        sweep = next((sweep for sweep in self._sweeps if sweep not in self._reading), None)
        later, tracked = self._choose_run(now)
        if sweep is not None and read is not None and (tracked is None or self._page_next):
            return now, partial(self._start_page_poll, read, sweep)
        return later, None if tracked is None else partial(self._start_run_poll, tracked)

    def _choose_run(self, now: float) -> tuple[float, TrackedRun | None]:
        """Return the next run to poll at its own URL, or ``None`` and the time to choose again.

        The poll may replace one that has been in flight for too long.
        """
        ready = {
            key: ReadyGroup(group.next_due(), first.failures if (first := group.first(now)) else 0)
            for key, group in self._ready.items()
        }
        oldest: float | None = None
        if len(self._polls) >= self._policy.max_concurrent:
            oldest = next((poll.started_at for poll in self._polls if poll.tracked is not None), math.inf)
        later, key = choose_group(ready, now=now, sweeping=bool(self._sweeps), oldest_poll=oldest)
        return later, None if key is None else self._ready[key].first(now)

    # -- polls

    def _start(
        self,
        how: Literal["run", "page"],
        poll: _Poll,
        send: Callable[[], Coroutine[Any, Any, None]],
        runs: list[TrackedRun],
    ) -> asyncio.Task[None]:
        for tracked in runs:
            tracked.polls += 1
        # A page serves many waits, but a task has one context: use that of the first wait.
        waiter = next(iter(runs[0].waiters), None) if runs else None
        poll.task = _create_task(
            send()
            if self.emit is None
            else _poll_with_events(self.emit, how, send, tuple(tracked.run_id for tracked in runs)),
            Context() if waiter is None else waiter.context.copy(),
        )
        self._polls[poll] = None
        poll.task.add_done_callback(partial(self._on_poll_done, poll))
        return poll.task

    def _on_poll_done(self, poll: _Poll, task: asyncio.Task[None]) -> None:
        self._polls.pop(poll, None)
        if poll.timer is not None:
            poll.timer.cancel()
        tracked, error = poll.tracked, None if task.cancelled() else task.exception()
        if poll.sweep is not None:
            self._reading.discard(poll.sweep)
            if poll.sweep in self._sweeps and (task.cancelled() or error is not None):
                self._abandon_sweep(poll.sweep)
        if tracked is not None:
            tracked.poll_task = None
            if isinstance(error, Exception):  # a bug in this package
                self._resolve_waiters(tracked, error)
            elif poll.evicted and task.cancelled():
                self._on_poll_error(
                    tracked,
                    errors.APITimeoutError("poll cancelled: no response while other runs were due", sent="maybe_sent"),
                )
            self._schedule(tracked)
        self._wake.set()

    def _start_run_poll(self, tracked: TrackedRun, turn: float) -> None:
        """Start a poll of a run at its own URL."""
        if len(self._polls) >= self._policy.max_concurrent:
            self._evict()
        self._drop_ready(tracked)
        self._page_next = True
        tracked.poll_task = self._start("run", _Poll(turn, tracked), partial(self._poll_run, tracked, turn), [tracked])

    def _evict(self) -> None:
        oldest = next((poll for poll in self._polls if poll.tracked is not None), None)
        if oldest is not None and oldest.task is not None:
            del self._polls[oldest]
            oldest.evicted = True
            oldest.task.cancel()

    async def _poll_run(self, tracked: TrackedRun, turn: float) -> None:
        try:
            result = await self._operations.retrieve_run(tracked.run_id, tracked.poll_url, turn)
        except errors.FloraError as failure:
            self._on_poll_error(tracked, failure)
            return
        now = asyncio.get_running_loop().time()
        if not tracked.age_known:
            tracked.loop_created, tracked.age_known = now - result.age, True
        if tracked.misses < MAX_PAGE_MISSES:
            tracked.poll_individually = False
        self._apply(tracked, result.run, now)

    def _on_poll_error(self, tracked: TrackedRun, failure: errors.FloraError) -> None:
        now = asyncio.get_running_loop().time()
        tracked.last_error = str(failure)
        if tracked.poll_url is not None and should_drop_poll_url(failure):
            # The poll_url may be wrong. Only an error from the run's own URL is final.
            tracked.ignore_poll_url, tracked.poll_url = True, None
            return
        if self._policy.is_fatal(failure, age=now - tracked.loop_created):
            failure.run_id = tracked.run_id
            self._resolve_waiters(tracked, failure)
            return
        if not isinstance(failure, errors.RateLimitError):  # a 429 concerns the client, not the run
            tracked.failures += 1
        tracked.retry_at = now + self._retry_delay(failure, tracked.failures)
        fields = {"run_id": tracked.run_id, "error": type(failure).__name__}
        log.info("%s: poll failed (%s), the wait continues", tracked.run_id, type(failure).__name__, extra=fields)

    def _retry_delay(self, failure: errors.FloraError, failures: int) -> float:
        return self._policy.retry_delay(self._operations.retry_policy, failure, max(1, failures))

    def _apply(self, tracked: TrackedRun, run: Run, now: float) -> None:
        """Apply a record of a run: update its state, resolve waiters, schedule the next poll."""
        before = tracked.run
        if tracked.settles and before is not None and not run.finished:
            run = before  # an outdated row of the history: the run has completed
        if not tracked.created_known:
            tracked.created, tracked.created_known = run.created.timestamp(), True
        if run.finished:
            tracked.run = run
            self._operations.on_finished(run, now - tracked.loop_created)
            if not (lacks_charge(run) and self._await_charge(tracked, run, now)):
                self._resolve_waiters(tracked, run)
                return
        self._use_poll_url(tracked, run.poll_url)
        if run.status not in _KNOWN and (before is None or before.status != run.status):
            fields = {"run_id": run.run_id, "status": run.status}
            log.warning("%s: unknown status %r, the wait continues", run.run_id, run.status, extra=fields)
        tracked.failures, tracked.last_error, tracked.retry_at = 0, None, None
        for plan in list(tracked.plans):
            self._advance_plan(tracked, plan, run, now)
        if is_change(run, before):
            tracked.run = run
            for waiter in tracked.waiters:
                if waiter.changes and not waiter.done():
                    waiter.set_result(run)
        self._schedule(tracked)

    def _await_charge(self, tracked: TrackedRun, run: Run, now: float) -> bool:
        """Resolve the waits for a completed run that need no charge. Return whether another wait needs it."""
        if not tracked.settles:
            tracked.settle_until = self._settle_until(run, now)
            for plan in tracked.plans:
                plan.restart()
        for waiter in [waiter for waiter in tracked.waiters if not waiter.done()]:
            if waiter.settle:
                waiter.deadline = min(waiter.deadline, tracked.settle_until)
                self._deadlines.put(waiter, waiter.deadline)
            else:
                waiter.set_result(run)
        return not all(waiter.done() for waiter in tracked.waiters)

    def _settle_until(self, run: Run, now: float) -> float:
        """Return the time until which the charge of a completed run is awaited."""
        passed = 0.0 if run.completed is None else max(0.0, self._operations.clock() - run.completed.timestamp())
        return now + max(MIN_SETTLE_SECONDS, SETTLE_SECONDS - passed)

    def _advance_plan(self, tracked: TrackedRun, plan: Plan, run: Run, now: float) -> None:
        """Advance a plan. If a custom schedule raises, end only the waits that share it."""
        try:
            plan.advance(now, now - tracked.loop_created, run)
        except Exception as error:
            fields = {"run_id": tracked.run_id, "error": type(error).__name__}
            log.debug("%s: the poll schedule of a wait failed", tracked.run_id, exc_info=True, extra=fields)
            tracked.plans.remove(plan)
            for waiter in tracked.waiters:
                if waiter.plan is plan and not waiter.done():
                    waiter.fail(error)

    def _resolve_waiters(self, tracked: TrackedRun, end: Run | Exception) -> None:
        """Resolve all pending waiters of a run and stop tracking it. A completed run is not lost with its charge."""
        if tracked.settles and tracked.run is not None and not isinstance(end, errors.ClientClosedError):
            end = end if isinstance(end, Run) else tracked.run
        self._untrack(tracked)
        for waiter in list(tracked.waiters):
            if waiter.done():
                continue
            if isinstance(end, Run):
                waiter.set_result(end)
            else:
                waiter.fail(copy(end) if isinstance(end, errors.FloraError) else end)

    # -- pages

    def _start_sweeps(self, now: float) -> None:
        """Start sweeps of the history if they save requests."""
        if self._operations.read_page is None or len(self._tracked) < 3 or self._sweeps:
            return
        if now < max(self._pages_resume_at, self._next_sweep):
            return
        groups = self._ready[False, False], self._ready[True, False]
        if all(group.first(now) is None for group in groups):
            return
        members = list(islice(chain(*groups), MAX_SWEEP_RUNS))
        scope = narrowest_scope(tracked.scope for tracked in members)
        if scope != self._scope:
            self._scope, self._marks = scope, []
        unix = self._operations.clock()
        pace = measured_pace(self._marks, unix)
        self._marks = valid_marks(self._marks, unix)
        known = [(tracked.created, tracked.run_id) for tracked in members if tracked.created_known]
        estimated = [(tracked.created, tracked.run_id) for tracked in members if not tracked.created_known]
        plan = plan_sweeps(known, estimated, self._marks, unix, pace=pace)
        for mark, part in plan.parts:
            self._sweeps[sweep := Sweep(part, mark)] = scope
            for _, run_id in part:
                tracked = self._tracked[run_id]
                self._drop_ready(tracked)
                tracked.sweep = sweep
        if not self._sweeps and len(members) < MAX_SWEEP_RUNS:
            self._next_sweep = now + 1e-4 * len(members)  # the check itself costs time for each run
            return
        for _, run_id in plan.distant:
            tracked = self._tracked[run_id]
            tracked.poll_individually = True
            self._schedule(tracked)

    def _start_page_poll(self, read: ReadPage, sweep: Sweep, turn: float) -> None:
        self._page_next = False
        self._reading.add(sweep)
        runs = [tracked for _, run_id in sweep.wanted if (tracked := self._tracked.get(run_id)) is not None]
        poll = _Poll(turn, sweep=sweep)
        poll.timer = asyncio.get_running_loop().call_later(PAGE_TIMEOUT, self._on_page_timeout, sweep)
        self._start("page", poll, partial(self._poll_page, read, sweep, self._sweeps[sweep], turn), runs)

    async def _poll_page(self, read: ReadPage, sweep: Sweep, scope: Scope, turn: float) -> None:
        try:
            page = await read(sweep.cursor, scope, turn)
        except errors.FloraError as failure:
            if sweep in self._sweeps:
                self._on_page_error(sweep, failure)
            return
        now = asyncio.get_running_loop().time()
        met = self._apply_page(page, now)
        if sweep not in self._sweeps:  # the sweep was abandoned, or all waits have ended
            return
        self._page_failures = 0
        rows = page.generations
        oldest = rows[-1].created.timestamp() if rows else None
        missed, distant = sweep.apply_page(met, oldest, page.next_cursor, self._operations.clock())
        if sweep.mark is not None and scope == self._scope:
            self._marks.append(sweep.mark)
        for run_id in (*missed, *distant):
            tracked = self._tracked.get(run_id)
            if tracked is not None and tracked.sweep is sweep:
                if run_id in missed:
                    self._count_page_miss(tracked)
                tracked.poll_individually, tracked.sweep = True, None
                self._schedule(tracked)
        if not sweep.wanted:
            del self._sweeps[sweep]

    def _apply_page(self, page: GenerationPage, now: float) -> set[str]:
        """Apply the rows of a page. Return the ids of the awaited runs on it."""
        met: set[str] = set()
        for row in page.generations:
            tracked = self._tracked.get(row.run_id)
            if tracked is None:
                continue
            met.add(row.run_id)
            tracked.polls += tracked.sweep is None  # found on a page of another run's sweep
            tracked.sweep = None
            if self._lacks_outputs(row):
                tracked.poll_individually, tracked.retry_at = True, now
                self._schedule(tracked)
            else:
                tracked.poll_individually, tracked.misses = False, 0
                self._apply(tracked, to_run(row), now)
        return met

    def _lacks_outputs(self, row: Generation) -> bool:
        """Return whether the row of a finished run lacks its outputs. The run is then polled at its own URL."""
        return lacks_outputs(row)

    def _count_page_miss(self, tracked: TrackedRun) -> None:
        """Count a page that should have contained the run."""
        tracked.misses += 1

    def _abandon_sweep(self, sweep: Sweep) -> None:
        """End a sweep. Its remaining runs are polled at their own URLs."""
        del self._sweeps[sweep]
        for _, run_id in sweep.wanted:
            tracked = self._tracked.get(run_id)
            if tracked is not None and tracked.sweep is sweep:
                tracked.poll_individually, tracked.sweep = True, None
                self._schedule(tracked)

    def _on_page_timeout(self, sweep: Sweep) -> None:
        if sweep in self._sweeps:
            self._on_page_error(
                sweep, errors.APITimeoutError("reading a page of the history timed out", sent="maybe_sent")
            )

    def _on_page_error(self, sweep: Sweep, failure: errors.FloraError) -> None:
        asked = failure.retry_after if isinstance(failure, errors.RateLimitError) else math.inf
        if (asked or 0.0) > self._operations.retry_policy.max_retry_after:  # otherwise the same page is read again
            self._abandon_sweep(sweep)
        self._page_failures += 1
        pause = self._retry_delay(failure, self._page_failures)
        self._pages_resume_at = asyncio.get_running_loop().time() + pause
        name = type(failure).__name__
        log.info("reading a page of the history failed (%s), runs are polled one by one", name, extra={"error": name})


def _create_task(work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
    """Create a task in a context. Works with custom task factories too."""
    return context.run(asyncio.get_running_loop().create_task, work)


async def _poll_with_events(
    emit: Emit, how: Literal["run", "page"], send: Callable[[], Coroutine[Any, Any, None]], run_ids: tuple[str, ...]
) -> None:
    """Run a poll and emit its start and finish events."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    emit(PollStarted(how=how, run_ids=run_ids))
    try:
        await send()
    finally:
        emit(PollFinished(how=how, run_ids=run_ids, seconds=loop.time() - started_at))
