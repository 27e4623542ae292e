"""One batch: stored, worked on, looked at, and what became of its orders."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec
from anyio.to_thread import run_sync
from msgspec import Struct

from flora_async import _wire, errors
from flora_async._addresses import parse_base_url
from flora_async._arguments import check_seconds, check_usd
from flora_async._client import DEFAULT_BASE_URL
from flora_async.durable import _deciding, _plain, _storing, _workflows
from flora_async.durable._fulfilling import Fulfilling
from flora_async.durable._ledger import ENDED, Item, Ledger, State
from flora_async.durable._presence import Presence
from flora_async.durable._storing import BatchSettings, BatchStatus
from flora_async.durable._tables import told_apart
from flora_async.models import Order, Run

LOOK = 0.25
"""Seconds between looks at how a batch stands."""
PAGE = 500

_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_ORIGIN = parse_base_url(DEFAULT_BASE_URL)


class BatchOutcome(Struct, frozen=True, kw_only=True):
    """What became of an order of a batch: :attr:`run` if it has completed, else :attr:`error`."""

    index: int
    """Its place among the orders, from 0."""
    order: Order
    columns: Mapping[str, Any]
    """What else its line said."""
    key: str
    """The idempotency key under which it went out."""
    run: Run | None
    error: errors.FloraError | None
    state: State
    """``completed``, ``failed``, ``refused`` or ``unknown``."""
    cost: float | None
    """USD that FLORA has charged, where it has said so."""
    files: tuple[str, ...] = ()
    """Where the outputs were saved."""


class Parts(Struct, frozen=True):
    """What a batch is worked on with."""

    ledger: Ledger
    workflows: _workflows.Engine
    fulfilling: Fulfilling
    presence: Presence
    concurrency: int


class Batch:
    """A batch of orders, by its name. It lives in the database: any process there can ask for it."""

    def __init__(self, parts: Parts, name: str) -> None:
        self.name = name
        self._parts = parts
        self._ledger = parts.ledger

    def __repr__(self) -> str:
        return f"Batch({self.name!r})"

    async def run(
        self,
        orders: Iterable[Order] | AsyncIterable[Order],
        *,
        max_cost: float | None = None,
        rate: float | None = None,
    ) -> BatchStatus:
        """Order all of it, once, and return when every order has come to its end.

        The orders are stored first, all or none; nothing goes out before. Where the batch exists already, nothing is
        ordered twice: it is gone on with, as by :meth:`resume`, so that a service can do this each time it starts.
        FLORA's refusals of the key or of payment (401, 402, 403) stop the batch: see ``status.stopped``. While FLORA
        cannot be reached or takes no orders the batch pauses, however long, and goes on by itself.

        Args:
            orders: what to generate; any iterable, or an asynchronous one.
            max_cost: USD; the batch stops before an order that would cost more together with those before, judged by
                the dearest so far, on all machines together.
            rate: orders a second on all machines together; they go out in bursts of a second's.

        Raises:
            ConfigurationError: an order cannot be right, or the batch exists and has other orders. Nothing was sent.
        """
        await self.add(_plainly(orders), max_cost=max_cost, settings=BatchSettings(rate=_checked_rate(rate)))
        return await self.finished()

    async def add(
        self,
        orders: AsyncIterable[tuple[Order, Mapping[str, Any]]],
        *,
        max_cost: float | None,
        settings: BatchSettings,
    ) -> None:
        """Store orders and have them worked on, here and wherever else somebody works on this database."""
        money = None if max_cost is None else check_usd("max_cost", max_cost)
        ledger, storing = self._ledger, _storing.Storing(self.name)
        there = await ledger.ask(lambda connection: _storing.statuses(connection, self.name))
        if not there:
            await ledger.ask(lambda connection: _storing.clear(connection, self.name))
        page: list[tuple[Order, Mapping[str, Any]]] = []
        async for order in orders:
            page.append(order)
            if len(page) == _storing.PAGE:
                await self._store(storing, page, keep=not there)
        await self._store(storing, page, keep=not there)
        if there:
            row = await ledger.ask(lambda connection: _storing.find(connection, self.name))
            if row.digest != storing.digest:
                raise errors.ConfigurationError(
                    f"the batch {self.name!r} exists and has other orders: give these a name of their own"
                )
            await self.go_on(max_cost=money)
            return
        if not storing.total:
            raise errors.ConfigurationError("there are no orders")
        # The queue first: what is queued can be begun at once.
        await self._open_queue(storing.total, settings.rate)
        await ledger.ask(
            lambda connection: _storing.finish(connection, storing, settings, money, self._parts.workflows.enqueue)
        )

    async def _store(
        self, storing: _storing.Storing, page: list[tuple[Order, Mapping[str, Any]]], *, keep: bool
    ) -> None:
        rows = storing.rows(page)
        page.clear()
        if keep and rows:
            await self._ledger.ask(lambda connection: _storing.store(connection, rows))

    async def _open_queue(self, total: int, rate: float | None) -> None:
        chunk = _deciding.chunk_size(total, rate)
        chunks = math.ceil(self._parts.concurrency / chunk)
        await self._parts.workflows.open_queue(self.name, chunks=chunks, rate=rate, chunk=chunk)

    async def _reopen_queue(self) -> None:
        row = await self._ledger.ask(lambda connection: _storing.find(connection, self.name))
        await self._open_queue(row.total, msgspec.json.decode(row.settings, type=BatchSettings).rate)

    async def settings(self) -> BatchSettings:
        """Say what the batch was asked for beside its orders."""
        row = await self._ledger.ask(lambda connection: _storing.find(connection, self.name))
        return msgspec.json.decode(row.settings, type=BatchSettings)

    async def go_on(self, *, max_cost: float | None = None) -> None:
        """Take the batch up where it stands, without waiting for it."""
        await self._reopen_queue()
        changes = {} if max_cost is None else {"max_cost": check_usd("max_cost", max_cost)}
        await self._ledger.ask(
            lambda connection: _storing.go_on(connection, self.name, changes, self._parts.workflows.enqueue)
        )

    async def resume(self, *, max_cost: float | None = None) -> BatchStatus:
        """Go on with the batch where it stands, and return when every order has come to its end."""
        await self.go_on(max_cost=max_cost)
        return await self.finished()

    async def gone(self) -> list[str]:
        """Name the executors that are gone and hold orders of the batch, which wait until they are back or adopted."""
        with told_apart():
            holders = await run_sync(self._parts.workflows.holders, self.name)
        alive = self._parts.presence.alive
        return [executor for executor in sorted(holders) if await alive(executor=executor) is None]

    async def retry_failed(self) -> int:
        """Order anew, under new keys, what certainly failed: runs that FLORA gave up, orders that it refused.

        What is unknown may have been paid for, and is not ordered anew: its run is looked for once more. Returns how
        many orders are worked on again; ``resume`` waits for them.
        """
        await self._reopen_queue()
        return await self._ledger.ask(
            lambda connection: _storing.order_anew(connection, self.name, self._parts.workflows.enqueue)
        )

    async def note_files(self, index: int, files: Sequence[str]) -> None:
        """Write down where the outputs of an order were saved."""
        await self._ledger.saved(self.name, index, msgspec.json.encode(list(files)).decode())

    async def status(self) -> BatchStatus:
        """Say how the batch stands, on all machines together."""
        found = await self._ledger.ask(lambda connection: _storing.statuses(connection, self.name))
        if not found:
            raise errors.ConfigurationError(f"there is no batch {self.name!r} in this database")
        return found[0]

    async def finished(self) -> BatchStatus:
        """Wait until every order has come to its end, or the batch is stopped and nothing runs here any more."""
        while not self.is_over(status := await self.status()):  # noqa: ASYNC110 - other machines work on it too
            await asyncio.sleep(LOOK)
        if status.finished:
            await self._parts.workflows.close_queue(self.name)
        return status

    def is_over(self, status: BatchStatus) -> bool:
        """Say whether nothing more will become of the batch by itself."""
        idle = not self._parts.fulfilling.under_way[self.name] or self._parts.fulfilling.trouble is not None
        return status.finished or (status.stopped is not None and idle)

    def results(self, *, as_finished: bool = False) -> BatchOutcomes:
        """Hand out what became of each order, in their order or in that of their ends: ``async for outcome in ...``.

        What has no end yet is waited for, unless the batch is stopped; then it is left out.
        """
        return BatchOutcomes(self, self._ledger, as_finished=as_finished)


class BatchOutcomes:
    """What became of the orders of a batch: iterate over it with ``async for``."""

    def __init__(self, batch: Batch, ledger: Ledger, *, as_finished: bool) -> None:
        self._batch = batch
        self._ledger = ledger
        self._as_finished = as_finished
        self._place = 0
        self._ahead: deque[Item] = deque()
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchOutcome:
        while not self._ahead:
            if self._over and not await self._look(last=True):
                raise StopAsyncIteration
            if not self._over and not await self._look(last=False):
                self._over = self._batch.is_over(await self._batch.status())
                if not self._over:
                    await asyncio.sleep(LOOK)
        return _outcome(self._ahead.popleft())

    async def _look(self, *, last: bool) -> bool:
        """Read on; false if there is nothing to be handed out, or at *last* nothing more at all."""
        name = self._batch.name
        if self._as_finished:
            found = await self._ledger.ended(name, self._place, PAGE)
            self._ahead.extend(found)
            self._place = max((item.place or 0 for item in found), default=self._place)
            return bool(found)
        page = await self._ledger.page(name, self._place, PAGE)
        for item in page:
            if item.state in ENDED:
                self._ahead.append(item)
            elif not last:
                break
            self._place = item.number + 1
        return bool(page) if last else bool(self._ahead)


def _outcome(item: Item) -> BatchOutcome:
    order = _order.decode(item.body)
    ending = _plain.read_ending(item.ending or "{}")
    return BatchOutcome(
        index=item.number,
        order=order,
        columns=msgspec.json.decode(item.columns) if item.columns else {},
        key=item.key,
        run=ending.run,
        error=None if ending.error is None else _plain.revive(ending.error, order, item.key),
        state=item.state,
        cost=item.cost,
        files=tuple(msgspec.json.decode(item.files)) if item.files else (),
    )


async def _plainly(
    orders: Iterable[Order] | AsyncIterable[Order],
) -> AsyncIterable[tuple[Order, Mapping[str, Any]]]:
    number = 0
    if isinstance(orders, AsyncIterable):
        async for order in orders:
            yield _checked(order, number), {}
            number += 1
    else:
        for order in orders:
            yield _checked(order, number), {}
            number += 1


def _checked(order: object, number: int) -> Order:
    if not isinstance(order, Order):
        raise errors.ConfigurationError(f"order {number}: a batch takes Orders, not {type(order).__name__}")
    order = Order(**_wire.order_fields(order))
    try:
        _wire.check_order(_ORIGIN, order)
    except errors.ConfigurationError as error:
        raise errors.ConfigurationError(f"order {number}: {error}") from None
    return order


def _checked_rate(rate: float | None) -> float | None:
    return None if rate is None else check_seconds("rate", rate)
