"""Waiting, as users see it: for one run, for its changes, for many runs as they finish."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Self, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async._closing import Closing
from flora_async._entries import Entry, Subject, Waiter
from flora_async._pacing import PollFactory
from flora_async._waits import Wait
from flora_async._watcher import Watcher
from flora_async.models import Run

T = TypeVar("T")

OnUpdate: TypeAlias = Callable[[Run], object]
"""Called with each change of a run; what it raises ends the wait."""


class RunOutcome(Struct, frozen=True):
    """How a run ended: ``run`` if it has completed, else ``error``."""

    run_id: str
    run: Run | None
    error: errors.FloraError | None


class Ends(Generic[T]):
    """Futures that are handed out as they end, each with what it is for. Dropping them all leaves nothing behind."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.Future[T], object] = {}
        self._ended: deque[asyncio.Future[T]] = deque()
        self._bell: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._pending) + len(self._ended)

    def add(self, future: asyncio.Future[T]) -> None:
        """Wait for another one."""
        self._pending[future] = None
        future.add_done_callback(self._end)

    def _end(self, future: asyncio.Future[T]) -> None:
        if self._pending.pop(future, self) is not self and not future.cancelled():
            self._ended.append(future)
        self.ring()

    def ring(self) -> None:
        """Have the reader look again."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def next(self) -> asyncio.Future[T] | None:
        """Give the next one that has ended; ``None`` when somebody rang."""
        if not self._ended:
            self._bell = asyncio.get_running_loop().create_future()
            await self._bell
        return self._ended.popleft() if self._ended else None

    def cancel(self) -> list[asyncio.Future[T]]:
        """Cancel what has not ended, and forget the rest."""
        cancelled = list(self._pending)
        for future in (*cancelled, *self._ended):
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody's concern any more
        self._pending.clear()
        self._ended.clear()
        return cancelled

    def drop(self) -> None:
        """Cancel from wherever the garbage collector runs."""
        for future in self._ended:
            if not future.cancelled():
                future.exception()  # nobody's concern any more
        if self._pending:
            loop = next(iter(self._pending)).get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.cancel)


async def wait_for_run(
    watcher: Watcher, subject: Subject, *, poll: PollFactory | None, timeout: float | None, on_update: OnUpdate | None
) -> Run:
    """Wait for one run, and return it if it has completed."""
    run = subject.run
    if run is None or not run.finished:
        if on_update is None:
            entry = watcher.enter(subject, poll)
            waiter = watcher.wait(entry, deadline=_deadline(timeout))
            if watcher.tell is not None:
                Wait(watcher.tell, entry).follow(waiter)
            run = _in_time(await waiter, entry, timeout)
        else:
            async for run in RunWatch(watcher, [subject], poll=poll, timeout=timeout):
                on_update(run)
    elif on_update is not None:
        on_update(run)
    if run is None or not run.succeeded:
        raise errors.RunFailedError(run) if run else AssertionError("a watch ends with a run")
    return run


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else asyncio.get_running_loop().time() + timeout


def _in_time(run: Run | None, entry: Entry, timeout: float | None) -> Run:
    if run is None:
        raise errors.RunTimeoutError(entry.run_id, timeout=timeout or math.inf, run=entry.run, trouble=entry.trouble)
    return run


class _Waits(Closing):
    """Waits for any number of runs, with one deadline. Leaving them stops the looking; the runs go on at FLORA."""

    _entry: Entry
    """Of the run that was handed out last."""

    def __init__(
        self, watcher: Watcher, subjects: Iterable[Subject], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        self._watcher = watcher
        self._poll = poll
        self._timeout = timeout
        self._deadline = math.inf
        self._finished: deque[Run] = deque()
        self._unseen: deque[Subject] = deque()
        self._entries: dict[Waiter, Entry] = {}
        self._waits: dict[str, Wait] = {}
        """Those that are told, by run."""
        self._ends: Ends[Run | None] = Ends()
        self._progress: dict[str, float] = {}
        for subject in subjects:
            if subject.run is not None and subject.run.finished:
                self._finished.append(subject.run)
            else:
                self._unseen.append(subject)

    def _begin(self, *, changes: bool) -> None:
        """Start to wait; the time runs from here."""
        if self._unseen:
            self._deadline = _deadline(self._timeout)
        while self._unseen:
            self._wait(self._watcher.enter(self._unseen.popleft(), self._poll), changes=changes)

    def _wait(self, entry: Entry, *, changes: bool, known: Run | None = None) -> None:
        waiter = self._watcher.wait(entry, deadline=self._deadline, known=known, changes=changes)
        self._entries[waiter] = entry
        self._ends.add(waiter)
        if self._watcher.tell is not None:
            wait = self._waits.get(entry.run_id)
            if wait is None:
                wait = self._waits[entry.run_id] = Wait(self._watcher.tell, entry)
            wait.follow(waiter)

    async def _next(self) -> Run:
        """Give the next run that has news; raise what ended a wait instead."""
        while len(self._ends):
            waiter = await self._ends.next()
            if waiter is not None:
                self._entry = self._entries.pop(waiter)
                return _in_time(waiter.result(), self._entry, self._timeout)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop looking."""
        self._finished.clear()
        self._unseen.clear()
        self._ends.cancel()
        self._drop_waits()

    def __del__(self) -> None:
        self._ends.drop()
        self._drop_waits()

    def _drop_waits(self) -> None:
        for wait in self._waits.values():
            wait.drop()


class RunWatch(_Waits):
    """The changes of one run or many, each with the finished run as its last: iterate over it with ``async for``.

    Progress never goes backwards, and what tells nothing new is left out. A failed run is an item, not an exception.
    Leaving the loop stops the looking, when the iterator is dropped or by ``aclose()``.

    Raises:
        RunTimeoutError: the time is up; the run goes on at FLORA.
        AuthenticationError, PermissionDeniedError, BadRequestError: a run may not be looked at.
        NotFoundError: there is no such run, 10 seconds after its creation (or after the first look).
    """

    usage = "async for run in flora.watch_run(...), or await flora.wait_for_run(...) for the finished run"

    _last: Run | None = None
    """The run that was just handed out, and goes on."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Run:
        if self._finished:
            return self._finished.popleft()
        self._begin(changes=True)
        last, self._last = self._last, None
        if last is not None:
            self._wait(self._entry, changes=True, known=last)
        run = await self._next()
        self._progress[run.run_id] = highest = max(run.progress, self._progress.pop(run.run_id, 0.0))
        if run.progress < highest:
            run = replace(run, progress=highest)
        if run.finished:
            del self._progress[run.run_id]
        else:
            self._last = run
        return run


class RunOutcomes(_Waits):
    """The ends of many runs, in the order in which they come: iterate over it with ``async for``.

    No run's failure touches the others. Leaving the loop stops the looking, when the iterator is dropped or by
    ``aclose()``; the runs go on at FLORA.
    """

    usage = "async for outcome in flora.as_completed(...)"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunOutcome:
        self._begin(changes=False)
        if self._finished:
            return outcome_of(self._finished.popleft())
        try:
            return outcome_of(await self._next())
        except errors.FloraError as error:
            return RunOutcome(self._entry.run_id, None, error)


def outcome_of(run: Run) -> RunOutcome:
    """Tell how a finished run ended."""
    if run.succeeded:
        return RunOutcome(run.run_id, run, None)
    return RunOutcome(run.run_id, None, errors.RunFailedError(run))
