"""One batch: stored, resumed, waited for, and the outcomes of its orders."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from flora_async import Budget, CheckParams, Flora, errors
from flora_async._budget import check_budget
from flora_async._inputs import find_files, inputs_of, without_files
from flora_async._validation import check_count, check_seconds, check_usd
from flora_async.durable._files import upload_files
from flora_async.durable._store import batches
from flora_async.durable._store.batches import BatchSettings, BatchStatus, BatchWriter
from flora_async.durable._store.database import Database, execute, select
from flora_async.durable._store.orders import KEEP_RUN, delete_settled, read_costs
from flora_async.durable._store.outcomes import (
    decode_attempts,
    decode_order,
    decode_outcome,
    restore_error,
    store_error,
)
from flora_async.durable._store.schema import ENDED, State
from flora_async.durable._worker.policy import WorkerPolicy
from flora_async.durable._worker.worker import Worker
from flora_async.models import AnyOrder, Run

T = TypeVar("T")

COMMIT_DELAY = 5.0
"""Seconds for which an end can be invisible to others after its time: its transaction is not committed."""


class BatchOutcome(Struct, frozen=True, kw_only=True):
    """The outcome of an order of a batch: :attr:`run` if it completed, else :attr:`error`."""

    index: int
    """Its place in input order, from 0."""
    order: AnyOrder
    columns: Mapping[str, Any]
    """The other columns of its line."""
    key: str
    """The idempotency key under which it was sent."""
    run: Run | None
    error: errors.FloraError | None
    """``None`` also for a skipped order."""
    state: State
    """``completed``, ``failed``, ``refused``, ``unknown`` or ``skipped``."""
    cost: float | None
    """USD that FLORA has charged, else its quote."""
    files: tuple[str, ...] = ()
    """Paths of the saved outputs."""
    attempts: tuple[errors.FloraError, ...] = ()
    """The failed attempts before this one, oldest first: each was ordered again under a new key (``retry_failed``)."""

    @property
    def run_id(self) -> str | None:
        """The id of the run, also of a failed one; ``None`` if no run is known."""
        return self.run.run_id if self.run else self.error.run_id if self.error else None

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types, as a line of the results of ``flora-async batch`` has it."""
        line: dict[str, Any] = {"index": self.index, "state": self.state, "key": self.key, "cost": self.cost}
        line |= {"order": self.order, "columns": self.columns}
        if self.error is not None:
            line["error"] = store_error(self.error)
        elif self.run is not None:
            line["run"] = self.run
        if self.files:
            line["files"] = self.files
        if self.attempts:
            line["attempts"] = [store_error(attempt) for attempt in self.attempts]
        plain: dict[str, Any] = msgspec.to_builtins(line)
        return plain


