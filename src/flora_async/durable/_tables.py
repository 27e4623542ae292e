"""The database: where it is, and the tables that stand in it beside DBOS's own."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from dbos import error as dbos_error
from sqlalchemy import event
from sqlalchemy import exc as sa_exc

from flora_async import errors
from flora_async.errors import DatabaseError

DEFAULT_DATABASE = "sqlite:///flora-batch.db"
BUSY_SECONDS = 30
"""For how long a writer waits for the others."""

_schema = sa.MetaData()

batches = sa.Table(
    "flora_batches",
    _schema,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, nullable=False),  # makes its keys its own
    sa.Column("digest", sa.Text, nullable=False),  # of its orders
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("chunk", sa.Integer, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),  # how often failed orders were ordered anew
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("stopped", sa.Text),  # why nothing more is ordered
    sa.Column("max_cost", sa.Float),
    sa.Column("spent", sa.Float, nullable=False),
    sa.Column("dearest", sa.Float),
    sa.Column("sending", sa.Integer, nullable=False),  # creates that have not said what they cost
    sa.Column("endings", sa.Integer, nullable=False),  # how many items have ended, each time they did
)

items = sa.Table(
    "flora_items",
    _schema,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("columns", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),  # the process that has sent it
    sa.Column("sent", sa.Float),  # Unix seconds; stored before the first byte goes out
    sa.Column("run_id", sa.Text),
    sa.Column("recovered", sa.Boolean),
    sa.Column("cost", sa.Float),
    sa.Column("place", sa.Integer),  # among those that have ended
    sa.Column("ending", sa.Text),
    sa.Column("files", sa.Text),
    sa.Index("flora_items_by_state", "batch", "state", "cost"),
    sa.Index("flora_items_by_place", "batch", "place"),
    sa.Index("flora_items_by_run", "run_id"),
)

processes = sa.Table(
    "flora_processes",
    _schema,
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("executor", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),  # by the database's clock
)


@contextmanager
def told_apart() -> Generator[None]:
    """Turn the errors of what lies below into ours."""
    try:
        yield
    except sa_exc.DBAPIError as error:  # its own text holds what was to be written
        raise DatabaseError(f"the database says: {error.orig}") from None
    except (sa_exc.SQLAlchemyError, dbos_error.DBOSException) as error:
        raise DatabaseError(f"{type(error).__name__}: {error}") from None


def open_database(url: str) -> sa.Engine:
    """Give an engine for a SQLite file or a PostgreSQL database; nothing is connected yet."""
    try:
        parsed = sa.make_url(url)
    except sa_exc.ArgumentError:
        parsed = None
    backend = parsed.get_backend_name() if parsed is not None else None
    if parsed is None or backend not in ("sqlite", "postgresql") or (backend == "sqlite" and not parsed.database):
        raise errors.ConfigurationError(
            "database must be like sqlite:///flora-batch.db or postgresql://user@host/name"
        ) from None
    if backend == "postgresql":
        return sa.create_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=10, pool_pre_ping=True)
    folder = Path(str(parsed.database)).absolute().parent
    if not folder.is_dir():
        raise errors.ConfigurationError(f"database: there is no folder {folder}")
    engine = sa.create_engine(parsed)
    event.listen(engine, "connect", _set_up)
    return engine


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    # As DBOS opens its own; with a log that is written ahead, readers and the writer do not wait for each other.
    connection.isolation_level = "IMMEDIATE"
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")
    with suppress(sqlite3.OperationalError):  # somebody writes, which SQLite does not wait for: the next one asks again
        connection.execute("PRAGMA journal_mode=WAL")
    if sqlite3.sqlite_version_info < (3, 42):  # from which on it can tell what DBOS asks for: the time to a millisecond
        connection.create_function("unixepoch", 1, _unixepoch)


def _unixepoch(_modifier: str) -> float:
    return time.time()


def without_password(url: str) -> str:
    """Write a database's address so that others may see it."""
    return sa.make_url(url).render_as_string(hide_password=True)


def create_tables(engine: sa.Engine) -> None:
    """Make the tables, if need be; another process may do so at the same time."""
    try:
        _schema.create_all(engine)
    except (sa_exc.IntegrityError, sa_exc.ProgrammingError, sa_exc.OperationalError):
        _schema.create_all(engine)


def has_tables(engine: sa.Engine) -> bool:
    """Say whether a batch can be there; a SQLite file that is not there is not made."""
    name = engine.url.database
    if engine.dialect.name == "sqlite" and name is not None and name != ":memory:" and not Path(name).exists():
        return False
    return sa.inspect(engine).has_table(batches.name)


def clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Give the time that all processes on a database share, in Unix seconds."""
    if engine.dialect.name == "sqlite":  # one machine
        return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Float)
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float)
