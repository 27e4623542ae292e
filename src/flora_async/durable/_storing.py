"""Batches as rows: orders stored and parted into chunks, batches stopped, taken up again, counted."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from flora_async import errors
from flora_async.durable import _deciding
from flora_async.durable._ledger import ENDED
from flora_async.durable._tables import batches, items
from flora_async.models import Order

PAGE = 2000
"""Orders that are stored at once."""

_BATCH_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

Enqueue: TypeAlias = Callable[[sa.Connection, str, int, Iterable[tuple[int, int]]], None]


class BatchStatus(Struct, frozen=True, kw_only=True):
    """How a batch stands, on all machines together."""

    batch: str
    total: int
    waiting: int = 0
    """Orders that have not gone out."""
    running: int = 0
    """Orders that are out, and runs that have not ended."""
    completed: int = 0
    failed: int = 0
    """Runs that FLORA gave up; they are not charged."""
    refused: int = 0
    """Orders that FLORA did not accept."""
    unknown: int = 0
    """Orders that may have been accepted, though nobody can say as which run."""
    cost: float = 0.0
    """USD that FLORA has charged, as far as it has said so."""
    stopped: str | None = None
    """Why nothing more is ordered: FLORA's refusal, or ``max_cost``."""
    created: float = 0.0
    """Unix seconds."""

    @property
    def ended(self) -> int:
        """How many orders have come to their end, good or bad."""
        return self.completed + self.failed + self.refused + self.unknown

    @property
    def finished(self) -> bool:
        """Whether all have."""
        return self.ended == self.total


class BatchSettings(Struct, frozen=True, omit_defaults=True):
    """What a batch was asked for beside its orders, for whoever takes it up again."""

    out: str | None = None
    """The file that its results go to."""
    as_finished: bool = False
    """Whether they stand there in the order of their ends, not of the orders."""
    download: str | None = None
    """The folder that outputs are saved in."""
    rate: float | None = None
    """Orders a second, on all machines together."""


def check_batch_id(batch: object) -> str:
    """Check the name of a batch."""
    if not isinstance(batch, str) or not _BATCH_ID.fullmatch(batch):
        raise errors.ConfigurationError(f"a batch is named by 1 to 100 of A-Z a-z 0-9 _ . -, not {batch!r}")
    return batch


class Storing:
    """Orders on their way into the database: page by page, and not there before the last."""

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.token: str = secrets.token_hex(6)
        self.total = 0
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """What tells these orders from others."""
        return self._digest.hexdigest()

    def rows(self, page: Sequence[tuple[Order, Mapping[str, Any]]]) -> list[dict[str, object]]:
        """Number orders, give each its key, and write them as rows."""
        rows: list[dict[str, object]] = []
        for order, columns in page:
            body = msgspec.json.encode(order)
            extra = msgspec.json.encode(columns) if columns else b""
            self._digest.update(body + b"\n" + extra + b"\n")
            rows.append(
                {
                    "batch": self.batch,
                    "number": self.total,
                    "round": 0,
                    "key": f"{self.batch}.{self.token}.{self.total}",
                    "kind": order.type,
                    "model": order.model,
                    "body": body.decode(),
                    "columns": extra.decode() or None,
                    "state": "new",
                }
            )
            self.total += 1
        return rows


def clear(connection: sa.Connection, batch: str) -> None:
    """Take away what a process that died while it stored has left."""
    connection.execute(sa.delete(items).where(items.c.batch == batch))