class Batch:
    """A batch of orders, by its name. It lives in the database; every process there can use it."""

    def __init__(self, database: Database, worker: Worker | None, policy: WorkerPolicy, name: str) -> None:
        self.name = name
        self._policy = policy
        self._database = database
        self._worker = worker

    def __repr__(self) -> str:
        return f"Batch({self.name!r})"

    async def run(
        self,
        orders: Iterable[AnyOrder] | AsyncIterable[AnyOrder],
        *,
        max_cost: float | None = None,
        rate: float | None = None,
        run_timeout: float | None = None,
        retry_failed: int = 0,
        budget: Budget | None = None,
        check_params: CheckParams | None = None,
    ) -> BatchStatus:
        """Order all of it, once, and return when every order has ended.

        All orders are checked and stored first, or none; nothing is ordered before. Files among their inputs are
        uploaded before that, each once for a database and workspace, also after a restart. If the batch exists with the
        same orders, nothing is ordered twice: it is resumed, so a service can call this at each start.
        A refusal of the key or of payment (401, 402, 403) stops the batch: see ``status.stopped``. While FLORA or the
        database cannot be used the batch pauses, and continues by itself.

        Args:
            orders: any iterable, or an asynchronous one.
            max_cost: USD; the batch stops before an order that could cost more together with those before, by the
                prices of its type and model so far, on all machines together.
            rate: orders a second, on all machines together.
            run_timeout: seconds from the sending of an order until its run is not waited for any longer. The order
                ends as ``unknown`` with a RunTimeoutError; the run continues at FLORA, and is billed.
            retry_failed: how often an order whose run failed is ordered again, under a new key, by the advice of the
                failure; as in ``generate_many``, also after a restart. ``outcome.attempts`` has the failures.
            budget: the batch takes *max_cost* from it. The share is set aside until this call returns, then replaced by
                the cost of the batch. The database keeps *max_cost*: a batch that is resumed after a crash stays
                within it, and takes the same share from the budget of the new process.
            check_params: as in ``Flora``, whose setting is the default. All orders are compared with their models
                before the first is sent, and not again.

        Raises:
            ConfigurationError: an order cannot be sent, the batch exists with other orders, or *budget* has less than
                *max_cost* left. Nothing was sent.
        """
        share = _check_share(budget, max_cost)
        settings = BatchSettings(
            rate=None if rate is None else check_seconds("rate", rate),
            run_timeout=None if run_timeout is None else check_seconds("run_timeout", run_timeout),
            retry_failed=check_count("retry_failed", retry_failed, least=0),
        )
        if share is not None:
            share.take_share(self._share_name, max_cost or 0.0)
        try:
            await self.add(_without_columns(orders), max_cost=max_cost, settings=settings, check_params=check_params)
        except errors.ConfigurationError:
            if share is not None:
                share.set_share(self._share_name, 0.0)
            raise
        status = await self.finished()
        if share is not None:
            costs = (await self._read(read_costs)).values()
            spent = math.fsum(kind.charged for kind in costs)
            share.set_share(self._share_name, math.fsum(kind.expected for kind in costs), spent)
        return status

    @property
    def _share_name(self) -> str:
        return f"{self._database.url}#{self.name}"

    async def add(
        self,
        orders: AsyncIterable[tuple[AnyOrder, Mapping[str, Any]]],
        *,
        max_cost: float | None = None,
        settings: BatchSettings | None = None,
        check_params: CheckParams | None = None,
    ) -> None:
        """Store orders, each with its other columns, and let every worker on the database work on them."""
        database, worker = self._database, self._worker
        if worker is None:
            raise errors.ConfigurationError("these batches have no client to order with: open Batches(flora, ...)")
        money = None if max_cost is None else check_usd("max_cost", max_cost)
        mode = worker.flora.check_params if check_params is None else check_params
        sql = "SELECT 1 FROM flora_batches WHERE name = :name"
        exists = bool(await database.read(lambda c: select(c, sql, name=self.name)))
        if exists:
            mode = "off"  # a stored batch continues, also if the list of models has changed since
        writer = BatchWriter(self.name, worker.process)
        await database.write(writer.begin)
        try:
            await self._store_all(worker.flora, writer, orders, mode)
        except BaseException as error:
            await database.write(lambda c: batches.delete(c, writer.id))
            if exists and isinstance(error, errors.ConfigurationError):  # a file may have been deleted since
                raise errors.ConfigurationError(
                    f"{error}. A batch {self.name!r} is stored: resume() continues it without these orders"
                ) from None
            raise
        if not writer.total:
            await database.write(lambda c: batches.delete(c, writer.id))
            raise errors.ConfigurationError("there are no orders")
        named = await database.write(lambda c: writer.finish(c, settings or BatchSettings(), money))
        if named == "differs":
            raise errors.ConfigurationError(
                f"the batch {self.name!r} exists and has other orders: choose another name for these"
            )
        if named == "exists":
            await self.resume(max_cost=max_cost, wait=False)
        worker.wake()

    async def _store_all(
        self,
        flora: Flora,
        writer: BatchWriter,
        orders: AsyncIterable[tuple[AnyOrder, Mapping[str, Any]]],
        mode: CheckParams,
    ) -> None:
        page: list[tuple[AnyOrder, Mapping[str, Any]]] = []
        async for order, columns in orders:
            page.append((await _check_order(flora, order, writer.total + len(page), mode), columns))
            if len(page) == batches.STORE_PAGE:
                await self._store(flora, writer, page)
                page = []
        if page:
            await self._store(flora, writer, page)

    async def _store(self, flora: Flora, writer: BatchWriter, page: list[tuple[AnyOrder, Mapping[str, Any]]]) -> None:
        """Store orders, with URLs in the place of files."""
        checked = [order for order, _ in page]
        if any(find_files(inputs_of(order)) for order in checked):
            checked = await upload_files(flora, self._database, checked)
        rows = [writer.row(order, columns) for order, (_, columns) in zip(checked, page, strict=True)]
        await self._database.write(partial(batches.insert_orders, rows=rows))

    async def _read(self, question: Callable[..., T]) -> T:
        """Return the result of a function of a connection and ``batch``, the id."""
        return await self._database.read(lambda c: question(c, batch=batches.find(c, self.name)))

    async def _change(self, change: Callable[..., T]) -> T:
        """Make a change, as a function of a connection and ``batch``, the id."""
        changed = await self._database.write(lambda c: change(c, batch=batches.find(c, self.name)))
        if self._worker is not None:
            self._worker.wake()
        return changed

    async def settings(self) -> BatchSettings:
        """Return the settings of the batch."""
        (row,) = await self._read(partial(select, sql="SELECT settings FROM flora_batches WHERE id = :batch"))
        return msgspec.json.decode(row.settings, type=BatchSettings)

    async def resume(self, *, max_cost: float | None = None, wait: bool = True) -> BatchStatus:
        """Continue the batch where it stands, stopped or not, and return when every order has ended."""
        money = None if max_cost is None else check_usd("max_cost", max_cost)
        sql = "UPDATE flora_batches SET stopped = NULL, max_cost = coalesce(:max_cost, max_cost) WHERE id = :batch"
        await self._change(partial(execute, sql=sql, max_cost=money))
        return await self.finished() if wait else await self.status()

    async def cancel(self) -> None:
        """Send no more orders, on any machine. Runs that were started are waited for; ``resume`` continues."""
        await self._change(partial(batches.stop, reason="cancelled"))

    async def skip(self, numbers: Iterable[int]) -> int:
        """End orders, by index, without sending them. Return how many: those that were sent are not skipped."""
        sql = (
            "UPDATE flora_orders SET state = 'skipped', ended = NOW() WHERE batch = :batch AND number = :number "
            "AND state = 'waiting'"
        )
        chosen = [check_count("order", number, least=0) for number in numbers]
        return sum(await asyncio.gather(*(self._change(partial(execute, sql=sql, number=each)) for each in chosen)))

    async def delete(self) -> None:
        """Delete the batch and all that is known of its orders.

        Raises:
            ConfigurationError: a living process works on it.
        """
        await self._change(batches.delete_idle)

    async def retry_failed(self) -> int:
        """Queue orders that certainly failed once more, under new keys: failed runs, and orders that FLORA refused.

        An ``unknown`` order may have been billed, and is left as it is. Return the number of queued orders;
        ``resume`` waits for them.
        """
        sql = (
            "UPDATE flora_orders SET state = 'waiting', attempt = attempt + 1, KEEP_RUN, recovered = NULL, "
            "quoted = NULL, charged = NULL, sent = NULL, ended = NULL, outcome = NULL, files = NULL, owner = NULL, "
            "not_before = NULL, attempts = NULL, charged_before = coalesce(charged_before, 0) + coalesce(charged, 0), "
            "key = CAST(:name AS TEXT) || '.' || batch || '.' || CAST(number AS TEXT) || '.' "
            "|| CAST(attempt + 1 AS TEXT) WHERE batch = :batch AND state IN ('failed', 'refused')"
        )

        def requeue(connection: sa.Connection, batch: str) -> int:
            delete_settled(connection, batch)
            return execute(connection, sql.replace("KEEP_RUN", KEEP_RUN), batch=batch, name=self.name)

        count = await self._change(requeue)
        if count:
            await self.resume(wait=False)
        return count

    async def lost_executors(self) -> list[str]:
        """Return the executors that are gone and hold orders, which others take over within seconds."""
        sql = (
            "SELECT DISTINCT owner FROM flora_orders WHERE batch = :batch AND state IN ('sending', 'running') "
            "AND owner IS NOT NULL AND owner NOT IN LIVING()"
        )
        return sorted({row.owner.rpartition("/")[0] for row in await self._read(partial(select, sql=sql))})

    async def record_files(self, index: int, files: Sequence[str]) -> None:
        """Record where the outputs of an order were saved."""
        sql = "UPDATE flora_orders SET files = :files WHERE batch = :batch AND number = :number"

        def record(connection: sa.Connection, batch: str) -> None:
            paths = msgspec.json.encode(list(files)).decode()  # a name in no encoding fails like any other value
            execute(connection, sql, batch=batch, files=paths, number=index)

        await self._change(record)

    async def status(self) -> BatchStatus:
        """Return where the batch stands, on all machines together."""
        return (await self._read(batches.list_statuses))[0]

    async def finished(self) -> BatchStatus:
        """Wait until every order has ended, or the batch is stopped and this process works on none of its orders."""
        while not await self.is_finished():  # noqa: ASYNC110 - other machines work on it too
            await asyncio.sleep(self._policy.read_interval)
        return await self.status()

    async def is_finished(self) -> bool:
        """Return whether nothing more happens to the batch by itself.

        Raises:
            ClientClosedError: the batch has not ended, and the client of this process was closed.
        """
        sql = (
            "SELECT id, stopped, EXISTS (SELECT 1 FROM flora_orders WHERE batch = :batch "
            "AND state IN ('waiting', 'sending', 'running')) AS unfinished FROM flora_batches WHERE id = :batch"
        )
        (row,) = await self._read(partial(select, sql=sql))
        if row.unfinished and self._worker is not None and self._worker.is_client_closed:
            raise errors.ClientClosedError(
                f"cannot continue {self.name!r}: its client was closed. Leave the block of Batches(flora) first"
            )
        in_hand = self._worker is not None and self._worker.in_hand[row.id] > 0
        return not row.unfinished or (row.stopped is not None and not in_hand)

    def results(self, *, as_finished: bool = False) -> BatchOutcomes:
        """Yield the outcome of each order, in input order or in completion order: ``async for outcome in ...``.

        Orders that have not ended are waited for, unless the batch is stopped; then they are left out.
        """
        return BatchOutcomes(self, self._read, self._policy.read_interval, as_finished=as_finished)


