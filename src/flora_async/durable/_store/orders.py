"""Orders: claimed by one process, sent, running, ended. Every function runs in one transaction of the caller."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from flora_async._costs import KindCosts, PriceKey, decide_start
from flora_async.durable._store.heartbeats import living
from flora_async.durable._store.schema import ENDED, IN_FLIGHT, State, batches, clock, orders

RATE_BURST = 0.5
"""Seconds for which starts that the rate allowed, and no worker made, are made up for."""

Claimable: TypeAlias = Literal["held", "lost", "stopped"]


class Item(Struct, frozen=True):
    """An order in the hands of this process."""

    batch: str
    name: str
    number: int
    key: str
    body: str
    state: State
    sent: float
    run_id: str | None
    quoted: float | None
    run_timeout: float | None
    claimed: float = 0.0
    """When this process began it, in Unix seconds; 0 if another process did, and may have sent it."""


class OrderRow(Struct, frozen=True):
    """An order as it is stored."""

    number: int
    key: str
    body: str
    columns: str | None
    state: State
    run_id: str | None
    quoted: float | None
    charged: float | None
    ended: float | None
    outcome: str | None
    files: str | None


class Claim(Struct, frozen=True):
    """The orders of a batch that may be sent now, and when to ask again: seconds, or ``None`` for after a change."""

    items: Sequence[Item]
    retry_after: float | None = None
    stopped: bool = False


class Change(Struct, frozen=True):
    """A new state of an order: ``waiting`` again, ``running``, or an end."""

    batch: str
    number: int
    state: State
    run_id: str | None = None
    recovered: bool = False
    quoted: float | None = None
    charged: float | None = None
    outcome: str | None = None


def claimable_batches(connection: sa.Connection, only: str | None) -> list[str]:
    """Return the batches with orders that wait to be sent, oldest first."""
    waiting = sa.exists().where(orders.c.batch == batches.c.id, orders.c.state == "waiting")
    query = sa.select(batches.c.id).where(batches.c.stopped.is_(None), waiting).order_by(batches.c.created)
    query = query.where(batches.c.name.is_not(None) if only is None else batches.c.name == only)
    return list(connection.scalars(query))


def claim(connection: sa.Connection, batch: str, limit: int, process: str) -> Claim:
    """Begin orders of a batch: decide stop, rate and cost limit, and record that they are sent from now on."""
    row = connection.execute(sa.select(batches).where(batches.c.id == batch).with_for_update()).first()
    if row is None or row.stopped is not None or row.name is None:
        return Claim((), stopped=True)
    now: float = connection.scalar(sa.select(clock(connection))) or 0.0
    next_start = max(now if row.next_start is None else row.next_start, now - RATE_BURST)
    if row.rate is not None:
        limit = min(limit, int((now - next_start) * row.rate) + 1)
        if limit < 1 or next_start > now:
            return Claim((), retry_after=next_start - now)
    waiting = (orders.c.batch == batch, orders.c.state == "waiting")
    fields = (orders.c.number, orders.c.key, orders.c.body, orders.c.kind, orders.c.model)
    found = connection.execute(sa.select(*fields).where(*waiting).order_by(orders.c.number).limit(limit)).all()
    retry_after = None
    if row.max_cost is not None and found:
        costs = read_costs(connection, batch)
        allowed = 0
        for each in found:
            decision = decide_start(costs, (each.kind, each.model), max_cost=row.max_cost)
            if decision == "stop" and not allowed:
                connection.execute(sa.update(batches).where(batches.c.id == batch).values(stopped="max_cost"))
                return Claim((), stopped=True)
            if decision != "start":
                break
            allowed += 1
            kind = costs.get((each.kind, each.model), KindCosts())
            costs[each.kind, each.model] = replace(kind, unanswered=kind.unanswered + 1)
        found = found[:allowed]
    sent = time.time()
    if found:
        numbers = [each.number for each in found]
        begun = {"state": "sending", "owner": process, "sent": sent}
        connection.execute(sa.update(orders).where(*waiting, orders.c.number.in_(numbers)).values(begun))
        if row.rate is not None:
            next_start += len(found) / row.rate
            connection.execute(sa.update(batches).where(batches.c.id == batch).values(next_start=next_start))
            retry_after = max(0.0, next_start - now)
    return Claim(
        [
            Item(batch, row.name, each.number, each.key, each.body, "sending", sent, None, None, row.run_timeout, sent)
            for each in found
        ],
        retry_after,
    )


def read_costs(connection: sa.Connection, batch: str) -> dict[PriceKey, KindCosts]:
    """Return the costs of a batch so far, by type and model, as sums over its orders."""

    def only(value: sa.ColumnElement[float], *states: State) -> sa.Case[float]:
        return sa.case((orders.c.state.in_(states), value))

    one = sa.literal(1.0)
    query = (
        sa.select(
            orders.c.kind,
            orders.c.model,
            sa.func.sum(only(orders.c.charged, "completed", "failed")),
            sa.func.max(only(orders.c.charged, "completed")),
            sa.func.count(only(one, "sending")),
            sa.func.count(only(one, "running")),
            sa.func.sum(only(orders.c.quoted, "running")),
            sa.func.max(only(orders.c.quoted, "running")),
            sa.func.count(only(one, "unknown")),
        )
        .where(orders.c.batch == batch, orders.c.state.in_((*IN_FLIGHT, *ENDED)))
        .group_by(orders.c.kind, orders.c.model)
    )
    return {
        (row[0], row[1]): KindCosts(
            charged=row[2] or 0.0,
            highest_charge=row[3],
            unanswered=row[4],
            running=row[5],
            quoted=row[6] or 0.0,
            highest_quote=row[7] or None,
            doubtful=row[8],
        )
        for row in connection.execute(query)
    }


def take_over(
    connection: sa.Connection, limit: int, process: str, *, only: str | None, unreadable: Collection[str]
) -> list[Item]:
    """Claim orders in flight whose process is gone. One that was sent is left where its batch is stopped."""
    lost = orders.c.owner.is_(None) | orders.c.owner.not_in(living(connection))
    sendable = (orders.c.state == "sending") & batches.c.stopped.is_(None)
    chosen: list[sa.ColumnElement[bool]] = [
        orders.c.state.in_(IN_FLIGHT),
        lost,
        sendable | (orders.c.state == "running"),
    ]
    chosen.append(batches.c.name.is_not(None) if only is None else batches.c.name == only)
    if unreadable:
        chosen.append(batches.c.id.not_in(unreadable))
    fields = (orders.c.batch, batches.c.name, *(orders.c[name] for name in ("number", "key", "body", "state", "sent")))
    query = (
        sa.select(*fields, orders.c.run_id, orders.c.quoted, batches.c.run_timeout)
        .join(batches, batches.c.id == orders.c.batch)
        .where(*chosen)
        .limit(limit)
        .with_for_update(of=orders, skip_locked=True)
    )
    items = [Item(*row) for row in connection.execute(query)]
    for item in items:
        one = (orders.c.batch == item.batch, orders.c.number == item.number)
        connection.execute(sa.update(orders).where(*one).values(owner=process))
    return items


def renew(connection: sa.Connection, item: Item, process: str) -> Claimable:
    """Check, before a POST, that the order is still this process's and its batch is not stopped."""
    mine = (orders.c.batch == item.batch, orders.c.number == item.number, orders.c.state == "sending")
    stopped = sa.select(batches.c.stopped, batches.c.id).where(batches.c.id == item.batch).with_for_update()
    row = connection.execute(stopped).first()
    changed = connection.execute(sa.update(orders).where(*mine, orders.c.owner == process).values(owner=process))
    if row is None or not changed.rowcount:
        return "lost"
    return "held" if row.stopped is None else "stopped"


