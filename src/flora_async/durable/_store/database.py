"""One database: transactions that exclude other writers, run in threads, and repeated while the database is away."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc

from flora_async._aio import run_in_thread
from flora_async.durable._store import schema
from flora_async.errors import ConfigurationError, DatabaseError, FloraError

T = TypeVar("T")

_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}

Waiting: TypeAlias = tuple[Callable[[sa.Connection], object], asyncio.Future[Any]]
"""A change that waits for its transaction, and its caller's future."""

log = logging.getLogger("flora_async")

_LIVING = "(SELECT process FROM flora_workers WHERE seen > NOW() - 15)"
_IN_FLIGHT = "batch IN (SELECT id FROM flora_batches) AND state IN ('sending', 'running')"
"""It lists the batches, so that an index finds these orders: a scan of a million takes a second."""

DEFAULT_DATABASE = "sqlite:///flora-batch.db"
BUSY_SECONDS = 30
"""Seconds for which a SQLite writer waits for the others."""
OUTAGE_PAUSE = 1.0
OUTAGE_TIMEOUT = 3600.0
"""Seconds for which a transaction is repeated while the database is away."""
_PERMANENT = ("no such ", "file is not a database")
"""Errors of SQLite that do not pass. A file that cannot be written or opened at present is not among them: the process
holds runs that it has not recorded."""
_PASSING_SQLSTATES = ("08", "40", "53", "55", "57", "58")
"""Classes of PostgreSQL errors that end by themselves or by an operator: connection, conflict, resources, shutdown."""


CLOSE_TIMEOUT = 10.0
"""Seconds for which closing waits for writes."""


def execute(connection: sa.Connection, sql: str, **values: object) -> int:
    """Run a statement, and return the number of changed rows.

    ``NOW()`` in it is the database's clock in Unix seconds, ``LIVING()`` the processes that are alive, ``IN_FLIGHT()``
    the condition of orders in flight. ``FOR UPDATE`` counts on PostgreSQL, in transactions that write.
    """
    return connection.execute(prepare(connection, sql), values).rowcount


def select(connection: sa.Connection, sql: str, **values: object) -> list[Any]:
    """Return the rows of a query."""
    return list(connection.execute(prepare(connection, sql), values))


def prepare(connection: sa.Connection, sql: str) -> sa.TextClause:
    """Return a statement in the dialect of a connection; it is compiled once."""
    locks = connection.dialect.name == "postgresql" and connection.get_execution_options()["writes"]
    return _prepare(sql if locks else sql.partition("FOR UPDATE")[0], connection.dialect.name)


@cache
def _prepare(sql: str, dialect: str) -> sa.TextClause:
    sql = sql.replace("LIVING()", _LIVING).replace("IN_FLIGHT()", _IN_FLIGHT)
    return sa.text(sql.replace("NOW()", _CLOCKS[dialect]))


