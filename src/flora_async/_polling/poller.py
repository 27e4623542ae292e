"""The poller of a client: an entry for each awaited run, a future for each waiter.

A run is polled by its own address on its own schedule. Where several are due, pages of the history tell of more runs
for each request (:mod:`_sweep`). Pages only speed things up: an entry leaves on a finished record of its own run, on an
error that ends waits, or with its last waiter. So a page that has shifted, an old row or a missing one costs a request,
never a run.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from copy import copy
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async._aio import require_loop, running_loop
from flora_async._http import retry
from flora_async._http.rate_limit import Lane
from flora_async._polling import schedule
from flora_async._polling.schedule import PollFactory
from flora_async._polling.sweep import MARK_SECONDS, PACE_HALF_LIFE, Mark, Sweep, Wanted, count_worthwhile, split
from flora_async._polling.targets import PollResult, Scope, WaitTarget
from flora_async._polling.tracked_run import Agenda, Interest, Plan, TrackedRun, Waiter, is_change, to_run
from flora_async.events import Emit, PollFinished, PollStarted
from flora_async.models import Generation, GenerationPage, Run, lacks_outputs

log = logging.getLogger("flora_async")

MAX_POLLS = 64
"""Polls in flight at once."""
HANGING_SECONDS = 0.5
"""Seconds after which a poll in flight gives its place to another run's, if all places are taken."""
HANGING_PAGE_SECONDS = 1.5
"""Seconds after which a page is given up, and the runs that it was read for are polled one by one."""
EARLY_SECONDS = 1.0
"""A sweep also looks for the runs that are due within this time."""
BITE = 1000
"""Runs that are taken up in one step of the event loop."""
SWEEP_RUNS = 2000
"""Runs that the sweeps in progress look for; others are taken in where they are on the same pages."""
LAST_POLL = 5.0
"""Seconds before its deadline at which a wait that relies on a webhook polls once more: the webhook may be lost."""
MISSES = 2
"""A run that was not where it should have been in the history so often is polled by its own address from there on."""
CLOCK_SKEW = 5.0
"""Seconds by which the creation of a run that was not yet seen may be misjudged."""
MAX_FINISHED_EARLY = 100_000
"""Maximum number of run ids remembered as finished before a wait for them starts."""

_KNOWN = ("pending", "running", "completed", "failed")


ReadPage: TypeAlias = Callable[[str | None, Scope, float], Coroutine[Any, Any, GenerationPage]]
"""Reads the page of the history at a cursor, of a workspace and project. The last argument is as for ``Eyes.look``."""


class Eyes(Struct, frozen=True):
    """How runs are polled: the requests, and what binds them."""

    look: Callable[[str, str | None, float], Coroutine[Any, Any, PollResult]]
    """By id, or at a better address. The last argument is the time of the turn that the poll has."""
    page: ReadPage | None
    """``None``: the history is not read."""
    target: Callable[[str, str], str | None]
    """Where a run's ``poll_url`` may be asked."""
    lane: Lane
    """Where polls take their turns."""
    clock: Callable[[], float]
    """FLORA's time, in Unix seconds."""
    finished: Callable[[Run, float], object]
    """Called with each run that has finished, and its age."""
    tell: Emit | None = None
    """Told of each poll."""


class _Poll(Struct, eq=False):
    """A request in flight."""

    began: float
    entry: TrackedRun | None = None
    """The run that is polled, if it is one."""
    sweep: Sweep | None = None
    """The sweep that a page is read for."""
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    evicted: bool = False