def apply(connection: sa.Connection, change: Change, process: str) -> bool:
    """Record a new state of an order; false if another process, or an earlier end, has decided about it.

    Raises:
        IntegrityError: the run is another order's.
    """
    one = (orders.c.batch == change.batch, orders.c.number == change.number)
    held = orders.c.state.in_(IN_FLIGHT) & (orders.c.owner == process)
    values: dict[str, object] = {"state": change.state}
    if change.state == "waiting":
        fits = held & (orders.c.state == "sending")
        values |= {"owner": None, "sent": None}
    elif change.state == "running":
        # A response of FLORA that names the run decides, whichever process has the order by now.
        fits = (orders.c.state == "running") & (orders.c.run_id == change.run_id)
        fits |= held & (orders.c.state == "sending")
        if not change.recovered:
            fits |= orders.c.state.in_(("sending", "unknown")) & orders.c.run_id.is_(None)
        values |= {"run_id": change.run_id, "recovered": change.recovered, "quoted": change.quoted}
        values |= {"ended": None, "outcome": None, "owner": sa.func.coalesce(orders.c.owner, process)}
    else:
        fits = held | (orders.c.state == "running")
        charged = sa.func.coalesce(change.charged, orders.c.quoted) if change.state == "completed" else change.charged
        values |= {"ended": clock(connection), "owner": None, "outcome": change.outcome, "charged": charged}
    return bool(connection.execute(sa.update(orders).where(*one, fits).values(values)).rowcount)


