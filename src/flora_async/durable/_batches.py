"""The batches of a database, and this process among those that work on them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, Mapping
from typing import Any, ClassVar, Self

from flora_async import Flora, PollFactory
from flora_async._validation import check_count, check_text
from flora_async.durable._batch import Batch
from flora_async.durable._store import batches, orders
from flora_async.durable._store.allowance import StoredAllowance
from flora_async.durable._store.batches import BatchStatus, BatchWriter
from flora_async.durable._store.database import DEFAULT_DATABASE, Database
from flora_async.durable._worker.policy import WorkerPolicy
from flora_async.durable._worker.worker import Worker
from flora_async.models import AnyOrder, PriceHistory

CONCURRENCY = 1000


class Batches:
    """The batches of a database, and one process that works on them: ``async with Batches(flora) as batches:``.

    Leaving the block waits for creates in flight, 10 seconds at most. Runs continue at FLORA, and the orders in flight
    are left to other processes on the database, or to the next start. A process that is killed, or gives no sign of
    life for 15 seconds, has its orders taken over by those that live.

    All processes on the database share FLORA's rate limit: a 429 of one slows all, and together they send what one
    would. For that, *flora* gets an :attr:`~flora_async.Flora.allowance` until the block is left, if it has none.

    Args:
        flora: carries all requests, and stays open until the block is left. ``None``: look at batches and change them,
            and work on none; the database must exist.
        database: ``sqlite:///file.db`` for one machine, ``postgresql://user@host/name`` for several.
        executor: a name for this process, shown to people. By default the name of the machine.
        concurrency: maximum number of orders in flight from this process.
        poll: returns a wait generator for each run, as for :class:`~flora_async.Flora`.
        only: work on this batch only.

    Raises:
        ConfigurationError: the database cannot be right, or holds batches of another version.
        DatabaseError: the database cannot be used.
    """

    _policy: ClassVar[WorkerPolicy] = WorkerPolicy()

    def __init__(
        self,
        flora: Flora | None,
        *,
        database: str = DEFAULT_DATABASE,
        executor: str | None = None,
        concurrency: int = CONCURRENCY,
        poll: PollFactory | None = None,
        only: str | None = None,
    ) -> None:
        check_count("concurrency", concurrency, least=1)
        name = (
            (socket.gethostname() or "executor") if executor is None else check_text("executor", executor, longest=100)
        )
        self._flora = flora
        self._database = Database(database)
        self._allowance = StoredAllowance(self._database)
        self._worker = (
            None if flora is None else Worker(flora, self._database, self._policy, name, concurrency, poll, only)
        )

    async def __aenter__(self) -> Self:
        try:
            await self._database.open(create=self._worker is not None)
            if self._worker is not None:
                await self._worker.start()
            if self._flora is not None and self._flora.allowance is None:
                self._flora.allowance = self._allowance
        except BaseException:
            await self._database.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Send nothing more, and leave the orders in flight to others."""
        try:
            if self._worker is not None:
                await self._worker.close()
        finally:
            if self._flora is not None and self._flora.allowance is self._allowance:
                self._flora.allowance = None
            await self._database.close()

    def __getitem__(self, batch: str) -> Batch:
        """Return a batch by its name; it need not exist."""
        return Batch(self._database, self._worker, self._policy, batches.check_batch_name(batch))

    async def statuses(self) -> list[BatchStatus]:
        """Return where all batches stand, oldest first."""
        return await self._database.read(batches.list_statuses)

    async def find_same_orders(
        self, total: int, orders: AsyncIterable[tuple[AnyOrder, Mapping[str, Any]]]
    ) -> str | None:
        """Return the name of an unfinished batch of the same *total* orders, each with its other columns."""
        if not await self._database.read(lambda c: batches.find_unfinished(c, total)):
            return None
        writer = BatchWriter("", "")
        async for order, columns in orders:
            writer.row(order, columns)
        return await self._database.read(lambda c: batches.find_unfinished(c, total, writer.digest))

    async def past_costs(self) -> dict[tuple[str, str | None], PriceHistory]:
        """Return the charges of completed runs by type and model: the ``past`` of ``flora.estimate``."""
        return await self._database.read(batches.past_costs)

    async def reassign(self, executor: str) -> int:
        """Release the orders of an executor that is lost, without waiting for 15 s; return their number.

        Raises:
            ConfigurationError: it was seen within the last 7 seconds.
        """
        return await self._database.write(lambda c: orders.reassign(c, executor))

    @property
    def trouble(self) -> str | None:
        """Why this process cannot order at present; it continues by itself."""
        return self._database.trouble or (None if self._worker is None else self._worker.processor.trouble)


async def reassign(database: str, executor: str) -> int:
    """Release the orders of an executor that is lost, and return their number; see :meth:`Batches.reassign`."""
    async with Batches(None, database=database) as batches:
        return await batches.reassign(executor)


adopt = reassign
"""The earlier name of :func:`reassign`."""