def store(connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Store a page."""
    connection.execute(sa.insert(items), rows)


def finish(
    connection: sa.Connection, storing: Storing, settings: BatchSettings, max_cost: float | None, enqueue: Enqueue
) -> int:
    """Make the batch exist, and its work be queued, in one; say how many orders make a chunk."""
    chunk = _deciding.chunk_size(storing.total, settings.rate)
    row = {"batch": storing.batch, "token": storing.token, "digest": storing.digest, "total": storing.total}
    row |= {"chunk": chunk, "round": 0, "created": time.time(), "settings": msgspec.json.encode(settings).decode()}
    connection.execute(sa.insert(batches).values(**row, max_cost=max_cost, spent=0.0, sending=0, endings=0))
    starts = range(0, storing.total, chunk)
    enqueue(connection, storing.batch, 0, ((first, min(first + chunk, storing.total)) for first in starts))
    return chunk


def find(connection: sa.Connection, batch: str) -> sa.Row[Any]:
    """Give a batch's row."""
    row = connection.execute(sa.select(batches).where(batches.c.batch == batch)).first()
    if row is None:
        raise errors.ConfigurationError(f"there is no batch {batch!r} in this database")
    return row


def same_orders(connection: sa.Connection, digest: str) -> str | None:
    """Name an unfinished batch of the same orders."""
    left = sa.exists().where(items.c.batch == batches.c.batch, items.c.state.not_in(ENDED))
    return connection.scalar(sa.select(batches.c.batch).where(batches.c.digest == digest, left))


def statuses(connection: sa.Connection, batch: str | None = None) -> list[BatchStatus]:
    """Count the items of a batch, or of each, oldest first."""
    query = sa.select(batches).order_by(batches.c.created)
    if batch is not None:
        query = query.where(batches.c.batch == batch)
    found: list[BatchStatus] = []
    for row in connection.execute(query).all():
        counted = sa.select(items.c.state, sa.func.count(), sa.func.sum(items.c.cost))
        counts = connection.execute(counted.where(items.c.batch == row.batch).group_by(items.c.state)).all()
        number = {state: count for state, count, _ in counts}
        found.append(
            BatchStatus(
                batch=row.batch,
                total=row.total,
                waiting=number.get("new", 0),
                running=number.get("sent", 0) + number.get("started", 0),
                completed=number.get("completed", 0),
                failed=number.get("failed", 0),
                refused=number.get("refused", 0),
                unknown=number.get("unknown", 0),
                cost=round(sum(cost or 0.0 for _, _, cost in counts), 6),
                stopped=row.stopped,
                created=row.created,
            )
        )
    return found


def go_on(connection: sa.Connection, batch: str, changes: Mapping[str, object], enqueue: Enqueue) -> None:
    """Take up a stopped batch, and queue what has no end yet, in case that it is not queued any more."""
    row = find(connection, batch)
    connection.execute(sa.update(batches).where(batches.c.batch == batch).values(stopped=None, **changes))
    first = items.c.number - items.c.number % row.chunk
    left = sa.select(items.c.round, first).where(items.c.batch == batch, items.c.state.not_in(ENDED)).distinct()
    chunks: dict[int, list[tuple[int, int]]] = {}
    for round_, start in sorted(map(tuple, connection.execute(left).all())):
        chunks.setdefault(round_, []).append((start, min(start + row.chunk, row.total)))
    for round_, starts in chunks.items():
        enqueue(connection, batch, round_, starts)


def order_anew(connection: sa.Connection, batch: str, enqueue: Enqueue) -> int:
    """Give new keys to what certainly failed, queue it, and look once more for what is unknown, under its old key.

    Returns how many orders that are.
    """
    row = connection.execute(sa.select(batches).where(batches.c.batch == batch).with_for_update()).one()
    round_ = row.round + 1
    chosen = (items.c.batch == batch, items.c.state.in_(("failed", "refused", "unknown")))
    again = connection.execute(sa.select(items.c.number, items.c.state, items.c.run_id, items.c.sent).where(*chosen))
    chunks: set[int] = set()
    count = unknown = 0
    for number, state, run_id, sent in again.all():
        values: dict[str, object] = {"round": round_, "place": None, "ending": None, "files": None}
        if state != "unknown":
            key = f"{batch}.{row.token}.{number}.{round_}"
            values |= {"state": "new", "key": key, "run_id": None, "recovered": None, "cost": None, "sent": None}
        elif run_id is not None:
            values |= {"state": "started"}
        elif sent is not None:
            values |= {"state": "sent", "owner": None}
            unknown += 1
        connection.execute(sa.update(items).where(items.c.batch == batch, items.c.number == number).values(values))
        chunks.add(number // row.chunk * row.chunk)
        count += 1
    if count:
        values = {"round": round_, "stopped": None, "sending": row.sending + unknown}
        connection.execute(sa.update(batches).where(batches.c.batch == batch).values(values))
        enqueue(connection, batch, round_, ((first, min(first + row.chunk, row.total)) for first in sorted(chunks)))
    return count


def past_costs(connection: sa.Connection) -> dict[tuple[str, str | None], float]:
    """Say what completed runs have cost on average, by type and model, in USD."""
    paid = sa.select(items.c.kind, items.c.model, sa.func.avg(items.c.cost))
    paid = paid.where(items.c.state == "completed", items.c.cost.is_not(None)).group_by(items.c.kind, items.c.model)
    return {(kind, model): float(cost) for kind, model, cost in connection.execute(paid)}
