"""The rate limit that the workers of a database share: one row for each API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from flora_async.durable._store.database import Database, execute, select


class StoredAllowance:
    """An :class:`~flora_async.Allowance` in a database, by its clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def update(self, base_url: str, change: Callable[[bytes | None, float], bytes | None], /) -> None:
        """Change the row in a transaction of its own: in one with other changes, two workers could deadlock."""
        await self._database.write_alone(partial(_update, base_url=base_url, change=change))


def _update(connection: sa.Connection, *, base_url: str, change: Callable[[bytes | None, float], bytes | None]) -> None:
    sql = "SELECT state FROM flora_allowances WHERE base_url = :base_url FOR UPDATE"
    rows = select(connection, sql, base_url=base_url)
    if not rows:
        sql_insert = "INSERT INTO flora_allowances (base_url) VALUES (:base_url) ON CONFLICT DO NOTHING"
        execute(connection, sql_insert, base_url=base_url)
        rows = select(connection, sql, base_url=base_url)
    ((now,),) = select(connection, "SELECT NOW()")  # after the row is locked
    state = change(rows[0].state, now)
    if state != rows[0].state:
        sql = "UPDATE flora_allowances SET state = :state WHERE base_url = :base_url"
        execute(connection, sql, state=state, base_url=base_url)
