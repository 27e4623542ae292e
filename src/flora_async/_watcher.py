"""One watcher for every run of a client that somebody waits for: an entry for each run, a future for each waiter.

Alone, a run is looked at by its own address on its own schedule. Where several are due, pages of the history settle
more for each request. Pages only speed things up: an entry leaves on a finished record of its own run, on an error
that ends waits, or with its last waiter. So a page that has shifted, an old row or a missing one cost a request, never
a run.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from copy import copy
from functools import partial
from itertools import count
from typing import Any, Literal

from msgspec import Struct

from flora_async import _pacing, errors
from flora_async._arguments import bind_loop
from flora_async._entries import Entry, Look, Scope, Subject, Waiter, as_run, is_news
from flora_async._events import LookBegan, LookEnded, Tell
from flora_async._pacing import PollFactory
from flora_async._places import Places
from flora_async.models import Generation, GenerationPage, Run

log = logging.getLogger("flora_async")

LOOKS_IN_FLIGHT = 16
EARLY = 0.25
"""A run that is due within this share of its gap comes along on a page that is read for others."""
MISSES = 2
"""A run that was not on its page so often is looked at by its own address from there on."""
CLOCK_SKEW = 5.0
"""Seconds by which the creation of a run that was not yet seen may be misjudged."""

HEARD = 100_000
"""Of how many runs that nobody waits for is it known that they have ended."""

_KNOWN = ("pending", "running", "completed", "failed")


class Eyes(Struct, frozen=True):
    """How runs are looked at: the requests, and what binds them."""

    look: Callable[[str, str | None], Coroutine[Any, Any, Look]]
    """By id, or at a better address."""
    page: Callable[[str | None, Scope], Coroutine[Any, Any, GenerationPage]] | None
    """The page of the history at a cursor, of a workspace and project; ``None``: the history is not read."""
    target: Callable[[str, str], str | None]
    """Where a run's ``poll_url`` may be asked."""
    vacancies: Callable[[float], int]
    """How many looks are worth beginning at that time, beside those that wait for their turns."""
    finished: Callable[[Run, float], object]
    """Told of each run that has finished, and how old it was."""
    tell: Tell | None = None
    """Told of each look."""


