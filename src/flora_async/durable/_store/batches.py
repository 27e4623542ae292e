"""Batches: stored all or none, stopped, resumed, requeued, counted, deleted."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy import exc as sa_exc

from flora_async import errors
from flora_async.durable._store.heartbeats import living
from flora_async.durable._store.schema import ENDED, IN_FLIGHT, batches, clock, orders
from flora_async.models import Order

STORE_PAGE = 2000
"""Orders that are stored in one transaction."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

Named: TypeAlias = Literal["stored", "exists", "differs"]


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


class BatchRow(Struct, frozen=True):
    """A batch as it is stored."""

    id: str
    total: int
    settings: BatchSettings
    stopped: str | None


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
        nameless = sa.select(batches.c.id).where(batches.c.name.is_(None), batches.c.storer.not_in(living(connection)))
        for left in list(connection.scalars(nameless)):
            _delete(connection, left)
        _delete(connection, self.id)  # the commit of an earlier attempt may have seemed to fail; so below
        row = {"id": self.id, "storer": self._process, "digest": "", "total": 0, "settings": "{}"}
        connection.execute(sa.insert(batches).values(**row, created=time.time()))

    def rows(self, page: Sequence[tuple[Order, Mapping[str, Any]]]) -> list[dict[str, object]]:
        """Return orders as rows, numbered, each with its key."""
        rows: list[dict[str, object]] = []
        for order, columns in page:
            body = msgspec.json.encode(order)
            extra = msgspec.json.encode(columns) if columns else b""
            self._digest.update(body + b"\n" + extra + b"\n")
            rows.append(
                {
                    "batch": self.id,
                    "number": self.total,
                    "attempt": 0,
                    "key": f"{self.name}.{self.id}.{self.total}",
                    "kind": order.type,
                    "model": order.model,
                    "body": body.decode(),
                    "columns": extra.decode() or None,
                    "state": "waiting",
                }
            )
            self.total += 1
        return rows

    def finish(self, connection: sa.Connection, settings: BatchSettings, max_cost: float | None) -> Named:
        """Name the batch, so that it exists; if the name is taken, delete these orders and compare the others."""
        values = {"name": self.name, "digest": self.digest, "total": self.total, "max_cost": max_cost}
        values |= {"settings": msgspec.json.encode(settings).decode(), "created": time.time()}
        values |= {"rate": settings.rate, "run_timeout": settings.run_timeout}
        mine = batches.c.id == self.id
        named = sa.select(batches.c.digest).where(batches.c.name == self.name)
        digest = connection.scalar(named.where(batches.c.id != self.id))
        if digest is None:
            try:
                with connection.begin_nested():
                    connection.execute(sa.update(batches).where(mine).values(values))
                return "stored"
            except sa_exc.IntegrityError:  # another process was faster, on PostgreSQL
                digest = connection.scalar(named)
        _delete(connection, self.id)
        return "exists" if digest == self.digest else "differs"

    def discard(self, connection: sa.Connection) -> None:
        """Delete the orders stored so far."""
        _delete(connection, self.id)


