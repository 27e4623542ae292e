"""Which processes work on a database, and which are gone."""

from __future__ import annotations

import os
import socket

import sqlalchemy as sa

from flora_async.durable._ledger import Ledger
from flora_async.durable._tables import clock, processes

SEEN_EVERY = 3.0
GONE_AFTER = 15.0
"""Seconds without a sign of life after which a process is taken to be gone."""


class Presence:
    """The signs of life of a process, and what is seen of the others."""

    def __init__(self, ledger: Ledger, executor: str) -> None:
        self._ask = ledger.ask
        self._engine = ledger.engine
        self._process = ledger.process
        self._executor = executor
        self._host = socket.gethostname()

    async def sign(self) -> None:
        """Give a sign of life."""

        def signed(connection: sa.Connection) -> None:
            now = clock(self._engine)
            mine = processes.c.process == self._process
            if not connection.execute(sa.update(processes).where(mine).values(seen=now)).rowcount:
                row = {"process": self._process, "executor": self._executor, "host": self._host, "pid": os.getpid()}
                connection.execute(sa.insert(processes).values(**row, seen=now))

        await self._ask(signed)

    async def sign_off(self) -> None:
        """Leave."""
        mine = sa.delete(processes).where(processes.c.process == self._process)
        await self._ask(lambda connection: connection.execute(mine))

    async def alive(self, *, process: str | None = None, executor: str | None = None) -> float | None:
        """Say how many seconds ago a process, or any of an executor, was seen; ``None`` if it is gone."""
        chosen = processes.c.process == process if executor is None else processes.c.executor == executor
        age = (clock(self._engine) - processes.c.seen).label("age")
        query = sa.select(processes.c.host, processes.c.pid, age).where(chosen)
        rows = await self._ask(lambda connection: list(connection.execute(query)))
        ages = [row.age for row in rows if row.age < GONE_AFTER and not (row.host == self._host and _is_gone(row.pid))]
        return min(ages, default=None)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
