"""wait_for_run, watch_run and as_completed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import ClassVar, Self, TypeAlias

from msgspec.structs import replace

from flora_async import errors
from flora_async._aio import AsyncCloseable
from flora_async._outcomes import CompletedOutcome, FailedOutcome
from flora_async._polling.poller import Poller
from flora_async._polling.schedule import PollFactory
from flora_async._polling.targets import WaitTarget
from flora_async._polling.tracked_run import Interest, Waiter
from flora_async.events import Emit, WaitFinished, WaitStarted
from flora_async.models import Run

STEP = 200
"""Waits that begin or end in one step of the event loop."""

OnUpdate: TypeAlias = Callable[[Run], None]
"""Called with each change of a run; what it raises ends the wait."""


async def wait_for_run(
    watcher: Poller, subject: WaitTarget, *, poll: PollFactory | None, timeout: float | None, on_update: OnUpdate | None
) -> Run:
    """Wait for one run, and return it if it has completed."""
    run = subject.run
    if run is None or not run.finished:
        if on_update is None:
            interest = watcher.enter(subject, poll)
            wait = None if watcher.tell is None else WaitSpan(watcher.tell, interest)
            waiter = watcher.wait(interest, deadline=_deadline(timeout))
            if wait is not None:
                wait.follow(waiter)
            run = _run_or_timeout(await waiter, waiter, timeout)
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


def _run_or_timeout(run: Run | None, waiter: Waiter, timeout: float | None, last: Run | None = None) -> Run:
    if run is None:
        entry = waiter.entry
        raise errors.RunTimeoutError(
            entry.run_id, timeout=timeout or math.inf, run=entry.run or last, trouble=entry.trouble
        )
    return run


class CompletionQueue:
    """Waiters in completion order, for any number of readers. It does not refer to its iterator."""

    def __init__(self) -> None:
        self.pending: dict[Waiter, Interest] = {}
        self._ended: deque[tuple[Waiter, Interest]] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()

    def add(self, waiter: Waiter, interest: Interest) -> None:
        """Add a waiter."""
        self.pending[waiter] = interest
        waiter.add_done_callback(partial(self._end, waiter))

    def _end(self, waiter: Waiter, _done: asyncio.Future[Run | None]) -> None:
        interest = self.pending.pop(waiter, None)
        if interest is not None and not waiter.cancelled():
            self._ended.append((waiter, interest))
        self._wake(1 if self._ended else len(self._readers))

    def pop(self) -> tuple[Waiter, Interest] | None:
        """Return the next waiter that has ended, if there is one."""
        ended = self._ended.popleft() if self._ended else None
        if not self.pending and not self._ended:
            self._wake(len(self._readers))  # nothing more may come
        return ended

    async def changed(self) -> None:
        """Wait until a waiter has ended, or none is left."""
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        try:
            await reader
        except asyncio.CancelledError:
            if not reader.cancelled():
                self._wake(1)  # another one in its place
            raise

    def _wake(self, readers: int) -> None:
        while readers and self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                readers -= 1

    def clear(self) -> list[Waiter]:
        """Forget all waiters; return those that have not ended."""
        pending = list(self.pending)
        self.pending.clear()
        for waiter, _ in self._ended:
            waiter.exception()  # which nothing else will retrieve
        self._ended.clear()
        self._wake(len(self._readers))
        return pending


class _RunIterator(AsyncCloseable):
    """Waits for any number of runs, with one deadline. Leaving them stops the polling; the runs continue at FLORA."""

    _changes: ClassVar[bool]
    """Whether each change of a run is an item, not only its end."""

    def __init__(
        self, watcher: Poller, subjects: Iterable[WaitTarget], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        self._watcher = watcher
        self._poll = poll
        self._timeout = timeout
        self._deadline = math.inf
        self._finished: deque[Run] = deque()
        self._unseen: deque[WaitTarget] = deque()
        self._handed: deque[tuple[Interest, Run]] = deque()
        """Runs that were yielded, and continue: they are waited for again when the next item is asked for."""
        self._queue = CompletionQueue()
        self._waits: dict[Interest, WaitSpan] = {}
        """Those that emit events."""
        for subject in subjects:
            if subject.run is not None and subject.run.finished:
                self._finished.append(subject.run)
            else:
                self._unseen.append(subject)

    async def _next(self) -> tuple[Waiter, Interest]:
        """Return the next wait that has news, or has ended in an error."""
        while True:
            await self._begin()
            while self._handed:
                self._wait(*self._handed.popleft())
            ended = self._queue.pop()
            if ended is not None:
                return ended
            if not self._queue.pending:
                raise StopAsyncIteration
            await self._queue.changed()

    async def _begin(self) -> None:
        """Start to wait, a few runs in each step of the event loop; the time runs from here."""
        if self._unseen and self._deadline == math.inf:
            self._deadline = _deadline(self._timeout)
        for begun in count(1):
            if not self._unseen:
                return
            self._wait(self._watcher.enter(self._unseen.popleft(), self._poll))
            if begun % STEP == 0:
                await asyncio.sleep(0)

    def _wait(self, interest: Interest, known: Run | None = None) -> None:
        if self._watcher.tell is not None and interest not in self._waits:
            self._waits[interest] = WaitSpan(self._watcher.tell, interest)
        waiter = self._watcher.wait(interest, deadline=self._deadline, known=known, changes=self._changes)
        self._queue.add(waiter, interest)
        if interest in self._waits:
            self._waits[interest].follow(waiter)

    async def aclose(self) -> None:
        """Stop polling."""
        self._finished.clear()
        self._unseen.clear()
        self._handed.clear()
        waits, self._waits = self._waits, {}
        ends: deque[Callable[[], object]] = deque(waiter.cancel for waiter in self._queue.clear())
        ends.extend(wait.drop for wait in waits.values())
        try:
            while ends:
                for _ in range(min(STEP, len(ends))):
                    ends.popleft()()
                await asyncio.sleep(0)
        finally:  # cancelled: the rest ends all the same
            while ends:
                ends.popleft()()

    def __del__(self) -> None:
        # The garbage collector may run on any thread.
        for wait in self._waits.values():
            wait.drop()
        pending = self._queue.clear()
        if pending and not (loop := pending[0].get_loop()).is_closed():
            loop.call_soon_threadsafe(_cancel, pending)


def _cancel(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.cancel()


class RunWatch(_RunIterator):
    """The changes of one run or many, each with the finished run as its last: iterate over it with ``async for``.

    Progress never goes backwards, and what tells nothing new is left out. A failed run is an item, not an exception.
    Leaving the loop stops the polling, when the iterator is dropped or by ``aclose()``. Several tasks may read one
    iterator: each item reaches one of them.

    Raises:
        RunTimeoutError: the time is up; the run goes on at FLORA.
        AuthenticationError, PermissionDeniedError, BadRequestError: a run may not be polled.
        APIConnectionError: a redirect, an untrusted certificate or an oversized response, which no retry fixes.
        NotFoundError: there is no such run, 10 seconds after its creation (or after the first look).
    """

    usage = "async for run in flora.watch_run(...), or await flora.wait_for_run(...) for the finished run"

    _changes = True

    def __init__(
        self, watcher: Poller, subjects: Iterable[WaitTarget], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        super().__init__(watcher, subjects, poll=poll, timeout=timeout)
        self._seen: dict[Interest, Run] = {}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Run:
        if self._finished:
            return self._finished.popleft()
        waiter, interest = await self._next()
        before = self._seen.pop(interest, None)
        run = _run_or_timeout(waiter.result(), waiter, self._timeout, before)
        if before is not None and run.progress < before.progress:
            run = replace(run, progress=before.progress)
        if not run.finished:
            self._seen[interest] = run
            self._handed.append((interest, run))
        return run


class RunOutcomes(_RunIterator):
    """The ends of many runs, in the order in which they come: iterate over it with ``async for``.

    No run's failure touches the others. Leaving the loop stops the polling, when the iterator is dropped or by
    ``aclose()``; the runs continue at FLORA. Several tasks may read one iterator: each outcome reaches one of them.
    """

    usage = "async for outcome in flora.as_completed(...)"

    _changes = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CompletedOutcome[None] | FailedOutcome[None, str]:
        await self._begin()
        if self._finished:
            return to_outcome(self._finished.popleft())
        waiter, interest = await self._next()
        try:
            return to_outcome(_run_or_timeout(waiter.result(), waiter, self._timeout))
        except errors.FloraError as error:
            return FailedOutcome(order=None, error=error, run_id=interest.entry.run_id)


def to_outcome(run: Run) -> CompletedOutcome[None] | FailedOutcome[None, str]:
    """Return the outcome of a finished run."""
    if run.succeeded:
        return CompletedOutcome(order=None, run=run)
    return FailedOutcome(order=None, error=errors.RunFailedError(run), run_id=run.run_id)


_numbers = count(1)


class WaitSpan:
    """One wait for one run. It has a context of its own, in which its events are emitted and the run is polled."""

    def __init__(self, tell: Emit, interest: Interest) -> None:
        self._tell = tell
        self._entry = interest.entry
        self._loop = asyncio.get_running_loop()
        self._began, self._unix = self._loop.time(), time.time()
        self._looks = interest.entry.polls
        self._number = next(_numbers)
        self._over = False
        self._context = interest.context = copy_context()
        self._context.run(tell, WaitStarted(wait=self._number, run_id=interest.entry.run_id))

    def follow(self, waiter: Waiter) -> None:
        """End with *waiter*, unless it brings a change only."""
        if waiter.entry is not self._entry:  # another wait has begun to poll the run in the meantime
            self._looks += waiter.entry.polls - self._entry.polls
            self._entry = waiter.entry
        waiter.add_done_callback(self._ended, context=self._context)

    def _ended(self, waiter: Waiter) -> None:
        if waiter.cancelled():
            self._end(None, "CancelledError")
        elif (error := waiter.exception()) is not None:
            self._end(None, type(error).__name__)
        elif (run := waiter.result()) is None:
            self._end(None, "RunTimeoutError")
        elif run.finished:
            self._end(run, None)

    def drop(self) -> None:
        """End, if that has not happened: nobody comes back. From wherever the garbage collector runs."""
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, None, "CancelledError", context=self._context)

    def _end(self, run: Run | None, error: str | None) -> None:
        if self._over:
            return
        self._over = True
        lag = None
        if run is not None and run.completed is not None:
            lag = max(0.0, time.time() - max(run.completed.timestamp(), self._unix))
        self._tell(
            WaitFinished(
                wait=self._number,
                run_id=self._entry.run_id,
                status=run.status if run else None,
                error=error,
                seconds=self._loop.time() - self._began,
                polls=max(0, self._entry.polls - self._looks),
                lag=lag,
                charged_cost=run.charged_cost if run else None,
            )
        )
