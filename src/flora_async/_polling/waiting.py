"""Wait for runs: wait_for_run, watch_run and as_completed."""

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
from flora_async._aio import AsyncCloseable, require_loop
from flora_async._outcomes import CompletedOutcome, FailedOutcome
from flora_async._polling.poller import Poller
from flora_async._polling.schedule import PollFactory
from flora_async._polling.targets import WaitTarget
from flora_async._polling.tracked_run import Interest, Waiter
from flora_async.events import Emit, WaitFinished, WaitStarted
from flora_async.models import Run, lacks_charge

WAITS_PER_STEP = 200
"""Maximum number of waits that start or end in one step of the event loop."""

OnUpdate: TypeAlias = Callable[[Run], None]
"""Called with each change of a run. An exception from it ends the wait."""


async def wait_for_run(
    poller: Poller,
    target: WaitTarget,
    *,
    poll: PollFactory | None,
    timeout: float | None,
    on_update: OnUpdate | None,
    settle: bool = False,
) -> Run:
    """Wait for one run. Return it if it completed, otherwise raise RunFailedError. *settle* awaits its charge too."""
    run, deadline = target.run, _deadline(timeout) if settle else math.inf
    if run is None or not run.finished:
        if on_update is None:
            waiter = _add_waiter(poller, target, poll=poll, timeout=timeout, settle=settle)
            run = _run_or_timeout(await waiter, waiter, timeout)
        else:
            async for run in RunWatch(poller, [target], poll=poll, timeout=timeout):
                on_update(run)
    elif on_update is not None:
        on_update(run)
    if run is None or not run.succeeded:
        raise errors.RunFailedError(run) if run else AssertionError("RunWatch ended without a run")
    if settle and lacks_charge(run) and (on_update is not None or run is target.run):
        return await add_charge_waiter(poller, target, run, poll, deadline=deadline) or run
    return run


def _add_waiter(
    poller: Poller, target: WaitTarget, *, poll: PollFactory | None, timeout: float | None, settle: bool
) -> Waiter:
    """Return a future for the end of a run. It costs no coroutine of its own, of which each wait would hold one."""
    interest = poller.track(target, poll)
    wait = None if poller.emit is None else WaitSpan(poller.emit, interest)
    waiter = poller.add_waiter(interest, deadline=_deadline(timeout), settle=settle)
    if wait is not None:
        wait.follow(waiter)
    return waiter


def add_charge_waiter(
    poller: Poller, target: WaitTarget, run: Run, poll: PollFactory | None, *, deadline: float = math.inf
) -> Waiter:
    """Return a future for a completed run with its charge, or without if none appears in time. It needs no task."""
    target = replace(target, run=run, created=run.created.timestamp())
    return poller.add_waiter(poller.track(target, poll), deadline=deadline, settle=True)


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else require_loop(None).time() + timeout


def _run_or_timeout(run: Run | None, waiter: Waiter, timeout: float | None, last: Run | None = None) -> Run:
    if run is None:
        tracked = waiter.tracked
        raise errors.RunTimeoutError(
            tracked.run_id, timeout=timeout or math.inf, run=tracked.run or last, trouble=tracked.last_error
        )
    return run


class CompletionQueue:
    """A queue of waiters in completion order, for several readers. It holds no reference to its iterator."""

    def __init__(self) -> None:
        self.pending: dict[Waiter, Interest] = {}
        self._completed: deque[tuple[Waiter, Interest]] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()

    def add(self, waiter: Waiter, interest: Interest) -> None:
        """Add a waiter."""
        self.pending[waiter] = interest
        waiter.add_done_callback(partial(self._complete, waiter))

    def _complete(self, waiter: Waiter, _done: asyncio.Future[Run | None]) -> None:
        interest = self.pending.pop(waiter, None)
        if interest is not None and not waiter.cancelled():
            self._completed.append((waiter, interest))
        self._wake(1 if self._completed else len(self._readers))

    def pop(self) -> tuple[Waiter, Interest] | None:
        """Return the next completed waiter, or ``None``."""
        completed = self._completed.popleft() if self._completed else None
        if not self.pending and not self._completed:
            self._wake(len(self._readers))  # no waiter is left
        return completed

    async def wait_for_change(self) -> None:
        """Wait until a waiter completes or none is left."""
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        try:
            await reader
        except asyncio.CancelledError:
            if not reader.cancelled():
                self._wake(1)  # wake another reader instead
            raise

    def _wake(self, readers: int) -> None:
        while readers and self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                readers -= 1

    def clear(self) -> list[Waiter]:
        """Remove all waiters. Return the pending ones."""
        pending = list(self.pending)
        self.pending.clear()
        for waiter, _ in self._completed:
            waiter.exception()  # mark the exception as retrieved
        self._completed.clear()
        self._wake(len(self._readers))
        return pending


