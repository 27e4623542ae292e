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
from flora_async._pacing import PollFactory
from flora_async._watcher import Entry, Subject, Waiter, Watcher
from flora_async.models import Run

T = TypeVar("T")

OnUpdate: TypeAlias = Callable[[Run], object]
"""Called with each change of a run; what it raises ends the wait."""


class RunOutcome(Struct, frozen=True):
    """How a run ended: :attr:`run` if it has completed, else :attr:`error`."""

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
            run = _in_time(await watcher.wait(entry, deadline=_deadline(timeout)), entry, timeout)
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


class RunWatch:
    """The changes of one run or many, each with the finished run as its last: iterate over it with ``async for``.

    Progress never goes backwards, and what tells nothing new is left out. A failed run is an item, not an exception.
    Leaving the loop stops the looking, when the iterator is dropped or by ``aclose()``.

    Raises:
        RunTimeoutError: the time is up; the run goes on at FLORA.
        AuthenticationError, PermissionDeniedError, BadRequestError: a run may not be looked at.
        NotFoundError: there is no such run, 10 seconds after its creation (or after the first look).
    """

    def __init__(
        self, watcher: Watcher, subjects: Iterable[Subject], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        self._watcher = watcher
        self._poll = poll
        self._timeout = timeout
        self._deadline = math.inf
        self._begun = False
        self._finished = deque[Run]()
        self._unseen: deque[Subject] = deque()
        self._entries: dict[Waiter, Entry] = {}
        self._last: dict[str, Run] = {}
        self._changed: Entry | None = None
        self._ends: Ends[Run | None] = Ends()
        for subject in subjects:
            if subject.run is not None and subject.run.finished:
                self._finished.append(subject.run)
            else:
                self._unseen.append(subject)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Run:
        if self._finished:
            return self._finished.popleft()
        if not self._begun:
            self._begun = True
            self._deadline = _deadline(self._timeout)
        while self._unseen:
            self._wait(self._watcher.enter(self._unseen.popleft(), self._poll))
        if self._changed is not None:
            entry, self._changed = self._changed, None
            self._wait(entry)
        while len(self._ends):
            waiter = await self._ends.next()
            if waiter is not None:
                return self._change(waiter)
        raise StopAsyncIteration

    def _wait(self, entry: Entry) -> None:
        last = self._last.get(entry.run_id)
        waiter = self._watcher.wait(entry, deadline=self._deadline, known=last, changes=True)
        self._entries[waiter] = entry
        self._ends.add(waiter)

    def _change(self, waiter: Waiter) -> Run:
        entry = self._entries.pop(waiter)
        run = _in_time(waiter.result(), entry, self._timeout)
        last = self._last.pop(run.run_id, None)
        if not run.finished:
            self._last[run.run_id] = run
            self._changed = entry
        if last is not None and run.progress < last.progress:
            run = replace(run, progress=last.progress)
            if not run.finished:
                self._last[run.run_id] = run
        return run

    async def aclose(self) -> None:
        """Stop looking."""
        self._finished.clear()
        self._unseen.clear()
        self._changed = None
        self._ends.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._ends.drop()


class RunOutcomes:
    """The ends of many runs, in the order in which they come: iterate over it with ``async for``.

    No run's failure touches the others. Leaving the loop stops the looking, when the iterator is dropped or by
    ``aclose()``; the runs go on at FLORA.
    """

    def __init__(
        self, watcher: Watcher, subjects: Iterable[Subject], *, poll: PollFactory | None, timeout: float | None
    ) -> None:
        self._watcher = watcher
        self._poll = poll
        self._timeout = timeout
        self._unseen = deque(subjects)
        self._entries: dict[Waiter, Entry] = {}
        self._ends: Ends[Run | None] = Ends()
        self._finished: deque[RunOutcome] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunOutcome:
        if self._unseen:
            self._begin()
        if self._finished:
            return self._finished.popleft()
        while len(self._ends):
            waiter = await self._ends.next()
            if waiter is not None:
                return self._outcome(waiter)
        raise StopAsyncIteration

    def _begin(self) -> None:
        deadline = _deadline(self._timeout)
        while self._unseen:
            subject = self._unseen.popleft()
            if subject.run is not None and subject.run.finished:
                self._finished.append(outcome_of(subject.run))
                continue
            entry = self._watcher.enter(subject, self._poll)
            waiter = self._watcher.wait(entry, deadline=deadline)
            self._entries[waiter] = entry
            self._ends.add(waiter)

    def _outcome(self, waiter: Waiter) -> RunOutcome:
        entry = self._entries.pop(waiter)
        try:
            return outcome_of(_in_time(waiter.result(), entry, self._timeout))
        except errors.FloraError as error:
            return RunOutcome(entry.run_id, None, error)

    async def aclose(self) -> None:
        """Stop looking."""
        self._unseen.clear()
        self._finished.clear()
        self._ends.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._ends.drop()


def outcome_of(run: Run) -> RunOutcome:
    """Tell how a finished run ended."""
    if run.succeeded:
        return RunOutcome(run.run_id, run, None)
    return RunOutcome(run.run_id, None, errors.RunFailedError(run))
