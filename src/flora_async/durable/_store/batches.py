"""Batches: stored all or none, stopped, resumed, requeued, counted, deleted."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async.durable._store.database import execute, prepare, select
from flora_async.durable._store.schema import IN_FLIGHT, hold_name_lock
from flora_async.models import AnyOrder, PriceHistory

STORE_PAGE = 2000
"""Orders that are stored in one transaction."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


class BatchStatus(Struct, frozen=True, kw_only=True):
    """Where a batch stands, on all machines together."""

    batch: str
    total: int
    waiting: int = 0
    """Orders that were not sent."""
    running: int = 0
    """Orders that were sent, and runs that have not ended."""
    completed: int = 0
    failed: int = 0
    """Runs that failed at FLORA; they are not charged."""
    refused: int = 0
    """Orders that FLORA refused; nothing was started."""
    unknown: int = 0
    """Orders that may have been accepted and billed, with no run, or no end of it, known."""
    skipped: int = 0
    """Orders that were skipped before they were sent."""
    cost: float = 0.0
    """USD that FLORA has charged; the quote of a run that shows no charge yet."""
    stopped: str | None = None
    """Why no order is sent: FLORA's refusal, ``max_cost`` or ``cancelled``."""
    created: float = 0.0
    """Unix seconds."""

    @property
    def ended(self) -> int:
        """Number of orders that have ended, well or not."""
        return self.completed + self.failed + self.refused + self.unknown + self.skipped

    @property
    def finished(self) -> bool:
        """Whether all orders have ended."""
        return self.ended == self.total


class BatchSettings(Struct, frozen=True, omit_defaults=True):
    """Settings of a batch beside its orders, kept for the process that resumes it."""

    out: str | None = None
    """File for the results."""
    as_finished: bool = False
    """Whether the results are in completion order, not in input order."""
    download: str | None = None
    """Folder for the outputs."""
    rate: float | None = None
    """Orders a second, on all machines together."""
    run_timeout: float | None = None
    """Seconds from the sending of an order until its run is not waited for any longer."""
    retry_failed: int = 0
    """How often an order whose run failed is ordered again, by the advice of the failure."""


def check_batch_name(name: object) -> str:
    """Return the name of a batch, or raise ConfigurationError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.ConfigurationError(f"a batch name is 1 to 100 of A-Z a-z 0-9 _ . -, not {name!r}")
    return name


class BatchWriter:
    """Orders on their way into the database, page by page, under an id that is no batch before the last."""

    def __init__(self, name: str, process: str) -> None:
        self.name = name
        self.id: str = secrets.token_hex(6)
        self.total = 0
        self._process = process
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hash of the orders: equal for the same orders only."""
        return self._digest.hexdigest()

    def begin(self, connection: sa.Connection) -> None:
        """Create the id, and delete the orders of processes that ended while they stored some."""
        left = "SELECT id FROM flora_batches WHERE name IS NULL AND storer NOT IN LIVING()"
        for row in select(connection, left):
            delete(connection, row.id)
        sql = (
            "INSERT INTO flora_batches (id, storer, digest, total, settings, created) "
            "VALUES (:id, :storer, '', 0, '{}', :now) ON CONFLICT DO NOTHING"
        )
        execute(connection, sql, id=self.id, storer=self._process, now=time.time())

    def row(self, order: AnyOrder, columns: Mapping[str, Any]) -> dict[str, object]:
        """Return the next order as a row, numbered, with its key."""
        body, extra = msgspec.json.encode(order), msgspec.json.encode(columns) if columns else b""
        self._digest.update(body + b"\n" + extra + b"\n")
        row: dict[str, object] = {"batch": self.id, "number": self.total, "key": f"{self.name}.{self.id}.{self.total}"}
        self.total += 1
        return row | {
            "kind": order.kind,
            "model": order.endpoint,
            "body": body.decode(),
            "columns": extra.decode() or None,
        }

    def finish(
        self, connection: sa.Connection, settings: BatchSettings, max_cost: float | None
    ) -> Literal["stored", "exists", "differs"]:
        """Name the batch, so that it exists; if the name is taken, delete these orders and compare the others."""
        hold_name_lock(connection)
        others = "SELECT digest FROM flora_batches WHERE name = :name AND id <> :id"
        for other in select(connection, others, name=self.name, id=self.id):
            delete(connection, self.id)
            return "exists" if other.digest == self.digest else "differs"
        values = {"name": self.name, "digest": self.digest, "total": self.total, "max_cost": max_cost, "id": self.id}
        values |= {"settings": msgspec.json.encode(settings).decode(), "now": time.time()}
        sql = (
            "UPDATE flora_batches SET name = :name, digest = :digest, total = :total, max_cost = :max_cost, "
            "settings = :settings, created = :now WHERE id = :id"
        )
        execute(connection, sql, **values)
        return "stored"