class Poller:
    """Everything that one client waits for. Works in one task, while there is something to wait for."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        self.tell: Emit | None = eyes.tell
        self._entries: dict[str, TrackedRun] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._until = math.inf
        self._closed = False
        self._deadlines: Agenda[Waiter] = Agenda()
        self._due: Agenda[TrackedRun] = Agenda()
        self._ready: dict[tuple[bool, bool], Agenda[TrackedRun]] = {
            (failing, alone): Agenda() for failing in (False, True) for alone in (False, True)
        }
        """Runs that are due now or soon, by whether their last poll failed and whether only their own address helps."""
        self._looks: dict[_Poll, None] = {}
        self._turn: float | None = None
        """A turn that has come and is not used yet."""
        self._queued: asyncio.Task[None] | None = None
        self._sweeps: dict[Sweep, Scope] = {}
        """Those in progress, oldest first."""
        self._sweep_from = 0.0
        self._reading: set[Sweep] = set()
        self._scope: Scope = (None, None)
        self._marks: list[Mark] = []
        """The ends of the pages that were read last, of a scope."""
        self._pages_from = 0.0
        self._page_failures = 0
        self._alternate = False
        self._finished_early: dict[str, None] = {}

    def enter(self, subject: WaitTarget, poll: PollFactory | None) -> Interest:
        """Return a caller's interest in a run, which begins with :meth:`wait`."""
        self._loop = require_loop(self._loop)
        now = self._loop.time()
        plan = Plan(subject, poll, now)
        entry = self._entries.get(subject.run_id)
        if entry is None:
            entry = TrackedRun(subject, now)
            if subject.poll_url:
                entry.target = self._eyes.target(entry.run_id, subject.poll_url)
            if entry.run_id in self._finished_early:
                del self._finished_early[entry.run_id]
                entry.retry_at = now
                plan.restart()
        return Interest(entry, plan)

    def announce(self, run_id: str) -> None:
        """Poll a run now: FLORA has reported its end. From any thread."""
        if self._loop is None:
            self._remember_finished(run_id)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._announced, run_id)

    def _announced(self, run_id: str) -> None:
        entry = self._entries.get(run_id)
        if entry is None:
            self._remember_finished(run_id)
            return
        # A request in flight may have been answered before the end; the next poll is by the run's own address.
        entry.poll_now(asyncio.get_running_loop().time())
        entry.alone, entry.sweep = True, None
        if entry.poll is None:
            self._schedule(entry)
        else:
            entry.poll.cancel()

    def _remember_finished(self, run_id: str) -> None:
        """Remember that a run has ended before a wait for it started."""
        self._finished_early[run_id] = None
        if len(self._finished_early) > MAX_FINISHED_EARLY:
            self._finished_early.pop(next(iter(self._finished_early)), None)

    def wait(self, interest: Interest, *, deadline: float, known: Run | None = None, changes: bool = False) -> Waiter:
        """Wait for a run to finish, or (*changes*) to differ from its *known* record; cancel the future to leave."""
        if self._closed:
            raise errors.ClientClosedError("this client is closed: open a new one with Flora(...)")
        loop = asyncio.get_running_loop()
        entry = interest.entry = self._entries.setdefault(interest.entry.run_id, interest.entry)
        plan = interest.plan = entry.join(interest.plan)
        waiter = Waiter(loop=loop)
        waiter.entry, waiter.plan, waiter.changes, waiter.context = entry, plan, changes, interest.context
        entry.waiters[waiter] = None
        waiter.add_done_callback(partial(self._left, waiter), context=interest.context)
        if changes and entry.run is not None and is_change(entry.run, known):
            waiter.set_result(entry.run)
        waiter.deadline = deadline
        if deadline < math.inf:
            before = min(LAST_POLL, (deadline - loop.time()) / 2) if plan.told else 0.0
            self._deadlines.put(waiter, deadline - before)
        if plan.waiters == 1:
            self._schedule(entry)
        if self._task is None or self._task.done():
            self._task = _create_task(self._watch(), Context())
        elif min(entry.due, self._deadlines.next_due()) < self._until:
            self._wake.set()
        return waiter

    def _schedule(self, entry: TrackedRun) -> None:
        """Poll a run when it is due next, if nothing in flight will tell of it."""
        if entry.poll is None and entry.sweep is None and self._entries.get(entry.run_id) is entry:
            self._unready(entry)
            self._due.put(entry, entry.due)
            if entry.due < self._until:
                self._wake.set()

    def _unready(self, entry: TrackedRun) -> None:
        for group in self._ready.values():
            group.drop(entry)

    def _leave(self, entry: TrackedRun) -> None:
        if self._entries.get(entry.run_id) is not entry:
            return
        del self._entries[entry.run_id]
        self._due.drop(entry)
        self._unready(entry)
        entry.sweep = None
        if entry.poll is not None:
            entry.poll.cancel()
        if not self._entries:
            self._wake.set()

    def _left(self, waiter: Waiter, _done: asyncio.Future[Run | None]) -> None:
        self._deadlines.drop(waiter)
        entry = waiter.entry
        del entry.waiters[waiter]
        entry.part(waiter.plan)
        if not entry.waiters:
            self._leave(entry)

    async def close(self) -> None:
        """End every wait, at once."""
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            return
        if self._loop is not running_loop():
            self._loop.call_soon_threadsafe(self._end_all)
            return
        ending = self._end_all()
        if ending:
            await asyncio.wait(ending)

    def _end_all(self) -> list[asyncio.Task[None]]:
        for entry in list(self._entries.values()):
            self._settle(entry, errors.ClientClosedError(f"the client was closed; {entry.run_id} goes on at FLORA"))
        tasks = (self._task, self._queued, *(look.task for look in self._looks))
        ending = [task for task in tasks if task is not None and not task.done()]
        for task in ending:
            task.cancel()
        return ending

    # -- the loop

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._entries:
                self._wake.clear()
                now = loop.time()
                self._expire_deadlines(now)
                soonest = min(self._start_polls(now), self._deadlines.next_due())
                self._until = max(now + 0.001, soonest)
                timer = loop.call_at(self._until, self._wake.set) if self._until < math.inf else None
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
        except BaseException as error:
            for entry in list(self._entries.values()):
                self._settle(
                    entry, error if isinstance(error, Exception) else errors.ClientClosedError("the loop ended")
                )
            raise
        finally:
            self._until = math.inf
            self._sweeps.clear()
            if self._queued is not None:
                self._queued.cancel()
            self._return_turn()
            for look in list(self._looks):
                if look.task is not None:
                    look.task.cancel()

    def _expire_deadlines(self, now: float) -> None:
        while (waiter := self._deadlines.pop(now)) is not None:
            if waiter.done():
                continue
            if waiter.deadline <= now:
                waiter.set_result(None)
            else:  # the webhook has not come yet
                self._deadlines.put(waiter, waiter.deadline)
                waiter.entry.retry_at = now
                self._schedule(waiter.entry)

    def _start_polls(self, now: float) -> float:
        """Start the polls that are due, as many as may go out; return when to plan again."""
        for _ in range(BITE):
            entry = self._due.pop(now + EARLY_SECONDS)
            if entry is None:
                break
            self._ready[entry.failures > 0, entry.alone].put(entry, entry.due)
        self._begin_sweep(now)
        while True:
            later, start = self._choose(now)
            if start is None:
                self._return_turn()
                return min(later, self._due.next_due())
            turn = self._take_turn(now)
            if turn is None:
                return self._due.next_due()  # the turn wakes the loop
            start(turn)

    def _take_turn(self, now: float) -> float | None:
        """Return the time of a turn for one poll; ``None``: it is still to come, and wakes the loop then."""
        turn, self._turn = self._turn, None
        if turn is not None:
            return turn
        if self._queued is None or self._queued.done():
            if self._eyes.lane.enter(now):
                return now
            self._queued = _create_task(self._await_turn(now), Context())
        return None

    async def _await_turn(self, began: float) -> None:
        try:
            self._turn = await self._eyes.lane.turn(began)
        except errors.FloraError:  # closed
            return
        self._wake.set()

    def _return_turn(self) -> None:
        if self._turn is not None:
            self._eyes.lane.leave(self._turn, answered=False)
            self._turn = None

    def _choose(self, now: float) -> tuple[float, Callable[[float], None] | None]:
        """Return what to start next, and if that is nothing, when to ask again: pages and single runs by turns."""
        read = self._eyes.page
        sweep = next((sweep for sweep in self._sweeps if sweep not in self._reading), None)
        later, entry = self._choose_run(now)
        if sweep is not None and read is not None and (entry is None or self._alternate):
            return now, partial(self._read_page, read, sweep)
        return later, None if entry is None else partial(self._look_at, entry)

    def _choose_run(self, now: float) -> tuple[float, TrackedRun | None]:
        """Return the run to poll next by its own address; it may take the place of a poll that hangs."""
        later = math.inf
        for failing in (False, True):
            alone, any_way = self._ready[failing, True], self._ready[failing, False]
            group = alone if self._sweeps or alone.next_due() <= any_way.next_due() else any_way
            entry = group.first(now)
            if entry is None:
                later = min(later, group.next_due())
            elif len(self._looks) < MAX_POLLS:
                return now, entry
            else:
                oldest = next((look.began for look in self._looks if look.entry is not None), math.inf)
                frees = oldest + HANGING_SECONDS * 2 ** min(entry.failures, 10)
                if frees <= now:
                    return now, entry
                later = min(later, frees)
        return later, None

    # -- polls

    def _start(
        self,
        how: Literal["run", "page"],
        poll: _Poll,
        look: Callable[[], Coroutine[Any, Any, None]],
        entries: list[TrackedRun],
    ) -> asyncio.Task[None]:
        for entry in entries:
            entry.polls += 1
        # A page serves many waits, and can be part of one: of the first.
        waiter = next(iter(entries[0].waiters), None) if entries else None
        poll.task = _create_task(
            look() if self.tell is None else _told(self.tell, how, look, tuple(entry.run_id for entry in entries)),
            Context() if waiter is None else waiter.context.copy(),
        )
        self._looks[poll] = None
        poll.task.add_done_callback(partial(self._on_poll_done, poll))
        return poll.task

    def _on_poll_done(self, poll: _Poll, task: asyncio.Task[None]) -> None:
        self._looks.pop(poll, None)
        if poll.timer is not None:
            poll.timer.cancel()
        entry, error = poll.entry, None if task.cancelled() else task.exception()
        if poll.sweep is not None:
            self._reading.discard(poll.sweep)
            if poll.sweep in self._sweeps and (task.cancelled() or error is not None):
                self._give_up(poll.sweep)
        if entry is not None:
            entry.poll = None
            if isinstance(error, Exception):  # a fault of ours
                self._settle(entry, error)
            elif poll.evicted and task.cancelled():
                self._failed(entry, errors.APITimeoutError("no answer while other runs waited", sent="maybe_sent"))
            self._schedule(entry)
        self._wake.set()

    def _look_at(self, entry: TrackedRun, turn: float) -> None:
        """Poll a run by its own address."""
        if len(self._looks) >= MAX_POLLS:
            self._evict()
        self._unready(entry)
        self._alternate = True
        entry.poll = self._start("run", _Poll(turn, entry), partial(self._look, entry, turn), [entry])

    def _evict(self) -> None:
        oldest = next((look for look in self._looks if look.entry is not None), None)
        if oldest is not None and oldest.task is not None:
            del self._looks[oldest]
            oldest.evicted = True
            oldest.task.cancel()

    async def _look(self, entry: TrackedRun, turn: float) -> None:
        try:
            look = await self._eyes.look(entry.run_id, entry.target, turn)
        except errors.FloraError as failure:
            self._failed(entry, failure)
            return
        now = asyncio.get_running_loop().time()
        if not entry.known_age:
            entry.born, entry.known_age = now - look.age, True
        if entry.misses < MISSES:
            entry.alone = False
        self._seen(entry, look.run, now)

    def _failed(self, entry: TrackedRun, failure: errors.FloraError) -> None:
        now = asyncio.get_running_loop().time()
        entry.trouble = str(failure)
        if entry.target is not None and schedule.should_drop_poll_url(failure):
            # The run's own address decides; until it has spoken nothing is final.
            entry.direct, entry.target = True, None
            return
        if schedule.is_fatal(failure, age=now - entry.born):
            failure.run_id = entry.run_id
            self._settle(entry, failure)
            return
        if not isinstance(failure, errors.RateLimitError):  # which is about the client, not about the run
            entry.failures += 1
        entry.retry_at = now + schedule.poll_retry_delay(failure, max(1, entry.failures))
        said = {"run_id": entry.run_id, "error": type(failure).__name__}
        log.info("%s: a look failed (%s), waiting goes on", entry.run_id, type(failure).__name__, extra=said)

    def _seen(self, entry: TrackedRun, run: Run, now: float) -> None:
        """Take in a record of a run, whichever way it came."""
        before = entry.run
        entry.created, entry.exact = run.created.timestamp(), True
        if run.finished:
            entry.run = run
            self._eyes.finished(run, now - entry.born)
            self._settle(entry, run)
            return
        if run.poll_url and not entry.direct:
            entry.target = self._eyes.target(entry.run_id, run.poll_url)
        if run.status not in _KNOWN and (before is None or before.status != run.status):
            said = {"run_id": run.run_id, "status": run.status}
            log.warning("%s: unknown status %r, waiting goes on", run.run_id, run.status, extra=said)
        entry.failures, entry.trouble, entry.retry_at = 0, None, None
        for plan in list(entry.plans):
            self._advance(entry, plan, run, now)
        if is_change(run, before):
            entry.run = run
            for waiter in entry.waiters:
                if waiter.changes and not waiter.done():
                    waiter.set_result(run)
        self._schedule(entry)

    def _advance(self, entry: TrackedRun, plan: Plan, run: Run, now: float) -> None:
        """Schedule the next poll; a caller's schedule that fails ends the waits that share it, and no other."""
        try:
            plan.advance(now, now - entry.born, run)
        except Exception as error:
            said = {"run_id": entry.run_id, "error": type(error).__name__}
            log.debug("%s: the poll schedule of a wait failed", entry.run_id, exc_info=True, extra=said)
            entry.plans.remove(plan)
            for waiter in entry.waiters:
                if waiter.plan is plan and not waiter.done():
                    waiter.set_exception(error)

    def _settle(self, entry: TrackedRun, end: Run | Exception) -> None:
        """Give every waiter its end, once."""
        self._leave(entry)
        for waiter in list(entry.waiters):
            if waiter.done():
                continue
            if isinstance(end, Run):
                waiter.set_result(end)
            else:
                waiter.set_exception(copy(end) if isinstance(end, errors.FloraError) else end)

    # -- pages

    def _begin_sweep(self, now: float) -> None:
        """Begin to read the history, if that saves requests."""
        if self._eyes.page is None or len(self._entries) < 3 or self._sweeps:
            return
        if now < max(self._pages_from, self._sweep_from):
            return
        groups = self._ready[False, False], self._ready[True, False]
        if all(group.first(now) is None for group in groups):
            return
        members = list(islice(chain(*groups), SWEEP_RUNS))
        scope = _scope_of(members)
        if scope != self._scope:
            self._scope, self._marks = scope, []
        unix, last = self._eyes.clock(), self._marks[-1] if self._marks else None
        pace = (
            0.0
            if last is None
            else last.page / max(0.1, unix - last.created) * 0.5 ** ((unix - last.at) / PACE_HALF_LIFE)
        )
        self._marks = [mark for mark in self._marks if mark.at > unix - MARK_SECONDS] or self._marks[-1:]
        marks = sorted(self._marks, key=attrgetter("created"), reverse=True)
        wanted = [(entry.created, entry.run_id) for entry in members if entry.exact]
        unsure = [(entry.created - CLOCK_SKEW, entry.run_id) for entry in members if not entry.exact]
        distant: list[Wanted] = []
        for mark, part in split(wanted, unsure, marks):
            count = count_worthwhile([unix - created for created, _ in part], pace, mark.page if mark else 0)
            distant.extend(part[count:])
            if count:
                self._sweeps[sweep := Sweep(part[:count], mark)] = scope
                for _, run_id in sweep.wanted:
                    entry = self._entries[run_id]
                    self._unready(entry)
                    entry.sweep = sweep
        if not self._sweeps and len(members) < SWEEP_RUNS:
            self._sweep_from = now + 1e-4 * len(members)  # the weighing itself costs by the run
            return
        for _, run_id in distant:
            entry = self._entries[run_id]
            entry.alone = True
            self._schedule(entry)

    def _read_page(self, read: ReadPage, sweep: Sweep, turn: float) -> None:
        self._alternate = False
        self._reading.add(sweep)
        entries = [entry for _, run_id in sweep.wanted if (entry := self._entries.get(run_id)) is not None]
        poll = _Poll(turn, sweep=sweep)
        poll.timer = asyncio.get_running_loop().call_later(HANGING_PAGE_SECONDS, self._page_hangs, sweep)
        self._start("page", poll, partial(self._page, read, sweep, self._sweeps[sweep], turn), entries)

    async def _page(self, read: ReadPage, sweep: Sweep, scope: Scope, turn: float) -> None:
        try:
            page = await read(sweep.cursor, scope, turn)
        except errors.FloraError as failure:
            if sweep in self._sweeps:
                self._on_page_error(sweep, failure)
            return
        now = asyncio.get_running_loop().time()
        met = self._meet(page, now)
        if sweep not in self._sweeps:  # it was given up, or everything has ended
            return
        self._page_failures = 0
        rows = page.generations
        oldest = rows[-1].created.timestamp() if rows else None
        missed, distant = sweep.take(met, oldest, page.next_cursor, self._eyes.clock())
        if sweep.mark is not None and scope == self._scope:
            self._marks.append(sweep.mark)
        for run_id in (*missed, *distant):
            entry = self._entries.get(run_id)
            if entry is not None and entry.sweep is sweep:
                if run_id in missed:
                    self._on_missing_from_page(entry)
                entry.alone, entry.sweep = True, None
                self._schedule(entry)
        if not sweep.wanted:
            del self._sweeps[sweep]

    def _meet(self, page: GenerationPage, now: float) -> set[str]:
        """Take in the rows of a page; return the awaited runs on it."""
        met: set[str] = set()
        for row in page.generations:
            entry = self._entries.get(row.run_id)
            if entry is None:
                continue
            met.add(row.run_id)
            entry.polls += entry.sweep is None  # it came along
            entry.sweep = None
            if self._lacks_outputs(row):
                entry.alone, entry.retry_at = True, now
                self._schedule(entry)
            else:
                entry.alone, entry.misses = False, 0
                self._seen(entry, to_run(row), now)
        return met

    def _lacks_outputs(self, row: Generation) -> bool:
        """Return whether a row does not tell the end of a finished run: then its own address is asked."""
        return lacks_outputs(row)

    def _on_missing_from_page(self, entry: TrackedRun) -> None:
        """Count that a run was not on the page where it should have been."""
        entry.misses += 1

    def _give_up(self, sweep: Sweep) -> None:
        """End a sweep: the runs that it still looks for are polled by their own addresses."""
        del self._sweeps[sweep]
        for _, run_id in sweep.wanted:
            entry = self._entries.get(run_id)
            if entry is not None and entry.sweep is sweep:
                entry.alone, entry.sweep = True, None
                self._schedule(entry)

    def _page_hangs(self, sweep: Sweep) -> None:
        if sweep in self._sweeps:
            self._on_page_error(sweep, errors.APITimeoutError("no page in time", sent="maybe_sent"))

    def _on_page_error(self, sweep: Sweep, failure: errors.FloraError) -> None:
        asked = failure.retry_after if isinstance(failure, errors.RateLimitError) else math.inf
        if (asked or 0.0) > retry.RETRY_AFTER_CAP:  # else the same page is read again in its turn
            self._give_up(sweep)
        self._page_failures += 1
        pause = schedule.poll_retry_delay(failure, self._page_failures)
        self._pages_from = asyncio.get_running_loop().time() + pause
        name = type(failure).__name__
        log.info("a page of the history failed (%s), runs are asked one by one", name, extra={"error": name})


def _scope_of(entries: Iterable[TrackedRun]) -> Scope:
    """Return the smallest part of the history that holds all the runs."""
    workspaces = {entry.scope[0] for entry in entries}
    projects = {entry.scope[1] for entry in entries}
    return (
        next(iter(workspaces)) if len(workspaces) == 1 else None,
        next(iter(projects)) if len(projects) == 1 else None,
    )


def _create_task(work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
    """Create a task in a context, whichever task factory the loop has."""
    return context.run(asyncio.get_running_loop().create_task, work)


async def _told(
    tell: Emit, how: Literal["run", "page"], look: Callable[[], Coroutine[Any, Any, None]], run_ids: tuple[str, ...]
) -> None:
    """Emit the events of a poll as it begins and ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    tell(PollStarted(how=how, run_ids=run_ids))
    try:
        await look()
    finally:
        tell(PollFinished(how=how, run_ids=run_ids, seconds=loop.time() - began))
