"""The tables of a database of batches. The cost and the state of an order are in its row: all sums follow from them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import sqlalchemy as sa

from flora_async import errors

State: TypeAlias = Literal["waiting", "sending", "running", "completed", "failed", "refused", "unknown", "skipped"]
IN_FLIGHT: tuple[State, ...] = ("sending", "running")
ENDED: tuple[State, ...] = ("completed", "failed", "refused", "unknown", "skipped")

SCHEMA_VERSION = 8
NAME_LOCK = 0x666C6F7261
"""Key of a PostgreSQL advisory lock."""

_schema = sa.MetaData()

versions = sa.Table("flora_schema", _schema, sa.Column("version", sa.Integer, primary_key=True))

batches = sa.Table(
    "flora_batches",
    _schema,
    sa.Column("id", sa.Text, primary_key=True),  # part of the batch's idempotency keys
    sa.Column("name", sa.Text, unique=True),  # NULL until all its orders are stored
    sa.Column("storer", sa.Text, nullable=False),  # the process that stores the orders
    sa.Column("digest", sa.Text, nullable=False),  # of all orders
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("stopped", sa.Text),  # why no order is begun
    sa.Column("max_cost", sa.Float),
    sa.Column("settled", sa.Text),  # costs of the orders before the first one that has not ended
    sa.Column("next_start", sa.Float),  # when the rate allows the next order, by the database's clock
)

orders = sa.Table(
    "flora_orders",
    _schema,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),  # how often it was requeued under a new key
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("columns", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),  # the process that works on it
    sa.Column("sent", sa.Float),  # Unix seconds, stored before the first byte is sent
    sa.Column("run_id", sa.Text, unique=True),
    sa.Column("earlier_runs", sa.Text),  # the runs of its earlier attempts, separated by spaces
    sa.Column("recovered", sa.Boolean),
    sa.Column("quoted", sa.Float),
    sa.Column("charged", sa.Float),
    sa.Column("ended", sa.Float),  # by the database's clock
    sa.Column("outcome", sa.Text),
    sa.Column("files", sa.Text),
    sa.Column("not_before", sa.Float),  # when an order whose run failed is sent again, by the database's clock
    sa.Column("attempts", sa.Text),  # the failures after which it was ordered again
    sa.Column("charged_before", sa.Float),  # USD that FLORA charged for failed attempts
    sa.Index(
        "flora_orders_by_state",
        *("batch", "state", "number", "kind", "model", "quoted", "charged", "charged_before", "not_before"),
    ),
    sa.Index("flora_orders_by_end", "batch", "ended", "number"),
    sa.Index(
        "flora_orders_with_earlier_runs",
        *("batch", "number"),
        sqlite_where=sa.text("earlier_runs IS NOT NULL"),
        postgresql_where=sa.text("earlier_runs IS NOT NULL"),
    ),
)

workers = sa.Table(
    "flora_workers",
    _schema,
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("executor", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),  # by the database's clock
)

files = sa.Table(
    "flora_files",
    _schema,
    sa.Column("workspace", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),  # SHA-256 of the bytes
    sa.Column("url", sa.Text, nullable=False),
)

allowances = sa.Table(
    "flora_allowances",
    _schema,
    sa.Column("base_url", sa.Text, primary_key=True),
    sa.Column("state", sa.LargeBinary),  # of the rate limit that the workers share; NULL without one
)


def create_tables(connection: sa.Connection) -> None:
    """Create the tables if they are missing; refuse those of another version."""
    hold_name_lock(connection)
    if sa.inspect(connection).has_table(versions.name):
        version = connection.scalar(sa.select(versions.c.version))
    else:
        version = 1 if has_tables(connection) else None
    if version is None:
        _schema.create_all(connection)
        connection.execute(sa.insert(versions).values(version=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        raise errors.ConfigurationError(
            f"the database has batches of another version of flora-async (schema {version}, this one reads "
            f"{SCHEMA_VERSION}): use another database, or finish those batches with that version"
        )


def has_tables(connection: sa.Connection) -> bool:
    """Return whether the database can hold batches."""
    return sa.inspect(connection).has_table(batches.name)


def hold_name_lock(connection: sa.Connection) -> None:
    """Wait until no other transaction creates tables or names a batch; each writer of SQLite is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(NAME_LOCK)))