def insert_orders(connection: sa.Connection, rows: list[dict[str, object]]) -> None:
    """Store a page of orders, once."""
    if connection.dialect.name == "postgresql":  # a tenth of the time of one statement for each row
        sql = (
            "INSERT INTO flora_orders (batch, number, attempt, key, kind, model, body, columns, state) "
            "SELECT batch, number, 0, key, kind, model, body, columns, 'waiting' FROM json_to_recordset("
            "CAST(:rows AS json)) AS page(batch text, number int, key text, kind text, model text, body text, "
            "columns text) ON CONFLICT DO NOTHING"
        )
        execute(connection, sql, rows=msgspec.json.encode(rows).decode())
    else:
        sql = (
            "INSERT INTO flora_orders (batch, number, attempt, key, kind, model, body, columns, state) "
            "VALUES (:batch, :number, 0, :key, :kind, :model, :body, :columns, 'waiting') ON CONFLICT DO NOTHING"
        )
        connection.execute(prepare(connection, sql), rows)


def find(connection: sa.Connection, name: str) -> str:
    """Return the id of a batch; where this transaction writes, no other one changes the batch before its end."""
    for row in select(connection, "SELECT id FROM flora_batches WHERE name = :name FOR UPDATE", name=name):
        return str(row.id)
    raise errors.ConfigurationError(f"there is no batch {name!r} in this database")


def find_unfinished(connection: sa.Connection, total: int, digest: str | None = None) -> str | None:
    """Return the name of an unfinished batch of so many orders, of those with this digest if one is given."""
    sql = (
        "SELECT name FROM flora_batches b WHERE name IS NOT NULL AND total = :total "
        "AND digest = coalesce(:digest, digest) AND EXISTS (SELECT 1 FROM flora_orders WHERE batch = b.id "
        "AND state IN ('waiting', 'sending', 'running'))"
    )
    return next((row.name for row in select(connection, sql, total=total, digest=digest)), None)


def list_statuses(connection: sa.Connection, batch: str | None = None) -> list[BatchStatus]:
    """Return where a batch stands, or each, oldest first."""
    sql = (
        "SELECT id, name, total, stopped, created FROM flora_batches WHERE name IS NOT NULL "
        "AND id = coalesce(:batch, id) ORDER BY created, name"
    )
    found = {
        row.id: BatchStatus(batch=row.name, total=row.total, stopped=row.stopped, created=row.created)
        for row in select(connection, sql, batch=batch)
    }
    # Grouped in the order of an index, and without a join: nothing is sorted.
    sql = (
        "SELECT batch, state, count(*), sum(coalesce(charged, quoted, 0) + coalesce(charged_before, 0)) "
        "FROM flora_orders WHERE batch = :batch GROUP BY batch, state"
    )
    sql = sql.replace("WHERE batch = :batch ", "") if batch is None else sql
    for batch_id, state, count, usd in select(connection, sql, batch=batch):
        if (status := found.get(batch_id)) is not None:  # else it is being stored
            field = "running" if state in IN_FLIGHT else state
            changed = {field: getattr(status, field) + count, "cost": round(status.cost + usd, 6)}
            found[batch_id] = replace(status, **changed)
    return list(found.values())


def is_finished(connection: sa.Connection, batch: str) -> bool:
    """Return whether all orders of a batch have ended."""
    sql = "SELECT 1 FROM flora_orders WHERE batch = :batch AND state IN ('waiting', 'sending', 'running') LIMIT 1"
    return not select(connection, sql, batch=batch)


def stop(connection: sa.Connection, batch: str, reason: str) -> None:
    """Begin no more orders of a batch, on any machine."""
    execute(connection, "UPDATE flora_batches SET stopped = :reason WHERE id = :batch", reason=reason, batch=batch)


def delete_idle(connection: sa.Connection, batch: str) -> None:
    """Delete a batch; refuse while a living process works on some of its orders."""
    sql = (
        "SELECT count(*) FROM flora_orders WHERE batch = :batch AND state IN ('sending', 'running') "
        "AND owner IN LIVING()"
    )
    ((count,),) = select(connection, sql, batch=batch)
    if count:
        raise errors.ConfigurationError(
            f"{count} orders of the batch are in flight: cancel it, and delete it when they ended"
        )
    delete(connection, batch)


def delete(connection: sa.Connection, batch: str) -> None:
    """Delete a batch and its orders."""
    execute(connection, "DELETE FROM flora_orders WHERE batch = :batch", batch=batch)
    execute(connection, "DELETE FROM flora_batches WHERE id = :batch", batch=batch)


def past_costs(connection: sa.Connection) -> dict[tuple[str, str | None], PriceHistory]:
    """Return the charges of completed runs by type and model."""
    sql = (
        "SELECT kind, model, count(*), avg(charged), min(charged), max(charged) FROM flora_orders "
        "WHERE state = 'completed' AND charged IS NOT NULL "
        "GROUP BY kind, model"
    )
    return {
        (kind, model): PriceHistory(runs=runs, mean=float(mean), low=low, high=high)
        for kind, model, runs, mean, low, high in select(connection, sql)
    }