class _RunIterator(AsyncCloseable):
    """Waits for several runs with one deadline. Closing it stops the polling; the runs continue at FLORA."""

    _changes: ClassVar[bool]
    """Whether each change of a run is an item, not only the finished run."""

    def __init__(
        self,
        poller: Poller,
        targets: Iterable[WaitTarget],
        *,
        poll: PollFactory | None,
        timeout: float | None,
        settle: bool = False,
    ) -> None:
        self._poller = poller
        self._settle = settle
        self._poll = poll
        self._timeout = timeout
        self._deadline = math.inf
        self._finished: deque[Run] = deque()
        self._unseen: deque[WaitTarget] = deque()
        self._yielded: deque[tuple[Interest, Run]] = deque()
        """Unfinished runs that were yielded. The next item starts a new wait for them."""
        self._queue = CompletionQueue()
        self._waits: dict[Interest, WaitSpan] = {}
        """Wait spans, if events are emitted."""
        for target in targets:
            if target.run is not None and target.run.finished and not (settle and lacks_charge(target.run)):
                self._finished.append(target.run)
            else:
                self._unseen.append(target)

    async def _next(self) -> tuple[Waiter, Interest]:
        """Return the next waiter with a changed run or an error."""
        while True:
            await self._start_waits()
            while self._yielded:
                self._add_waiter(*self._yielded.popleft())
            ended = self._queue.pop()
            if ended is not None:
                return ended
            if not self._queue.pending:
                raise StopAsyncIteration
            await self._queue.wait_for_change()

    async def _start_waits(self) -> None:
        """Start the waits, a limited number in each step of the event loop. The timeout starts with the first."""
        if self._unseen and self._deadline == math.inf:
            self._deadline = _deadline(self._timeout)
        for started in count(1):
            if not self._unseen:
                return
            self._add_waiter(self._poller.track(self._unseen.popleft(), self._poll))
            if started % WAITS_PER_STEP == 0:
                await asyncio.sleep(0)

    def _add_waiter(self, interest: Interest, known: Run | None = None) -> None:
        if self._poller.emit is not None and interest not in self._waits:
            self._waits[interest] = WaitSpan(self._poller.emit, interest)
        waiter = self._poller.add_waiter(
            interest, deadline=self._deadline, known=known, changes=self._changes, settle=self._settle
        )
        self._queue.add(waiter, interest)
        if interest in self._waits:
            self._waits[interest].follow(waiter)

    async def aclose(self) -> None:
        """Stop the polling. The runs continue at FLORA."""
        self._finished.clear()
        self._unseen.clear()
        self._yielded.clear()
        waits, self._waits = self._waits, {}
        ends: deque[Callable[[], object]] = deque(waiter.cancel for waiter in self._queue.clear())
        ends.extend(wait.cancel_soon for wait in waits.values())
        try:
            while ends:
                for _ in range(min(WAITS_PER_STEP, len(ends))):
                    ends.popleft()()
                await asyncio.sleep(0)
        finally:  # after a cancellation too, end all waits
            while ends:
                ends.popleft()()

    def __del__(self) -> None:
        # The garbage collector may run on any thread.
        for wait in self._waits.values():
            wait.cancel_soon()
        pending = self._queue.clear()
        if pending and not (loop := pending[0].get_loop()).is_closed():
            loop.call_soon_threadsafe(_cancel, pending)