def insert_orders(connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Store a page of orders."""
    numbers = orders.c.number.between(rows[0]["number"], rows[-1]["number"])
    connection.execute(sa.delete(orders).where(orders.c.batch == rows[0]["batch"], numbers))
    connection.execute(sa.insert(orders), rows)


def find(connection: sa.Connection, name: str) -> BatchRow:
    """Return a batch by its name."""
    fields = (batches.c.id, batches.c.total, batches.c.settings, batches.c.stopped)
    row = connection.execute(sa.select(*fields).where(batches.c.name == name)).first()
    if row is None:
        raise errors.ConfigurationError(f"there is no batch {name!r} in this database")
    return BatchRow(row.id, row.total, msgspec.json.decode(row.settings, type=BatchSettings), row.stopped)


def find_unfinished(connection: sa.Connection, total: int, digest: str | None = None) -> str | None:
    """Return the name of an unfinished batch of so many orders, of those with this digest if one is given."""
    left = sa.exists().where(orders.c.batch == batches.c.id, orders.c.state.in_(("waiting", *IN_FLIGHT)))
    same = [batches.c.total == total, batches.c.name.is_not(None), left]
    same += [] if digest is None else [batches.c.digest == digest]
    return connection.scalar(sa.select(batches.c.name).where(*same))


def list_statuses(connection: sa.Connection, name: str | None = None) -> list[BatchStatus]:
    """Return where a batch stands, or each, oldest first."""
    named = batches.c.name.is_not(None) if name is None else batches.c.name == name
    cost = sa.case(
        (orders.c.state == "running", orders.c.quoted),
        (orders.c.state == "unknown", sa.func.coalesce(orders.c.charged, orders.c.quoted)),
        else_=orders.c.charged,
    )
    found: list[BatchStatus] = []
    for row in connection.execute(sa.select(batches).where(named).order_by(batches.c.created)).all():
        counted = sa.select(orders.c.state, sa.func.count(), sa.func.sum(cost)).where(orders.c.batch == row.id)
        counts = {
            state: (count, usd or 0.0) for state, count, usd in connection.execute(counted.group_by(orders.c.state))
        }
        number = {state: count for state, (count, _) in counts.items()}
        found.append(
            BatchStatus(
                batch=row.name,
                total=row.total,
                running=sum(number.get(state, 0) for state in IN_FLIGHT),
                cost=round(sum(usd for _, usd in counts.values()), 6),
                stopped=row.stopped,
                created=row.created,
                **{state: number.get(state, 0) for state in ("waiting", *ENDED)},
            )
        )
    if name is not None and not found:
        raise errors.ConfigurationError(f"there is no batch {name!r} in this database")
    return found


def is_finished(connection: sa.Connection, batch: str) -> bool:
    """Return whether all orders of a batch have ended."""
    left = orders.c.state.in_(("waiting", *IN_FLIGHT))
    return connection.execute(sa.select(orders.c.number).where(orders.c.batch == batch, left).limit(1)).first() is None


def stop(connection: sa.Connection, batch: str, reason: str) -> None:
    """Begin no more orders of a batch, on any machine."""
    connection.execute(sa.update(batches).where(batches.c.id == batch).values(stopped=reason))


def resume(connection: sa.Connection, batch: str, max_cost: float | None) -> str:
    """Begin orders of a batch again; return its id."""
    values = {"stopped": None} if max_cost is None else {"stopped": None, "max_cost": max_cost}
    connection.execute(sa.update(batches).where(batches.c.id == batch).values(values))
    return batch


def skip(connection: sa.Connection, batch: str, numbers: Collection[int]) -> int:
    """End waiting orders without sending them, and return their number."""
    _lock(connection, batch)
    skipped = 0
    for number in numbers:
        one = (orders.c.batch == batch, orders.c.number == number, orders.c.state == "waiting")
        ended = {"state": "skipped", "ended": clock(connection)}
        skipped += connection.execute(sa.update(orders).where(*one).values(ended)).rowcount
    return skipped


def requeue_failed(connection: sa.Connection, batch: str, name: str) -> int:
    """Queue orders that failed or were refused once more, under new keys; return their number."""
    _lock(connection, batch)
    chosen = (orders.c.batch == batch, orders.c.state.in_(("failed", "refused")))
    found = connection.execute(sa.select(orders.c.number, orders.c.attempt).where(*chosen)).all()
    for number, attempt in found:
        values: dict[str, object] = {"state": "waiting", "attempt": attempt + 1}
        values |= {"key": f"{name}.{batch}.{number}.{attempt + 1}"}
        values |= dict.fromkeys(
            ("run_id", "recovered", "quoted", "charged", "sent", "ended", "outcome", "files", "owner")
        )
        connection.execute(sa.update(orders).where(*chosen, orders.c.number == number).values(values))
    if found:
        connection.execute(sa.update(batches).where(batches.c.id == batch).values(stopped=None))
    return len(found)


def delete(connection: sa.Connection, batch: str) -> None:
    """Delete a batch and its orders; refuse while a living process works on some."""
    _lock(connection, batch)
    held = (orders.c.batch == batch, orders.c.state.in_(IN_FLIGHT), orders.c.owner.in_(living(connection)))
    count = connection.scalar(sa.select(sa.func.count()).where(*held))
    if count:
        raise errors.ConfigurationError(
            f"{count} orders of the batch are in flight: cancel it, and delete it when they ended"
        )
    _delete(connection, batch)


def list_lost_executors(connection: sa.Connection, batch: str) -> list[str]:
    """Return the executors that hold orders of a batch and are gone."""
    in_flight = (orders.c.batch == batch, orders.c.state.in_(IN_FLIGHT), orders.c.owner.is_not(None))
    held = (*in_flight, orders.c.owner.not_in(living(connection)))
    owners = connection.scalars(sa.select(orders.c.owner).where(*held).distinct())
    return sorted({str(owner).rpartition("/")[0] for owner in owners})


def past_costs(connection: sa.Connection) -> dict[tuple[str, str | None], float]:
    """Return the average charge of completed runs by type and model, in USD."""
    paid = sa.select(orders.c.kind, orders.c.model, sa.func.avg(orders.c.charged))
    paid = paid.where(orders.c.state == "completed", orders.c.charged.is_not(None))
    return {
        (kind, model): float(cost)
        for kind, model, cost in connection.execute(paid.group_by(orders.c.kind, orders.c.model))
    }


def _lock(connection: sa.Connection, batch: str) -> None:
    connection.execute(sa.select(batches.c.id).where(batches.c.id == batch).with_for_update())


def _delete(connection: sa.Connection, batch: str) -> None:
    connection.execute(sa.delete(orders).where(orders.c.batch == batch))
    connection.execute(sa.delete(batches).where(batches.c.id == batch))
