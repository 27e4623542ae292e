"""Processes that work on a database: alive if seen lately by the database's clock, on whatever machine."""

from __future__ import annotations

import os
import socket

import sqlalchemy as sa

from flora_async.durable._store.schema import IN_FLIGHT, batches, clock, orders, workers
from flora_async.errors import ConfigurationError

BEAT_INTERVAL = 3.0
LOST_AFTER = 15.0
"""Seconds without a sign of life after which other processes take over the orders of a process."""
REASSIGN_AFTER = 7.0
"""Seconds without a sign of life after which the orders of a process can be reassigned by hand."""
FORGET_AFTER = 86_400.0


def beat(connection: sa.Connection, process: str, executor: str) -> None:
    """Record a sign of life."""
    now = clock(connection)
    mine = workers.c.process == process
    if not connection.execute(sa.update(workers).where(mine).values(seen=now)).rowcount:
        row = {"process": process, "executor": executor, "host": socket.gethostname(), "pid": os.getpid()}
        connection.execute(sa.insert(workers).values(**row, seen=now))
        connection.execute(sa.delete(workers).where(workers.c.seen < now - FORGET_AFTER))


def living(connection: sa.Connection) -> sa.ScalarSelect[str]:
    """Return a subquery of the processes that are alive."""
    return sa.select(workers.c.process).where(workers.c.seen > clock(connection) - LOST_AFTER).scalar_subquery()


def remove(connection: sa.Connection, process: str) -> None:
    """Release the orders of a process that ends, and remove it from the workers."""
    held = (orders.c.owner == process, orders.c.state.in_(IN_FLIGHT), orders.c.batch.in_(sa.select(batches.c.id)))
    connection.execute(sa.update(orders).where(*held).values(owner=None))
    connection.execute(sa.delete(workers).where(workers.c.process == process))


def reassign(connection: sa.Connection, executor: str) -> int:
    """Release the orders of an executor that is lost, and return their number."""
    age = (clock(connection) - workers.c.seen).label("age")
    listed = sa.select(workers.c.host, workers.c.pid, age).where(workers.c.executor == executor).order_by(age)
    latest = connection.execute(listed).first()
    if latest is not None and latest.age < REASSIGN_AFTER:
        raise ConfigurationError(
            f"{executor} (host {latest.host}, process {latest.pid}) was seen {latest.age:.0f} s ago: its orders can be "
            f"reassigned after {REASSIGN_AFTER:.0f} s without a sign of life, and are taken over after {LOST_AFTER:.0f}"
        )
    connection.execute(sa.delete(workers).where(workers.c.executor == executor))
    held = orders.c.owner.startswith(f"{executor}/", autoescape=True), orders.c.state.in_(IN_FLIGHT)
    chosen = (*held, orders.c.batch.in_(sa.select(batches.c.id)))
    return connection.execute(sa.update(orders).where(*chosen).values(owner=None)).rowcount
