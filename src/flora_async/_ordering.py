"""Carry out one order within budgets: start it, wait for its run, count its cost, order it again after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from flora_async import errors
from flora_async._aio import require_loop
from flora_async._costs import BudgetDecision, CostEntry, CostTracker, PriceKey, price_key
from flora_async._failures import ReorderPolicy
from flora_async._http.transport import check_before_post
from flora_async.models import AnyOrder, Run, StartedRun, lacks_charge

Start: TypeAlias = Callable[[AnyOrder, str | None], Coroutine[Any, Any, StartedRun]]
"""Starts the run of an order under a key, or under a new one."""

Settle: TypeAlias = Callable[[StartedRun, Run], "asyncio.Future[Run | None]"]
"""Returns a future for a completed run with its charge."""

Wait: TypeAlias = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Waits for an event. Raises ClientClosedError as soon as the client is closed."""

Hold: TypeAlias = Callable[[str, CostEntry], object]
"""Keeps the entry of a run that is not awaited any more, so that a later charge of it is counted. The entry of a create
with an unknown outcome is kept under its idempotency key."""


def decide(trackers: Sequence[CostTracker], key: PriceKey) -> tuple[BudgetDecision, CostTracker | None]:
    """Return whether an order may start within all limits, and the limit that prevents it."""
    waits: tuple[BudgetDecision, CostTracker | None] = "start", None
    for tracker in trackers:
        decision = tracker.decide(key)
        if decision == "stop":
            return decision, tracker
        if decision == "wait":
            waits = decision, tracker
    return waits


async def admit(
    trackers: Sequence[CostTracker], order: AnyOrder, wait: Wait, stopped: Callable[[], bool] = lambda: False
) -> CostEntry | None:
    """Wait until an order fits all limits and reserve its cost. ``None``: it never fits, or *stopped* became true."""
    key, changed = price_key(order), asyncio.Event()
    try:
        for tracker in trackers:
            tracker.listen(require_loop(None), changed.set)
        while not stopped():
            decision, _ = decide(trackers, key)
            if decision == "start":
                return CostEntry(key, trackers)
            if decision == "stop":
                break
            changed.clear()
            await wait(changed)
        return None
    finally:
        for tracker in trackers:
            tracker.listeners.pop(changed.set, None)


async def reserve_cost(trackers: Sequence[CostTracker], order: AnyOrder, wait: Wait) -> CostEntry:
    """Wait until an order fits all limits and reserve its cost, or raise BudgetExceededError."""
    entry = await admit(trackers, order, wait)
    if entry is None:
        _, limit = decide(trackers, price_key(order))
        raise errors.BudgetExceededError(*((limit.max_cost or 0.0, limit.expected) if limit else (0.0, 0.0)))
    return entry


async def start_counted(entry: CostEntry, start: Awaitable[StartedRun], hold: Hold) -> StartedRun:
    """Start a run that is not awaited here: it counts at its expected cost until its charge is seen."""
    started = await _start(entry, start, hold)
    entry.abandon()
    hold(started.run_id, entry)
    return started


async def _start(entry: CostEntry, start: Awaitable[StartedRun], hold: Hold) -> StartedRun:
    """Await a create and count it. A create that was cancelled before its first byte costs nothing."""
    with _watch_post() as sent:
        try:
            started = await start
        except errors.CreateOutcomeUnknownError as error:
            entry.abandon()
            hold(error.idempotency_key, entry)
            raise
        except errors.FloraError:
            entry.release()
            raise
        except BaseException:  # a cancellation, or an exception of on_create
            if sent:
                entry.abandon()
            entry.release()
            raise
    entry.start(started.quoted_cost)
    return started


@contextmanager
def _watch_post() -> Generator[list[bool]]:
    """Yield a list that is empty until a create is sent by this task."""
    sent: list[bool] = []
    outer = check_before_post.get()

    async def check() -> None:
        if outer is not None:
            await outer()
        sent.append(True)

    token = check_before_post.set(check)
    try:
        yield sent
    finally:
        check_before_post.reset(token)