class BatchOutcomes:
    """The outcomes of the orders of a batch: iterate over it with ``async for``. One task at a time."""

    def __init__(
        self,
        batch: Batch,
        read: Callable[[Callable[..., list[Any]]], Awaitable[list[Any]]],
        interval: float,
        *,
        as_finished: bool,
    ) -> None:
        self._batch = batch
        self._interval = interval
        self._read = read
        self._as_finished = as_finished
        self._place = 0
        self._seen: set[int] = set()
        self._latest = 0.0
        self._next_rows: deque[sa.Row[Any]] = deque()
        self._over = False
        self._reading = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchOutcome:
        async with self._reading:
            while not self._next_rows:
                over = self._over
                await (self._read_latest() if self._as_finished and not over else self._read_next(last=over))
                if not self._next_rows:
                    if over:
                        raise StopAsyncIteration
                    self._over = await self._batch.is_finished()
                    if not self._over:
                        await asyncio.sleep(self._interval)
            return _to_outcome(self._next_rows.popleft())

    async def _read_next(self, *, last: bool) -> None:
        """Read orders in input order up to the first that has not ended; *last*: pass over those."""
        while not self._next_rows:
            sql = "SELECT * FROM flora_orders WHERE batch = :batch AND number >= :first ORDER BY number LIMIT 500"
            page = await self._read(partial(select, sql=sql, first=self._place))
            for row in page:
                if row.state not in ENDED and not last:
                    return
                if row.state in ENDED and row.number not in self._seen:
                    self._next_rows.append(row)
                self._place = row.number + 1
            if not page:
                return

    async def _read_latest(self) -> None:
        """Read orders in completion order, and again those that ended lately."""
        sql = (
            "SELECT * FROM flora_orders WHERE batch = :batch AND (ended, number) > (:ended, :number) "
            "ORDER BY ended, number LIMIT 500"
        )
        ended, number = self._latest - COMMIT_DELAY, -1
        while not self._next_rows and (page := await self._read(partial(select, sql=sql, ended=ended, number=number))):
            self._next_rows.extend(row for row in page if row.number not in self._seen)
            self._seen.update(row.number for row in page)
            ended, number = page[-1].ended, page[-1].number
            self._latest = max(self._latest, ended)


