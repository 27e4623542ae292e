"""The batches of a database, and this process among those that work on them."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

import sqlalchemy as sa
from anyio.to_thread import run_sync

from flora_async import Flora, errors
from flora_async._arguments import check_count, check_text
from flora_async._pacing import PollFactory
from flora_async.durable import _storing, _tables, _workflows
from flora_async.durable._batch import Batch, Parts
from flora_async.durable._fulfilling import Fulfilling
from flora_async.durable._ledger import Ledger
from flora_async.durable._presence import GONE_AFTER, SEEN_EVERY, Presence
from flora_async.durable._storing import BatchStatus
from flora_async.durable._tables import DEFAULT_DATABASE, told_apart
from flora_async.errors import DatabaseError

T = TypeVar("T")

log = logging.getLogger("flora_async")

CONCURRENCY = 1000
CREATES_END = 10.0
"""Seconds for which closing waits for creates that are out."""


def default_executor() -> str:
    """Name this machine's executor."""
    return socket.gethostname() or "executor"


class Batches:
    """The batches of a database, and one process that works on them: ``async with Batches(flora) as batches:``.

    Where this process runs DBOS already, its workflows run there: pass the URL of its system database, and import
    this module before ``DBOS.launch()``. Else DBOS is launched here, and ended with the block. Leaving the block waits
    for creates that are out, 10 seconds at most; runs go on at FLORA, and what was begun can be taken up by others.

    Args:
        flora: carries all requests, and stays open until the block is left.
        database: ``sqlite:///file.db`` for one machine, ``postgresql://user@host/name`` for several.
        executor: the name of this process, the same after a restart: DBOS gives it back what it had begun. Several
            processes have several names. By default the name of the machine.
        concurrency: how many runs this process has under way.
        poll: gives a wait generator for each run, as for :class:`~flora_async.Flora`.
        only: work on no other batch than this.

    Raises:
        DatabaseError: it cannot be used.
    """

    def __init__(
        self,
        flora: Flora,
        *,
        database: str = DEFAULT_DATABASE,
        executor: str | None = None,
        concurrency: int = CONCURRENCY,
        poll: PollFactory | None = None,
        only: str | None = None,
    ) -> None:
        check_count("concurrency", concurrency, least=1)
        name = default_executor() if executor is None else check_text("executor", executor, longest=100)
        self._engine = _tables.open_database(database)
        self._ledger = Ledger(self._engine, f"{name}/{uuid.uuid4().hex}")
        self._presence = Presence(self._ledger, name)
        self._fulfilling = Fulfilling(flora, self._ledger, self._presence, concurrency=concurrency, poll=poll)
        self._workflows = _workflows.Engine(self._engine, database, name, only)
        self._parts = Parts(self._ledger, self._workflows, self._fulfilling, self._presence, concurrency)
        self._alive: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            with told_apart():
                await run_sync(_tables.create_tables, self._engine)
            await self._workflows.start(self._fulfil)
            await self._presence.sign()
        except BaseException:
            await self._workflows.stop()
            await run_sync(self._engine.dispose)
            raise
        self._alive = asyncio.get_running_loop().create_task(self._give_signs())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Order nothing more, and leave what was begun to others."""
        if self._alive is None:
            return
        self._fulfilling.closing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._fulfilling.creates_end.wait(), CREATES_END)
        await self._ledger.settled()
        self._alive.cancel()
        self._alive = None
        try:
            await self._workflows.stop()
            await self._presence.sign_off()
        finally:
            await run_sync(self._engine.dispose)

    async def _give_signs(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY)
            with suppress(DatabaseError):
                await self._presence.sign()

    async def _fulfil(self, batch: str, round: int, first: int, last: int) -> None:
        # DBOS would take an error for the end of it, and orders would be left.
        while True:
            try:
                items = await self._ledger.unended(batch, round, first, last)
                ends = await asyncio.gather(*map(self._fulfilling.fulfil, items), return_exceptions=True)
            except DatabaseError as error:
                ends = [error]
            faults = [end for end in ends if end is not None]
            if not faults:
                return
            log.error("%d orders of %s could not be seen to, they are tried again: %r", len(faults), batch, faults[0])
            await asyncio.sleep(_workflows.FAULT_PAUSE)

    def __getitem__(self, batch: str) -> Batch:
        """Give a batch by its name; whether it exists is found out when it is used."""
        return Batch(self._parts, _storing.check_batch_id(batch))

    async def statuses(self) -> list[BatchStatus]:
        """Say how all batches stand, oldest first."""
        return await self._ledger.ask(_storing.statuses)

    @property
    def trouble(self) -> str | None:
        """What keeps this process from ordering at present; it goes on by itself."""
        return self._fulfilling.trouble


async def ask(database: str, question: Callable[[sa.Connection], T]) -> T:
    """Ask a database about its batches, without taking part in them."""
    engine = _tables.open_database(database)

    def asked() -> T:
        with told_apart():
            if not _tables.has_tables(engine):
                raise errors.ConfigurationError(f"there is no batch in {_tables.without_password(database)}")
            with engine.begin() as connection:
                return question(connection)

    try:
        return await run_sync(asked)
    finally:
        await run_sync(engine.dispose)


async def adopt(database: str, executor: str) -> int:
    """Put what an executor had begun back into its queues, and return how many chunks of orders that are.

    For an executor that is gone for good; one that is started again takes up its own. Nothing runs here: whoever works
    on this database goes on with it.

    Raises:
        ConfigurationError: it is at work: it was seen within the last 15 seconds.
    """
    engine = _tables.open_database(database)
    presence = Presence(Ledger(engine, executor), executor)
    try:
        await ask(database, _storing.statuses)
        seen = await presence.alive(executor=executor)
        if seen is not None:
            raise errors.ConfigurationError(
                f"{executor} was seen {seen:.0f} s ago: only the work of an executor that is gone can be adopted "
                f"({GONE_AFTER:.0f} s after its last sign of life)"
            )
        return await run_sync(_workflows.adopt, engine, executor)
    finally:
        await run_sync(engine.dispose)