class Database:
    """The transactions of one process on a database. All writes that wait share the next transaction."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        self.url: str = without_password(url)
        self.trouble: str | None = None
        """Why the database cannot be used at present."""
        self.outages: int = 0
        """Number of transactions that failed, those that were repeated included: their changes may have been made."""
        self._opened = False
        self._pending: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._alone = asyncio.Lock()

    async def open(self, *, create: bool) -> None:
        """Create the tables, or check that there are some. Errors here are not retried."""
        path = self._engine.url.database
        is_file = self._engine.dialect.name == "sqlite"
        if not create and (
            (is_file and not await run_in_thread(Path(str(path)).exists)) or not await self.read(schema.has_tables)
        ):
            raise ConfigurationError(f"there is no batch in {self.url}")
        await self.write(schema.create_tables)
        self._opened = True

    async def close(self) -> None:
        """Close all connections, after the writes that wait."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=CLOSE_TIMEOUT)
            while not self._writing.done():
                self._writing.cancel()  # the first time the current write, then the queued ones
                await asyncio.wait([self._writing], timeout=0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT), self._alone:  # its caller was cancelled
                pass
        await run_in_thread(self._engine.dispose)

    async def read(self, question: Callable[[sa.Connection], T]) -> T:
        """Return the result of a function of a connection, in a transaction that only reads."""
        return await self._run(question, writes=False)

    async def write(self, change: Callable[[sa.Connection], T]) -> T:
        """Return the result of a function of a connection, in a transaction that excludes other SQLite writers.

        Once begun it is made, also if the caller is cancelled, and after the writes before it.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._pending.append((change, answer))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_pending())
        return await answer

    async def write_alone(self, change: Callable[[sa.Connection], T]) -> T:
        """Return the result of a function of a connection, in a transaction for it alone, now."""
        async with self._alone:
            return await self._run(change, writes=True)

    async def _write_pending(self) -> None:
        while self._pending:
            group, self._pending = self._pending, []
            await self._commit(group)

    async def _commit(self, group: list[Waiting]) -> None:
        try:
            results = await self._run(lambda c: [_result_of(change, c) for change, _ in group], writes=True)
        except DatabaseError as error:
            if len(group) > 1 and self.trouble is None:
                for each in group:
                    await self._commit([each])
                return
            results = [error] * len(group)
        except asyncio.CancelledError:
            results = [DatabaseError("the database was closed before the change was made")] * len(group)
        for (_, answer), result in zip(group, results, strict=True):
            if isinstance(result, FloraError) and not answer.done():
                answer.set_exception(result)
            elif not answer.done():  # else its caller was cancelled
                answer.set_result(result)

    async def _run(self, work: Callable[[sa.Connection], T], *, writes: bool) -> T:
        began = time.monotonic()
        while True:
            try:
                done = await run_in_thread(self._transact, work, writes)
            except sa_exc.DBAPIError as error:
                self.outages += 1
                message = f"the database cannot be used: {' '.join(str(error.orig).split())}"
                if not (self._opened and is_outage(error)) or time.monotonic() - began > OUTAGE_TIMEOUT:
                    raise DatabaseError(message) from None
                if self.trouble is None:
                    extra = {"error": type(error).__name__}
                    log.warning("%s. Retrying", message, extra=extra)
                self.trouble = message
                await asyncio.sleep(OUTAGE_PAUSE)
            except sa_exc.SQLAlchemyError as error:
                raise DatabaseError(f"{type(error).__name__}: {error}") from None
            except (OverflowError, UnicodeError, msgspec.MsgspecError) as error:  # of the driver, or of JSON
                raise DatabaseError(f"the database cannot hold a value: {error}") from None
            else:
                self.trouble = None
                return done

    def _transact(self, work: Callable[[sa.Connection], T], writes: bool) -> T:
        with self._engine.connect().execution_options(writes=writes) as connection, connection.begin():
            return work(connection)


def _result_of(change: Callable[[sa.Connection], object], connection: sa.Connection) -> object:
    """Return the result of a change, or its refusal, which leaves the others of its transaction alone."""
    try:
        return change(connection)
    except FloraError as error:
        return error


def is_outage(error: sa_exc.DBAPIError) -> bool:
    """Return whether the same transaction can succeed later: no connection, a lock, no space, a restart."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, sa_exc.OperationalError | sa_exc.InterfaceError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate.startswith(_PASSING_SQLSTATES)
    return not str(error.orig).startswith(_PERMANENT)


def create_engine(url: object) -> sa.Engine:
    """Return an engine for a SQLite file or a PostgreSQL database; nothing is connected yet."""
    like = "sqlite:///flora-batch.db or postgresql://user@host/name"
    if not isinstance(url, str):
        raise ConfigurationError(f"database must be a URL like {like}, not {type(url).__name__}")
    if url.startswith("postgres://"):
        url = url.replace("postgres://", "postgresql://", 1)
    try:
        parsed = sa.make_url(url)
    except (sa_exc.ArgumentError, ValueError):
        raise ConfigurationError(f"database must be a URL like {like}") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        try:
            return sa.create_engine(parsed.set(drivername="postgresql+psycopg"))
        except ImportError:
            raise ConfigurationError(
                "database: PostgreSQL needs the driver psycopg: pip install 'flora-async[durable]'"
            ) from None
    if backend != "sqlite":
        raise ConfigurationError(f"database must be a URL like {like}, not {backend}")
    if not parsed.database or ":memory:" in parsed.database or "mode" in parsed.query:
        raise ConfigurationError(
            f"database must be a SQLite file that survives the process, like {DEFAULT_DATABASE}, not one in memory"
        )
    folder = Path(parsed.database).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"database: there is no folder {folder}")
    engine = sa.create_engine(parsed.set(drivername="sqlite"))
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # sqlite3 would begin a transaction at the first write only, after the reads that decide about it.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    with suppress(sqlite3.OperationalError):  # another process writes; the mode is set by the next connection
        connection.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def without_password(url: str) -> str:
    """Return a database URL that can be shown."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except (sa_exc.ArgumentError, ValueError):
        return "the database"
