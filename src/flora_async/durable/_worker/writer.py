"""Changes of orders, written together: all that wait for the database share the next transaction."""

from __future__ import annotations

import asyncio
from functools import partial

from flora_async.durable._store import orders
from flora_async.durable._store.database import Database
from flora_async.durable._store.orders import Change
from flora_async.errors import DatabaseError


class ChangeWriter:
    """Writes changes of orders in groups."""

    def __init__(self, database: Database, process: str) -> None:
        self._database = database
        self._process = process
        self._pending: list[tuple[Change, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, change: Change) -> bool:
        """Record a new state of an order; false if it was decided elsewhere."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        self._pending.append((change, answer))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._write())
        return await answer

    async def flush(self) -> None:
        """Wait until all changes are written."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _write(self) -> None:
        while self._pending:
            group, self._pending = self._pending, []
            apply = partial(orders.apply_all, changes=[change for change, _ in group], process=self._process)
            try:
                answers = await self._database.write(apply)
            except DatabaseError as error:
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(error)
                        answer.exception()  # its caller may be gone
                continue
            for (_, answer), done in zip(group, answers, strict=True):
                if not answer.done():
                    answer.set_result(done)
