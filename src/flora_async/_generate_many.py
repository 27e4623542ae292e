"""``generate_many``: create and await many runs within a concurrency and a cost limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Generic, Self

from flora_async import errors
from flora_async._aio import AsyncCloseable, require_loop
from flora_async._costs import BudgetDecision, CostTracker, StopReason, decide_read, decide_start, price_key
from flora_async._outcomes import CompletedOutcome, FailedOutcome, OrderT, Outcome
from flora_async.models import AnyOrder, Run, StartedRun


class OrderRunner(Generic[OrderT]):
    """Starts orders, awaits their runs and collects their outcomes. It holds no reference to its iterator."""

    def __init__(
        self,
        orders: Iterable[OrderT] | AsyncIterable[OrderT],
        *,
        start: Callable[[AnyOrder], Coroutine[Any, Any, StartedRun]],
        finish: Callable[[StartedRun], Coroutine[Any, Any, Run]],
        concurrency: int,
        max_cost: float | None,
    ) -> None:
        _check_iterable(orders)
        self._orders = orders
        self._start = start
        self._finish = finish
        self._concurrency = concurrency
        self._max_cost = max_cost
        self._costs = CostTracker()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._open = 0
        self._closed = False
        self._slot_free = asyncio.Event()
        self._changed = asyncio.Event()
        self._outcomes: deque[Outcome[OrderT]] = deque()
        self._failure: BaseException | None = None
        self.stop_reason: StopReason | None = None
        self.unstarted: OrderT | None = None

    # -- for the iterator

    async def next_outcome(self) -> Outcome[OrderT] | None:
        """Return the next outcome; ``None`` after the last one, or if the runner is closed.

        Any number of tasks may call it: each outcome is returned once. Exceptions of the caller's iterable are raised.
        """
        if self._reader is None and not self._closed:
            self._loop = require_loop(None)
            self._reader = self._loop.create_task(self._read_orders())
            self._reader.add_done_callback(self._on_done)
        while not self._closed:
            if self._outcomes:
                self._open -= 1
                self._slot_free.set()
                return self._outcomes.popleft()
            if not self._tasks and (self._reader is None or self._reader.done()):
                self._close()
                failure, self._failure = self._failure, None
                if failure is not None:
                    raise failure
                break
            self._changed.clear()
            await self._changed.wait()
        return None

    async def aclose(self) -> None:
        """Cancel all tasks, await their end, and close the caller's asynchronous generator."""
        self._close()
        cancelled = [*self._tasks] if self._reader is None else [*self._tasks, self._reader]
        if cancelled:
            await asyncio.wait(cancelled)
        await _close_generator(self._orders)  # A reader that never ran has not closed it.

    def drop(self) -> None:
        """Cancel all tasks and start no further order. The garbage collector may call this in any thread."""
        self._closed = True
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            in_loop = asyncio.get_running_loop() is loop
        except RuntimeError:
            in_loop = False
        if in_loop:  # At once: a task that is already scheduled must not send another create.
            self._close()
        else:
            loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._closed = True
        self._outcomes.clear()
        for task in self._tasks:
            task.cancel()
        self._stop_reading()
        self._changed.set()

    # -- reading and starting orders

    async def _read_orders(self) -> None:
        orders = aiter(self._orders) if isinstance(self._orders, AsyncIterable) else _iterate(self._orders)
        try:
            while await self._wait_for_slot(None):
                order = await anext(orders)
                _check_order(order)
                self.unstarted = order
                if not await self._wait_for_slot(order):
                    break
                self.unstarted = None
                self._start_order(order)
        except StopAsyncIteration:
            pass
        finally:
            await _close_generator(orders)

    async def _wait_for_slot(self, order: AnyOrder | None) -> bool:
        """Return ``True`` when *order* may start, ``False`` if no order may. ``None`` stands for an unread order."""
        while not (self._closed or self.stop_reason or self._failure):
            decision = self._decide(order)
            if decision == "start":
                return True
            if decision == "stop":
                self.stop_reason = "max_cost"
                break
            self._slot_free.clear()
            await self._slot_free.wait()
        return False

    def _decide(self, order: AnyOrder | None) -> BudgetDecision:
        if self._open >= self._concurrency:
            return "wait"
        if self._max_cost is None:
            return "start"
        if order is None:
            return decide_read(self._costs.costs, max_cost=self._max_cost)
        return decide_start(self._costs.costs, price_key(order), max_cost=self._max_cost)

    def _start_order(self, order: OrderT) -> None:
        self._open += 1
        self._costs.record_sent(price_key(order))
        task = asyncio.get_running_loop().create_task(self._run_order(order))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            self._stop_reading()
        self._slot_free.set()
        self._changed.set()

    def _stop_reading(self) -> None:
        """Cancel the reader, also while it waits for the caller's next order."""
        if self._reader is not None:
            self._reader.cancel()

    # -- one order

    async def _run_order(self, order: OrderT) -> None:
        try:
            run = await self._create_and_wait(order)
        except errors.FloraError as error:
            self._outcomes.append(FailedOutcome(order=order, error=error, run_id=error.run_id))
        else:
            self._outcomes.append(CompletedOutcome(order=order, run=run))

    async def _create_and_wait(self, order: AnyOrder) -> Run:
        costs, key = self._costs, price_key(order)
        try:
            started = await self._start(order)
        except errors.CreateOutcomeUnknownError:
            costs.record_doubtful(key)
            raise
        except Exception as failure:
            # Every other exception is one of the caller's on_create, and nothing was sent.
            error = failure if isinstance(failure, errors.FloraError) else _on_create_error(failure)
            costs.record_refused(key)
            if isinstance(error, errors.InsufficientCreditsError):
                self.stop_reason = self.stop_reason or "insufficient_credits"
                self._stop_reading()
            if error is failure:
                raise
            raise error from failure
        quote = started.charged_cost
        costs.record_started(key, quote)
        self._slot_free.set()
        try:
            run = await self._finish(started)
        except errors.RunFailedError:
            costs.record_failed(key, quote)
            raise
        except errors.FloraError as error:
            costs.record_abandoned(key, quote)
            error.run_id = started.run_id
            raise
        costs.record_completed(key, quote, run.charged_cost)
        return run