def _to_outcome(row: sa.Row[Any]) -> BatchOutcome:
    order, outcome = decode_order(row.body), decode_outcome(row.outcome)
    return BatchOutcome(
        index=row.number,
        order=order,
        columns=msgspec.json.decode(row.columns) if row.columns else {},
        key=row.key,
        run=outcome.run,
        error=None if outcome.error is None else restore_error(outcome.error, order, row.key),
        state=row.state,
        cost=_add(row.quoted if row.charged is None else row.charged, row.charged_before),
        files=tuple(msgspec.json.decode(row.files)) if row.files else (),
        attempts=tuple(restore_error(each, order, row.key) for each in decode_attempts(row.attempts)),
    )


async def _without_columns(
    orders: Iterable[AnyOrder] | AsyncIterable[AnyOrder],
) -> AsyncIterable[tuple[AnyOrder, Mapping[str, Any]]]:
    if isinstance(orders, AsyncIterable):
        async for order in orders:
            yield order, {}
    else:
        for order in orders:
            yield order, {}


def _add(cost: float | None, before: float | None) -> float | None:
    return cost + before if cost is not None and before else cost


def _check_share(budget: object, max_cost: float | None) -> Budget | None:
    share = check_budget(budget)
    if share is not None and max_cost is None:
        raise errors.ConfigurationError("budget needs max_cost: a batch takes that many USD from it. Pass max_cost=...")
    return share


async def _check_order(flora: Flora, order: object, number: int, mode: CheckParams) -> AnyOrder:
    if not isinstance(order, AnyOrder):
        raise errors.ConfigurationError(f"order {number}: a batch takes Orders, not {type(order).__name__}")
    try:
        checked = flora.generations.validate(order)
        if checked.endpoint is not None:  # an order without a model is accepted
            await flora.models.check_order(without_files(checked), mode)
    except errors.ConfigurationError as error:
        numbered = errors.ConfigurationError(f"order {number}: {error}")
        numbered.fields = error.fields
        raise numbered from None
    return checked