class Watcher:
    """Everything that one client waits for. Works in one task, while there is something to wait for."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        self.tell: Tell | None = eyes.tell
        self._entries: dict[str, Entry] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._until = math.inf
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._numbers = count()
        self._closed = False
        self._scopes: Counter[Scope] = Counter()
        self._scope: Scope = (None, None)
        self._places = Places()
        self._pages_under_way: set[int] = set()
        self._pages_from = 0.0
        self._page_failures = 0
        self._heard: dict[str, None] = {}

    def enter(self, subject: Subject, poll: PollFactory | None) -> Entry:
        """Give the entry of a run: the one that others wait on, or one of its own."""
        self._loop = bind_loop(self._loop)
        entry = self._entries.get(subject.run_id)
        if entry is None:
            entry = Entry(subject, poll, self._loop.time())
            if subject.poll_url:
                entry.target = self._eyes.target(entry.run_id, subject.poll_url)
            if entry.run_id in self._heard:
                del self._heard[entry.run_id]
                entry.hurry(self._loop.time())
        return entry

    def announce(self, run_id: str) -> None:
        """Look at a run now: somebody says that it has ended. From any thread."""
        if self._loop is None:
            self._hear(run_id)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._announced, run_id)

    def _announced(self, run_id: str) -> None:
        loop = asyncio.get_running_loop()
        entry = self._entries.get(run_id)
        if entry is None:
            self._hear(run_id)
        elif entry.busy:  # by a look that may have left before the end
            loop.call_later(_pacing.POLL_FLOOR, self._announced, run_id)
        else:
            entry.hurry(loop.time())
            self._wake.set()

    def _hear(self, run_id: str) -> None:
        """Remember that a run has ended that nobody waits for yet."""
        self._heard[run_id] = None
        if len(self._heard) > HEARD:
            self._heard.pop(next(iter(self._heard)), None)

    def wait(self, entry: Entry, *, deadline: float, known: Run | None = None, changes: bool = False) -> Waiter:
        """Wait for a run to finish, or (*changes*) to differ from its *known* record; cancel the future to leave."""
        if self._closed:
            raise errors.ClientClosedError("this client is closed: open a new one with Flora(...)")
        loop = asyncio.get_running_loop()
        entry = self._entries.setdefault(entry.run_id, entry)
        if not entry.waiters:
            self._add(entry)
        waiter: Waiter = loop.create_future()
        entry.waiters[waiter] = changes
        waiter.add_done_callback(partial(self._left, entry))
        if changes and entry.run is not None and is_news(entry.run, known):
            waiter.set_result(entry.run)
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), waiter))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._watch())
        elif min(entry.due, deadline) < self._until:
            self._wake.set()
        return waiter

    def _add(self, entry: Entry) -> None:
        self._scopes[entry.scope] += 1
        if entry.run is None:
            self._places.enter(entry.created)

    def _leave(self, entry: Entry) -> None:
        if self._entries.get(entry.run_id) is not entry:
            return
        del self._entries[entry.run_id]
        self._scopes[entry.scope] -= 1
        if not self._scopes[entry.scope]:
            del self._scopes[entry.scope]
        if entry.look is not None:
            entry.look.cancel()
        if not self._entries:
            self._wake.set()

    def _left(self, entry: Entry, waiter: Waiter) -> None:
        entry.waiters.pop(waiter, None)
        if not entry.waiters:
            self._leave(entry)

    async def close(self) -> None:
        """End every wait."""
        self._closed = True
        if self._loop is not asyncio.get_running_loop():
            return  # nobody waits, or only on a loop that is gone
        for entry in list(self._entries.values()):
            self._settle(entry, errors.ClientClosedError(f"the client was closed; {entry.run_id} goes on at FLORA"))
        ending = [task for task in (self._task, *self._looks) if task is not None and not task.done()]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    # -- the loop

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._entries:
                self._wake.clear()
                now = loop.time()
                self._expire(now)
                self._until = max(
                    now + 0.001, min(self._launch(now), self._deadlines[0][0] if self._deadlines else math.inf)
                )
                timer = loop.call_at(self._until, self._wake.set) if self._until < math.inf else None
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
                # Planning costs by the run: with very many, it is done in larger bites.
                if len(self._entries) > 1000:
                    await asyncio.sleep(1e-5 * len(self._entries))
        except BaseException as error:
            for entry in list(self._entries.values()):
                self._settle(
                    entry, error if isinstance(error, Exception) else errors.ClientClosedError("the loop ended")
                )
            raise
        for look in self._looks:
            look.cancel()
        self._deadlines.clear()
        self._forget_pages()

    def _expire(self, now: float) -> None:
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][2].done()):
            _, _, waiter = heapq.heappop(deadlines)
            if not waiter.done():
                waiter.set_result(None)
        if len(deadlines) > 2 * len(self._entries) + 100:  # most belong to waits that are over
            self._deadlines = [deadline for deadline in deadlines if not deadline[2].done()]
            heapq.heapify(self._deadlines)

    def _launch(self, now: float) -> float:
        """Start the looks that are worth most, as many as may go out; say when to plan again."""
        soonest = math.inf
        ready: list[Entry] = []
        overdue = False
        for entry in self._entries.values():
            if entry.busy:
                continue
            if entry.due <= now:
                overdue = True
                ready.append(entry)
            else:
                soonest = min(soonest, entry.due)
                if entry.due <= now + EARLY * entry.gap:
                    ready.append(entry)
        if not overdue:
            return soonest
        vacancies = min(LOOKS_IN_FLIGHT - len(self._looks), self._eyes.vacancies(now))
        for start in self._plan(ready, now):
            if vacancies <= 0:
                return math.inf  # the end of a look wakes the loop
            vacancies -= 1
            start()
        return soonest

    def _plan(self, ready: Iterable[Entry], now: float) -> list[Callable[[], None]]:
        """Say what to look at, most valuable first: a page is worth what its due runs are, each by how late it is."""
        pages: dict[int, list[Entry]] = {}
        alone: list[Entry] = []
        readable = self._eyes.page is not None and len(self._entries) > 2 and now >= self._pages_from
        if readable:
            self._enter_scope()
        last = self._places.last
        beyond = 0
        for entry in ready:
            number = None if entry.alone or not readable else self._places.page_of(entry.created, entry.floor)
            if number is None:
                alone.append(entry)
            else:
                beyond += max(0, number - last)
                pages.setdefault(min(number, last), []).append(entry)
        options: list[tuple[float, int, Callable[[], None]]] = []
        for number, members in pages.items():
            due = [entry for entry in members if entry.due <= now]
            if len(members) < 2 or not due:
                alone.extend(due)
            elif number not in self._pages_under_way:
                value = sum(entry.lateness(now) for entry in members)
                if number == last:
                    value /= 1 + beyond / len(members)  # most of them are further on
                options.append((value, next(self._numbers), partial(self._read_page, number, members)))
        options.extend(
            (entry.lateness(now), next(self._numbers), partial(self._look_at, entry))
            for entry in alone
            if entry.due <= now
        )
        return [start for _, _, start in heapq.nlargest(LOOKS_IN_FLIGHT + 1, options)]

    def _enter_scope(self) -> None:
        """Read as little of the history as holds all that is waited for."""
        workspaces = {workspace for workspace, _ in self._scopes}
        projects = {project for _, project in self._scopes}
        scope: Scope = (
            next(iter(workspaces)) if len(workspaces) == 1 else None,
            next(iter(projects)) if len(projects) == 1 else None,
        )
        if scope != self._scope:
            self._scope = scope
            self._forget_pages()

    def _forget_pages(self) -> None:
        self._places.forget()
        for entry in self._entries.values():
            entry.floor = 0

    # -- looks

    def _start(
        self, how: Literal["run", "page"], look: Callable[[], Coroutine[Any, Any, None]], entries: list[Entry]
    ) -> asyncio.Task[None]:
        for entry in entries:
            entry.busy = True
            entry.looks += 1
        task = asyncio.get_running_loop().create_task(
            look() if self.tell is None else _told(self.tell, how, look, tuple(entry.run_id for entry in entries)),
            # A page serves many waits, and can be part of one: of the first.
            context=entries[0].context.copy(),
        )
        self._looks.add(task)
        task.add_done_callback(partial(self._looked, entries))
        return task

    def _looked(self, entries: list[Entry], task: asyncio.Task[None]) -> None:
        self._looks.discard(task)
        error = None if task.cancelled() else task.exception()
        for entry in entries:
            entry.busy = False
            entry.look = None
            if isinstance(error, Exception):  # a fault of ours, or of a caller's schedule
                self._settle(entry, error)
        self._wake.set()

    def _look_at(self, entry: Entry) -> None:
        entry.look = self._start("run", partial(self._look, entry), [entry])

    async def _look(self, entry: Entry) -> None:
        try:
            look = await self._eyes.look(entry.run_id, entry.target)
        except errors.FloraError as failure:
            self._failed(entry, failure)
            return
        now = asyncio.get_running_loop().time()
        if not entry.known_age:
            entry.born, entry.known_age = now - look.age, True
        if entry.misses < MISSES:
            entry.alone = False
        self._seen(entry, look.run, now)

    def _failed(self, entry: Entry, failure: errors.FloraError) -> None:
        now = asyncio.get_running_loop().time()
        entry.trouble = str(failure)
        if entry.target is not None and _pacing.blames_address(failure):
            # The run's own address decides; until it has spoken nothing is final.
            entry.direct, entry.target = True, None
            return
        if _pacing.ends_wait(failure, age=now - entry.born):
            failure.run_id = entry.run_id
            self._settle(entry, failure)
            return
        entry.failures += 1
        pause = _pacing.pause_after_failed_look(failure, entry.failures)
        entry.due = now + pause
        said = {"run_id": entry.run_id, "error": type(failure).__name__}
        log.info("%s: a look failed (%s), waiting goes on", entry.run_id, type(failure).__name__, extra=said)

    def _seen(self, entry: Entry, run: Run, now: float) -> None:
        """Take in a record of a run, whichever way it came."""
        before = entry.run
        entry.failures, entry.trouble, entry.floor = 0, None, 0
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
        entry.plan(now, run)
        if is_news(run, before):
            entry.run = run
            for waiter, changes in entry.waiters.items():
                if changes and not waiter.done():
                    waiter.set_result(run)

    def _settle(self, entry: Entry, end: Run | Exception) -> None:
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

    def _read_page(self, number: int, members: list[Entry]) -> None:
        self._pages_under_way.add(number)
        page = partial(self._page, number, self._places.cursors[number], self._scope, members)
        self._start("page", page, members)

    async def _page(self, number: int, cursor: str | None, scope: Scope, members: list[Entry]) -> None:
        read: Callable[[str | None, Scope], Awaitable[GenerationPage]] | None = self._eyes.page
        if read is None:
            return
        try:
            page = await read(cursor, scope)
        except errors.FloraError as failure:
            self._page_failed(failure, cursor)
            return
        finally:
            self._pages_under_way.discard(number)
        self._page_failures = 0
        now = asyncio.get_running_loop().time()
        for row in page.generations:
            entry = self._entries.get(row.run_id)
            if entry is not None and not (row.finished and self._incomplete(entry, row, now)):
                entry.alone, entry.misses = False, 0
                entry.looks += not entry.busy  # it came along
                self._seen(entry, as_run(row), now)
        cursors = self._places.cursors
        if scope == self._scope and number < len(cursors) and cursors[number] == cursor:
            self._places.note(number, page)
        missed = [entry for entry in members if self._entries.get(entry.run_id) is entry and entry.seen_at < now]
        fruitful = len(members) - len(missed) >= 2
        for entry in missed:
            self._missed(entry, number, page, fruitful=fruitful)

    def _incomplete(self, entry: Entry, row: Generation, now: float) -> bool:
        """Say whether a finished row lacks what a finished run has: then its own address is asked."""
        if row.outputs or (row.status == "failed" and row.error_code):
            return False
        entry.alone, entry.due, entry.seen_at = True, now, now
        return True

    def _missed(self, entry: Entry, number: int, page: GenerationPage, *, fruitful: bool) -> None:
        """Decide about a run that was not on the page where it was thought to be."""
        rows = page.generations
        slack = 0.0 if entry.exact else CLOCK_SKEW
        if rows and page.next_cursor is not None:
            # Runs of one moment share their time stamp; they may stand on the next page as well.
            older = entry.created <= rows[-1].created.timestamp() + slack
            if older or (fruitful and not entry.exact):
                entry.floor = number + 1
                return
        entry.misses += 1
        newer = bool(rows) and number > 0 and entry.created > rows[0].created.timestamp() + slack
        # Thought too far down, it is looked for again with what this page has told; else it is not where it should be.
        entry.alone = not newer or entry.misses >= MISSES

    def _page_failed(self, failure: errors.FloraError, cursor: str | None) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(failure, errors.BadRequestError) and cursor is not None:
            self._forget_pages()
            return
        self._page_failures += 1
        pause = _pacing.pause_after_failed_look(failure, self._page_failures)
        self._pages_from = now + pause
        name = type(failure).__name__
        log.info("a page of the history failed (%s), runs are asked one by one", name, extra={"error": name})


async def _told(
    tell: Tell, how: Literal["run", "page"], look: Callable[[], Coroutine[Any, Any, None]], run_ids: tuple[str, ...]
) -> None:
    """Tell of a look as it begins and ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    tell(LookBegan(how=how, run_ids=run_ids))
    try:
        await look()
    finally:
        tell(LookEnded(how=how, run_ids=run_ids, seconds=loop.time() - began))
