"""Many orders at once: created as room and money allow, handed out as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Self

from msgspec import Struct

from flora_async import errors
from flora_async._arguments import bind_loop
from flora_async._closing import Closing
from flora_async._polling import Ends
from flora_async.models import Order, Run, StartedRun


class Outcome(Struct, frozen=True):
    """What became of an order: ``run`` if it has completed, else ``error``."""

    order: Order
    run: Run | None
    error: errors.FloraError | None


class Batch:
    """The orders that are begun and not yet handed out, and what they have cost."""

    def __init__(
        self,
        orders: Iterable[Order] | AsyncIterable[Order],
        *,
        start: Callable[[Order], Coroutine[Any, Any, StartedRun]],
        finish: Callable[[StartedRun], Coroutine[Any, Any, Run]],
        concurrency: int,
        max_cost: float | None,
    ) -> None:
        self._orders = orders
        self._start = start
        self._finish = finish
        self._concurrency = concurrency
        self._max_cost = max_cost
        self._room = asyncio.Event()
        self._begun = 0
        self._creating = 0
        self._spent = 0.0
        self._dearest: float | None = None
        self._stopped = False
        self.ends: Ends[Outcome] = Ends()
        self.fed: bool = False

    async def feed(self) -> None:
        """Begin one order after another, while there is room and money."""
        try:
            if isinstance(self._orders, AsyncIterable):
                orders = aiter(self._orders)
                while await self._may_begin():
                    self._begin(await anext(orders))
            else:
                each = iter(self._orders)
                while await self._may_begin():
                    order = next(each, None)
                    if order is None:
                        break
                    self._begin(order)
        except StopAsyncIteration:
            pass
        finally:
            self.fed = True
            self.ends.ring()

    def _begin(self, order: object) -> None:
        if not isinstance(order, Order):
            raise errors.ConfigurationError(f"generate_many takes Orders, not {type(order).__name__}")
        self._begun += 1
        self._creating += 1
        self.ends.add(asyncio.get_running_loop().create_task(self._make(order)))

    async def _may_begin(self) -> bool:
        """Wait for room; say whether anything more is to be begun at all."""
        while not self._stopped:
            affordable = self._affordable()
            if affordable and self._begun < self._concurrency:
                return True
            if not affordable and not self._creating:
                return False
            self._room.clear()
            await self._room.wait()
        return False

    def _affordable(self) -> bool:
        if self._max_cost is None:
            return True
        if self._dearest is None:  # the first tells what one costs
            return not self._creating and self._spent < self._max_cost
        return self._spent + (self._creating + 1) * self._dearest <= self._max_cost + 1e-9

    async def _make(self, order: Order) -> Outcome:
        try:
            started = await self._start(order)
        except errors.FloraError as error:
            self._stopped = self._stopped or isinstance(error, errors.InsufficientCreditsError)
            if isinstance(error, errors.CreateOutcomeUnknownError):
                self._spent += self._dearest or 0.0
            return Outcome(order, None, error)
        else:
            # The history need not say what a recovered run costs.
            self._spent += max(started.charged_cost, self._dearest or 0.0 if started.recovered else 0.0)
            self._dearest = max(self._dearest or 0.0, started.charged_cost)
        finally:
            self._creating -= 1
            self._room.set()
        try:
            run = await self._finish(started)
        except errors.FloraError as error:
            error.run_id = started.run_id
            return Outcome(order, None, error)
        return Outcome(order, run, None)

    def handed_out(self) -> None:
        """Make room for another order."""
        self._begun -= 1
        self._room.set()


class Outcomes(Closing):
    """What became of many orders, in the order in which they finish: iterate over it with ``async for``.

    Leaving the loop stops the creating, when the iterator is dropped or by ``aclose()``: no task is left behind, and
    runs that were started go on at FLORA.
    """

    usage = "async for outcome in flora.generate_many(...)"

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._feeder: asyncio.Task[None] | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        batch = self._batch
        if self._feeder is None and not self._over:
            self._feeder = bind_loop(None).create_task(batch.feed())
            self._feeder.add_done_callback(_noticed)
        while not self._over and (len(batch.ends) or not batch.fed):
            ended = await batch.ends.next()
            if ended is not None:
                batch.handed_out()
                return ended.result()
        if self._feeder is not None and not self._over:
            self._over = True
            await self._feeder  # what the orders' own iterator has raised
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop creating and looking."""
        self._over = True
        ending: list[asyncio.Future[Any]] = [*self._batch.ends.cancel()]
        if self._feeder is not None and self._feeder.cancel():
            ending.append(self._feeder)
        if ending:
            await asyncio.wait(ending)

    def __del__(self) -> None:
        feeder = self._feeder
        if feeder is not None and not feeder.done() and not feeder.get_loop().is_closed():
            feeder.get_loop().call_soon_threadsafe(feeder.cancel)
        self._batch.ends.drop()


def _noticed(feeder: asyncio.Task[None]) -> None:
    # Told to the reader at the end of what was begun, if there still is one.
    if not feeder.cancelled():
        feeder.exception()
