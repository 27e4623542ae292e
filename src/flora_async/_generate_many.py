"""``generate_many``: create and await many runs within a concurrency and a cost limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Generic, Self

from flora_async import errors
from flora_async._aio import AsyncCloseable, require_loop
from flora_async._budget import Budget
from flora_async._costs import BudgetDecision, CostEntry, CostTracker, PriceKey, StopReason, price_key
from flora_async._ordering import Ordering, decide
from flora_async._outcomes import CompletedOutcome, FailedOutcome, OrderT, Outcome
from flora_async.models import AnyOrder, StartedRun

UNKNOWN_KIND: PriceKey = ("", None)
"""Stands for the kind of an order before the first was read."""


class OrderRunner(Generic[OrderT]):
    """Starts orders, awaits their runs and collects their outcomes. It holds no reference to its iterator."""

    def __init__(
        self,
        orders: Iterable[OrderT] | AsyncIterable[OrderT],
        *,
        ordering: Callable[[Sequence[CostTracker]], Ordering],
        concurrency: int,
        max_cost: float | None,
        budget: Budget | None,
    ) -> None:
        _check_iterable(orders)
        self._orders = orders
        self._concurrency = concurrency
        self.costs: CostTracker = CostTracker(max_cost)
        self._trackers = [self.costs] if budget is None else [self.costs, budget.tracker]
        self._ordering = ordering(self._trackers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[asyncio.Task[None], CostEntry] = {}
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
            for tracker in self._trackers:
                tracker.listen(self._loop, self._slot_free.set)
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
        for tracker in self._trackers:
            tracker.listeners.pop(self._slot_free.set, None)
        if len(self._trackers) == 1:  # the charges of a shared budget are of interest to others
            self._ordering.stop_settling()
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
            decision, limit = self._decide(order)
            if decision == "start":
                return True
            if decision == "stop":
                self.stop_reason = "max_cost" if limit is self.costs else "budget"
                break
            self._slot_free.clear()
            try:
                await self._ordering.wait(self._slot_free)
            except errors.ClientClosedError:
                self.stop_reason = "client_closed"
        return False

    def _decide(self, order: AnyOrder | None) -> tuple[BudgetDecision, CostTracker | None]:
        """Return whether an order may start, and the limit that prevents it. One of the kinds read so far must fit."""
        if self._open >= self._concurrency:
            return "wait", None
        keys = list(self.costs.costs) or [UNKNOWN_KIND] if order is None else [price_key(order)]
        return min((decide(self._trackers, key) for key in keys), key=_rank_decision)

    def _start_order(self, order: OrderT) -> None:
        self._open += 1
        entry = CostEntry(price_key(order), self._trackers)
        task = asyncio.get_running_loop().create_task(self._run_order(order, entry))
        self._tasks[task] = entry
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).release()  # the place of an order that was cancelled before its first step
        self._on_done(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            self._stop_ordering()
        self._slot_free.set()
        self._changed.set()

    def _stop_reading(self) -> None:
        """Cancel the reader, also while it waits for the caller's next order."""
        if self._reader is not None:
            self._reader.cancel()

    def _stop_ordering(self, reason: StopReason | None = None) -> None:
        """Start no further order, and order nothing again."""
        self.stop_reason = self.stop_reason or reason
        self._stop_reading()
        self._ordering.stop()

    # -- one order

    async def _run_order(self, order: OrderT, entry: CostEntry) -> None:
        attempts: list[errors.RunFailedError] = []
        try:
            run = await self._ordering.run(order, entry, attempts=attempts)
        except errors.FloraError as error:
            if isinstance(error, errors.InsufficientCreditsError):
                self._stop_ordering("insufficient_credits")
            elif isinstance(error, errors.RunFailedError) and error.advice == "stop":
                self._stop_ordering("run_failed")
            elif isinstance(error, errors.ClientClosedError):
                self._stop_ordering("client_closed")
            self._outcomes.append(
                FailedOutcome(order=order, error=error, run_id=error.run_id, attempts=tuple(attempts))
            )
        else:
            self._outcomes.append(CompletedOutcome(order=order, run=run, attempts=tuple(attempts)))


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
        """Reason why reading stopped; ``None`` if all were read.

        ``"max_cost"`` or ``"budget"``: the next order could exceed it. ``"insufficient_credits"``: FLORA responded
        with 402. ``"run_failed"``: a run failed with the advice ``"stop"``, like ``BILLING_NOT_ENOUGH_CREDITS``.
        ``"client_closed"``: the client was closed.
        """
        return self._runner.stop_reason

    @property
    def spent(self) -> float:
        """USD that FLORA has charged for these orders so far."""
        return self._runner.costs.spent

    @property
    def quoted(self) -> float:
        """Sum in USD of FLORA's quotes for all runs whose charge is not known. FLORA can charge more."""
        return self._runner.costs.quoted

    @property
    def unsettled(self) -> int:
        """Number of orders whose charge is not known: in flight, without a charge so far, or of unknown outcome.

        At 0, :attr:`spent` is final.
        """
        return self._runner.costs.unsettled

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


def _rank_decision(decided: tuple[BudgetDecision, CostTracker | None]) -> int:
    """Sort ``start`` first and ``stop`` last."""
    return ("start", "wait", "stop").index(decided[0])


async def _iterate(orders: Iterable[OrderT]) -> AsyncIterator[OrderT]:
    for order in orders:
        yield order


async def _close_generator(orders: Iterable[AnyOrder] | AsyncIterable[AnyOrder]) -> None:
    if isinstance(orders, AsyncGenerator):
        await orders.aclose()


async def start_order(
    start: Callable[[AnyOrder, str | None], Awaitable[StartedRun]], order: AnyOrder, key: str | None
) -> StartedRun:
    """Start a run. Raise ConfigurationError for an exception of the caller's ``on_create``: it is about one order."""
    try:
        return await start(order, key)
    except errors.FloraError:
        raise
    except Exception as error:
        raise errors.ConfigurationError(
            f"the order was not sent: on_create raised {type(error).__name__}: {error}"
        ) from error


def _check_iterable(orders: object) -> None:
    if not isinstance(orders, Iterable | AsyncIterable):
        raise errors.ConfigurationError(f"orders must be an iterable of Orders, not {type(orders).__name__}")


def _check_order(order: object) -> None:
    if not isinstance(order, AnyOrder):
        raise errors.ConfigurationError(f"generate_many takes Orders, not {type(order).__name__}")