def apply_all(connection: sa.Connection, changes: Sequence[Change], process: str) -> list[bool]:
    """Record several changes in one transaction; one that names another order's run leaves the others alone."""
    answers: list[bool] = []
    for change in changes:
        if change.run_id is None or not _is_taken(connection, change):
            answers.append(apply(connection, change, process))
        elif change.recovered:
            answers.append(False)
        else:
            # FLORA names the run of this order: an order that was only matched with it is unknown again.
            wrong = orders.c.run_id == change.run_id
            released = {"state": "unknown", "run_id": None, "owner": None, "charged": None, "ended": clock(connection)}
            connection.execute(sa.update(orders).where(wrong, orders.c.recovered.is_(True)).values(released))
            answers.append(apply(connection, change, process))
    return answers


def _is_taken(connection: sa.Connection, change: Change) -> bool:
    other = sa.or_(orders.c.batch != change.batch, orders.c.number != change.number)
    return (
        connection.execute(sa.select(orders.c.number).where(orders.c.run_id == change.run_id, other)).first()
        is not None
    )


def release(connection: sa.Connection, item: Item, process: str) -> None:
    """Leave an order in flight to other processes, or to a later time."""
    one = (orders.c.batch == item.batch, orders.c.number == item.number, orders.c.owner == process)
    connection.execute(sa.update(orders).where(*one).values(owner=None))


def release_others(connection: sa.Connection, process: str, in_hand: Collection[tuple[str, int]]) -> None:
    """Release orders that a process holds unknowingly: the commit of their claim seemed to fail."""
    held = sa.select(orders.c.batch, orders.c.number).where(orders.c.state.in_(IN_FLIGHT), orders.c.owner == process)
    for batch, number in connection.execute(held).all():
        if (batch, number) not in in_hand:
            one = (orders.c.batch == batch, orders.c.number == number)
            connection.execute(sa.update(orders).where(*one).values(owner=None))


def has_waiting(connection: sa.Connection, batch: str) -> bool:
    """Return whether a batch has orders that were not sent."""
    query = sa.select(orders.c.number).where(orders.c.batch == batch, orders.c.state == "waiting").limit(1)
    return connection.execute(query).first() is not None


def known_runs(connection: sa.Connection, since: float) -> list[str]:
    """Return the runs of all orders that were sent since a time, of whichever batch."""
    query = sa.select(orders.c.run_id).where(orders.c.run_id.is_not(None), orders.c.sent >= since)
    return list(connection.scalars(query))


_ROW = [orders.c[name] for name in OrderRow.__struct_fields__]


def read_page(connection: sa.Connection, batch: str, first: int, limit: int) -> list[OrderRow]:
    """Return the orders from a number on, whatever their state."""
    query = sa.select(*_ROW).where(orders.c.batch == batch, orders.c.number >= first).order_by(orders.c.number)
    return [OrderRow(*row) for row in connection.execute(query.limit(limit))]


def read_ended(connection: sa.Connection, batch: str, after: tuple[float, int], limit: int) -> list[OrderRow]:
    """Return orders that ended after a time, or at that time and with a higher number, in completion order."""
    place = sa.or_(orders.c.ended > after[0], (orders.c.ended == after[0]) & (orders.c.number > after[1]))
    query = sa.select(*_ROW).where(orders.c.batch == batch, place).order_by(orders.c.ended, orders.c.number)
    return [OrderRow(*row) for row in connection.execute(query.limit(limit))]


def record_files(connection: sa.Connection, batch: str, number: int, files: str) -> None:
    """Record where the outputs of an order were saved."""
    one = (orders.c.batch == batch, orders.c.number == number)
    connection.execute(sa.update(orders).where(*one).values(files=files))