class Outcomes(AsyncCloseable, Generic[OrderT]):
    """Outcomes of many orders in completion order: iterate over it with ``async for``.

    The end of ``async with``, ``aclose()`` or the garbage collector close it. Then no further order is started, no task
    remains, and an asynchronous generator of orders is closed. Started runs continue at FLORA. Several tasks may share
    the iterator: each outcome reaches exactly one of them.
    """

    usage = "async for outcome in flora.generate_many(...)"

    def __init__(self, runner: OrderRunner[OrderT]) -> None:
        self._runner = runner

    @property
    def stop_reason(self) -> StopReason | None:
        """Reason why reading stopped: ``"max_cost"`` or ``"insufficient_credits"`` (402); ``None`` if all were read."""
        return self._runner.stop_reason

    @property
    def unstarted(self) -> OrderT | None:
        """Order that was read from the caller's iterable but not started; ``None`` if there is none."""
        return self._runner.unstarted

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome[OrderT]:
        outcome = await self._runner.next_outcome()
        if outcome is None:
            raise StopAsyncIteration
        return outcome

    async def aclose(self) -> None:
        """Start no further order and cancel all waits."""
        await self._runner.aclose()

    def __del__(self) -> None:
        self._runner.drop()


async def _iterate(orders: Iterable[OrderT]) -> AsyncIterator[OrderT]:
    for order in orders:
        yield order


async def _close_generator(orders: Iterable[AnyOrder] | AsyncIterable[AnyOrder]) -> None:
    if isinstance(orders, AsyncGenerator):
        await orders.aclose()


def _on_create_error(error: Exception) -> errors.FloraError:
    return errors.ConfigurationError(f"the order was not sent: on_create raised {type(error).__name__}: {error}")


def _check_iterable(orders: object) -> None:
    if not isinstance(orders, Iterable | AsyncIterable):
        raise errors.ConfigurationError(f"orders must be an iterable of Orders, not {type(orders).__name__}")


def _check_order(order: object) -> None:
    if not isinstance(order, AnyOrder):
        raise errors.ConfigurationError(f"generate_many takes Orders, not {type(order).__name__}")