class Ordering:
    """Carries out orders, each from its reservation to the charge of its run, with its failed attempts."""

    def __init__(
        self,
        *,
        start: Start,
        finish: Callable[[StartedRun], Coroutine[Any, Any, Run]],
        settle: Settle,
        hold: Hold,
        trackers: Sequence[CostTracker] = (),
        retry_failed: int = 0,
        policy: ReorderPolicy,
        sleep: Callable[[float], Coroutine[Any, Any, None]],
        wait: Wait,
    ) -> None:
        self.trackers = trackers
        self.wait = wait
        self._start = start
        self._finish = finish
        self._settle = settle
        self._hold = hold
        self._retry_failed = retry_failed
        self._policy = policy
        self._sleep = sleep
        self._stopped = asyncio.Event()
        self._settling: set[asyncio.Future[Run | None]] = set()

    def stop(self) -> None:
        """Order nothing again. Orders that pause end as failed."""
        self._stopped.set()
        for tracker in self.trackers:
            tracker.notify()

    def stop_settling(self) -> None:
        """Await no more charges in the background. Orders without a charge stay counted at their expected cost."""
        for waiter in list(self._settling):
            waiter.cancel()

    async def run(
        self,
        order: AnyOrder,
        entry: CostEntry,
        *,
        key: str | None = None,
        attempts: list[errors.RunFailedError],
    ) -> Run:
        """Return the completed run of an order. *attempts* receives the failures after which it was ordered again."""
        while True:
            try:
                return await self._attempt(order, entry, key)
            except errors.RunFailedError as failure:
                pause = self._policy.pause(failure, len(attempts), self._retry_failed)
                again = None if pause is None else await self._admit_again(order, pause)
                if again is None:
                    raise
                attempts.append(failure)
                entry, key = again, None

    async def _admit_again(self, order: AnyOrder, pause: float) -> CostEntry | None:
        """Reserve the cost of a failed order after a pause, which the end of the ordering or of the client shortens."""
        ends = [asyncio.ensure_future(self._sleep(pause)), asyncio.ensure_future(self._stopped.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        return await admit(self.trackers, order, self.wait, self._stopped.is_set)

    async def _attempt(self, order: AnyOrder, entry: CostEntry, key: str | None) -> Run:
        started = await _start(entry, self._start(order, key), self._hold)
        try:
            run = await self._finish(started)
        except errors.RunFailedError as error:
            entry.finish(error.run)
            raise
        except errors.FloraError as error:
            error.run_id = started.run_id
            self._abandon(started, entry)
            raise
        except BaseException as error:  # A cancellation, or an exception of on_update.
            error.add_note(f"{started.run_id} was started and continues at FLORA: flora.wait_for_run() awaits it again")
            self._abandon(started, entry)
            raise
        entry.finish(run)
        if lacks_charge(run):
            self._await_charge(started, run, entry)
        return run

    def _abandon(self, started: StartedRun, entry: CostEntry) -> None:
        entry.abandon()
        self._hold(started.run_id, entry)

    def _await_charge(self, started: StartedRun, run: Run, entry: CostEntry) -> None:
        """Await the charge of a completed run in the background if a limit needs it: as a future, not as a task."""
        self._hold(run.run_id, entry)
        if all(tracker.max_cost is None for tracker in self.trackers):
            entry.abandon()
            return

        def end(waiter: asyncio.Future[Run | None]) -> None:
            self._settling.discard(waiter)
            if not waiter.cancelled():
                waiter.exception()  # mark it as retrieved
            entry.abandon()  # no effect on an entry with its charge

        try:
            waiter = self._settle(started, run)
        except errors.FloraError:  # the client was closed: the completed run counts more than its charge
            entry.abandon()
            return
        self._settling.add(waiter)
        waiter.add_done_callback(end)