def _cancel(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.cancel()


class RunWatch(_RunIterator):
    """Asynchronous iterator over the changes of one or more runs; the last item of each run is the finished run.

    Progress never decreases, and a record without news is omitted. A failed run is an item, not an exception. The
    polling stops with ``aclose()`` or when the iterator is dropped. Several tasks may read one iterator: each item is
    yielded to one of them.

    Raises:
        RunTimeoutError: the wait timed out; the run continues at FLORA.
        AuthenticationError, PermissionDeniedError, BadRequestError: the API refuses the poll.
        APIConnectionError: a redirect, an untrusted certificate or an oversized response, which no retry fixes.
        NotFoundError: the run does not exist, 10 seconds after its creation (or after the first poll).
    """

    usage = "async for run in flora.watch_run(...), or await flora.wait_for_run(...) for the finished run"

    _changes = True

    def __init__(
        self, poller: Poller, targets: Iterable[WaitTarget], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        super().__init__(poller, targets, poll=poll, timeout=timeout)
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
            self._yielded.append((interest, run))
        return run


class RunOutcomes(_RunIterator):
    """Asynchronous iterator over the outcomes of runs, in completion order.

    The failure of a run does not affect the others. The polling stops with ``aclose()`` or when the iterator is
    dropped; the runs continue at FLORA. Several tasks may read one iterator: each outcome is yielded to one of them.
    """

    usage = "async for outcome in flora.as_completed(...)"

    _changes = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CompletedOutcome[None] | FailedOutcome[None, str]:
        await self._start_waits()
        if self._finished:
            return to_outcome(self._finished.popleft())
        waiter, interest = await self._next()
        try:
            return to_outcome(_run_or_timeout(waiter.result(), waiter, self._timeout))
        except errors.FloraError as error:
            return FailedOutcome(order=None, error=error, run_id=interest.tracked.run_id)


def to_outcome(run: Run) -> CompletedOutcome[None] | FailedOutcome[None, str]:
    """Return the outcome of a finished run."""
    if run.succeeded:
        return CompletedOutcome(order=None, run=run)
    return FailedOutcome(order=None, error=errors.RunFailedError(run), run_id=run.run_id)


_numbers = count(1)


class WaitSpan:
    """Emits the start and finish events of one wait for a run. Its events and polls share a separate context."""

    def __init__(self, emit: Emit, interest: Interest) -> None:
        self._emit = emit
        self._tracked = interest.tracked
        self._loop = asyncio.get_running_loop()
        self._started, self._unix = self._loop.time(), time.time()
        self._polls_before = interest.tracked.polls
        self._number = next(_numbers)
        self._finished = False
        self._context = interest.context = copy_context()
        self._context.run(emit, WaitStarted(wait=self._number, run_id=interest.tracked.run_id))

    def follow(self, waiter: Waiter) -> None:
        """Finish the span with *waiter*, unless its result is an unfinished run."""
        if waiter.tracked is not self._tracked:  # another wait tracks the run since then
            self._polls_before += waiter.tracked.polls - self._tracked.polls
            self._tracked = waiter.tracked
        waiter.add_done_callback(self._on_waiter_done, context=self._context)

    def _on_waiter_done(self, waiter: Waiter) -> None:
        if waiter.cancelled():
            self._finish(None, "CancelledError")
        elif (error := waiter.exception()) is not None:
            self._finish(None, type(error).__name__)
        elif (run := waiter.result()) is None:
            self._finish(None, "RunTimeoutError")
        elif run.finished:
            self._finish(run, None)

    def cancel_soon(self) -> None:
        """Finish the span as cancelled. Thread-safe, because the garbage collector may call it."""
        if not self._finished and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, None, "CancelledError", context=self._context)

    def _finish(self, run: Run | None, error: str | None) -> None:
        if self._finished:
            return
        self._finished = True
        lag = None
        if run is not None and run.completed is not None:
            lag = max(0.0, time.time() - max(run.completed.timestamp(), self._unix))
        self._emit(
            WaitFinished(
                wait=self._number,
                run_id=self._tracked.run_id,
                status=run.status if run else None,
                error=error,
                seconds=self._loop.time() - self._started,
                polls=max(0, self._tracked.polls - self._polls_before),
                lag=lag,
                charged_cost=run.charged_cost if run else None,
            )
        )
