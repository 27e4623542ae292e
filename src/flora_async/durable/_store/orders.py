"""Orders and the processes that have them: claimed, sent, running, ended. Each function runs in one transaction."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from flora_async._costs import KindCosts, PriceKey, decide_start
from flora_async.durable._store.batches import BatchSettings
from flora_async.durable._store.database import execute, select
from flora_async.durable._store.schema import State
from flora_async.errors import ConfigurationError

BEAT_INTERVAL = 3.0
LOST_AFTER = 15.0
"""Seconds without a sign of life after which other processes take over the orders of a process; in ``LIVING()``."""
REASSIGN_AFTER = 7.0
"""Seconds without a sign of life after which the orders of a process can be reassigned by hand."""
RATE_BURST = 0.5
"""Seconds for which starts that the rate allowed, and no worker made, are made up for."""
UNREADABLE = "its runs cannot be read: "
"""Beginning of the reason of a batch that was stopped because FLORA refuses to show its runs."""


class Item(Struct, frozen=True):
    """An order in the hands of a process, its owner."""

    owner: str
    batch: str
    name: str
    number: int
    key: str
    body: str
    state: State
    sent: float
    run_id: str | None
    quoted: float | None
    settings: str
    is_new: bool = False
    """Whether this process is the first that sends it."""

    @property
    def held(self) -> dict[str, object]:
        """Return the parameters of a statement about the order and its owner."""
        return {"batch": self.batch, "number": self.number, "owner": self.owner}


# -- processes


def beat(connection: sa.Connection, process: str) -> None:
    """Record a sign of life."""
    executor = process.rpartition("/")[0]
    execute(
        connection,
        "INSERT INTO flora_workers (process, executor, host, pid, seen) VALUES (:process, :executor, :host, :pid, "
        "NOW()) ON CONFLICT (process) DO UPDATE SET seen = NOW()",
        process=process,
        executor=executor,
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    execute(connection, "DELETE FROM flora_workers WHERE seen < NOW() - 86400")


def remove(connection: sa.Connection, process: str) -> None:
    """Release the orders of a process that ends, and remove it."""
    release_others(connection, process, ())
    execute(connection, "DELETE FROM flora_workers WHERE process = :process", process=process)


def reassign(connection: sa.Connection, executor: str) -> int:
    """Release the orders of an executor that is lost, and return their number."""
    sql = "SELECT host, pid, NOW() - seen AS age FROM flora_workers WHERE executor = :executor ORDER BY age LIMIT 1"
    for latest in select(connection, sql, executor=executor):
        if latest.age >= REASSIGN_AFTER:
            break
        raise ConfigurationError(
            f"{executor} (host {latest.host}, process {latest.pid}) was seen {latest.age:.0f} s ago: its orders can be "
            f"reassigned after {REASSIGN_AFTER:.0f} s without a sign of life, and are taken over after {LOST_AFTER:.0f}"
        )
    execute(connection, "DELETE FROM flora_workers WHERE executor = :executor", executor=executor)
    return execute(
        connection,
        "UPDATE flora_orders SET owner = NULL WHERE state IN ('sending', 'running') "
        "AND substr(owner, 1, :length) = :prefix",
        length=len(executor) + 1,
        prefix=f"{executor}/",
    )


# -- claims


def list_claimable(connection: sa.Connection, only: str | None) -> list[str]:
    """Return the batches with orders that wait to be sent, oldest first."""
    sql = (
        "SELECT id FROM flora_batches b WHERE name = coalesce(:only, name) AND stopped IS NULL AND EXISTS "
        "(SELECT 1 FROM flora_orders WHERE batch = b.id AND state = 'waiting') ORDER BY created"
    )
    return [row.id for row in select(connection, sql, only=only)]


def claim(connection: sa.Connection, batch: str, limit: int, process: str) -> tuple[list[Item], float | None]:
    """Begin orders of a batch: decide stop, rate and cost limit, and record that they are sent from now on.

    Return them, and after how many seconds the rate allows more.
    """
    beat(connection, process)
    sql = "SELECT *, NOW() AS now FROM flora_batches WHERE id = :batch AND stopped IS NULL FOR UPDATE"
    row = next(iter(select(connection, sql, batch=batch)), None)
    if row is None:
        return [], None
    rate, now = msgspec.json.decode(row.settings, type=BatchSettings).rate, row.now
    next_start: float = max(row.next_start or now, now - RATE_BURST)
    if rate is not None:
        if next_start > now:
            return [], next_start - now
        limit = min(limit, int((now - next_start) * rate) + 1)
    found = select(
        connection,
        "SELECT number, key, body, kind, model FROM flora_orders WHERE batch = :batch AND state = 'waiting' "
        "ORDER BY number LIMIT :limit",
        batch=batch,
        limit=limit,
    )
    if row.max_cost is not None:
        found = _select_affordable(connection, batch, found, row.max_cost)
    if not found:
        return [], None
    sent = time.time()
    execute(
        connection,
        "UPDATE flora_orders SET state = 'sending', owner = :process, sent = :sent WHERE batch = :batch "
        "AND state = 'waiting' AND number <= :last",
        process=process,
        sent=sent,
        batch=batch,
        last=found[-1].number,
    )
    if rate is not None:
        next_start += len(found) / rate
        execute(
            connection, "UPDATE flora_batches SET next_start = :next WHERE id = :batch", next=next_start, batch=batch
        )
    items = [
        Item(
            process, batch, row.name, each.number, each.key, each.body, "sending", sent, None, None, row.settings, True
        )
        for each in found
    ]
    return items, None if rate is None else max(0.0, next_start - now)


def _select_affordable(connection: sa.Connection, batch: str, found: list[Any], max_cost: float) -> list[Any]:
    """Return the first orders that fit the cost limit together; stop the batch where none ever will."""
    costs = read_costs(connection, batch)
    for place, each in enumerate(found):
        decision = decide_start(costs, (each.kind, each.model), max_cost=max_cost)
        if decision == "stop" and not place:
            execute(connection, "UPDATE flora_batches SET stopped = 'max_cost' WHERE id = :batch", batch=batch)
        if decision != "start":
            return found[:place]
        kind = costs.get((each.kind, each.model), KindCosts())
        costs[each.kind, each.model] = replace(kind, unanswered=kind.unanswered + 1)
    return found


def read_costs(connection: sa.Connection, batch: str) -> dict[PriceKey, KindCosts]:
    """Return the costs of a batch so far, by type and model, as sums over its orders."""
    rows = select(
        connection,
        "SELECT kind, model, coalesce(sum(charged) FILTER (WHERE state IN ('completed', 'failed')), 0) AS charged, "
        "max(charged) FILTER (WHERE state = 'completed') AS highest_charge, "
        "count(*) FILTER (WHERE state = 'sending') AS unanswered, "
        "count(*) FILTER (WHERE state = 'running') AS running, "
        "coalesce(sum(quoted) FILTER (WHERE state = 'running'), 0) AS quoted, "
        "max(quoted) FILTER (WHERE state = 'running') AS highest_quote, "
        "count(*) FILTER (WHERE state = 'unknown') AS doubtful "
        "FROM flora_orders WHERE batch = :batch AND state <> 'waiting' GROUP BY kind, model",
        batch=batch,
    )
    names = KindCosts.__struct_fields__
    return {(kind, model): KindCosts(**dict(zip(names, sums, strict=True))) for kind, model, *sums in rows}


def take_over(connection: sa.Connection, limit: int, process: str, only: str | None) -> list[Item]:
    """Claim orders in flight whose process is gone. One that was sent is left where its batch is stopped."""
    beat(connection, process)
    rows = select(
        connection,
        "SELECT o.batch, b.name, o.number, o.key, o.body, o.state, o.sent, o.run_id, o.quoted, b.settings "
        "FROM flora_orders o JOIN flora_batches b ON b.id = o.batch WHERE b.name = coalesce(:only, b.name) "
        "AND (o.owner IS NULL OR o.owner NOT IN LIVING()) AND (o.state = 'sending' AND b.stopped IS NULL "
        "OR o.state = 'running' AND coalesce(b.stopped, '') NOT LIKE :unreadable) LIMIT :limit "
        "FOR UPDATE OF o SKIP LOCKED",
        only=only,
        unreadable=f"{UNREADABLE}%",
        limit=limit,
    )
    items = [Item(process, *row) for row in rows]
    for item in items:
        execute(
            connection, "UPDATE flora_orders SET owner = :owner WHERE batch = :batch AND number = :number", **item.held
        )
    return items


def renew(connection: sa.Connection, item: Item) -> bool:
    """Return, before a POST, whether the order is still its owner's and the batch is not stopped."""
    beat(connection, item.owner)
    held = execute(
        connection,
        "UPDATE flora_orders SET owner = owner WHERE batch = :batch AND number = :number AND owner = :owner "
        "AND state = 'sending' AND EXISTS (SELECT 1 FROM flora_batches WHERE id = :batch AND stopped IS NULL)",
        **item.held,
    )
    return held > 0


def put_back(connection: sa.Connection, item: Item) -> None:
    """Let an order wait again: it was not sent, or FLORA started nothing."""
    execute(
        connection,
        "UPDATE flora_orders SET state = 'waiting', owner = NULL, sent = NULL WHERE batch = :batch "
        "AND number = :number AND owner = :owner AND state = 'sending'",
        **item.held,
    )


def release(connection: sa.Connection, item: Item) -> None:
    """Leave an order in flight to other processes, or to a later time."""
    execute(
        connection,
        "UPDATE flora_orders SET owner = NULL WHERE batch = :batch AND number = :number AND owner = :owner",
        **item.held,
    )


def release_others(connection: sa.Connection, process: str, in_hand: Collection[tuple[str, int]]) -> None:
    """Release the orders of a process but those *in_hand*: it holds them unknowingly, or ends."""
    held = select(
        connection,
        "SELECT batch, number FROM flora_orders WHERE state IN ('sending', 'running') AND owner = :process",
        process=process,
    )
    for batch, number in held:
        if (batch, number) not in in_hand:
            execute(
                connection,
                "UPDATE flora_orders SET owner = NULL WHERE batch = :batch AND number = :number",
                batch=batch,
                number=number,
            )


# -- runs and ends


def start(connection: sa.Connection, item: Item, run_id: str, quoted: float | None, *, recovered: bool) -> bool:
    """Record the run of an order; false if the run is another order's, or the order has another end.

    A response of FLORA that names the run decides, whichever process has the order by now, and an order that was only
    matched with the run is unknown again.
    """
    values = {**item.held, "run": run_id, "quoted": quoted, "recovered": recovered}
    if not recovered:
        execute(
            connection,
            "UPDATE flora_orders SET state = 'unknown', run_id = NULL, owner = NULL, charged = NULL, ended = NOW() "
            "WHERE run_id = :run AND recovered AND NOT (batch = :batch AND number = :number)",
            **values,
        )
    changed = execute(
        connection,
        "UPDATE flora_orders SET state = 'running', run_id = :run, recovered = :recovered, quoted = :quoted, "
        "ended = NULL, outcome = NULL, owner = coalesce(owner, :owner) WHERE batch = :batch AND number = :number "
        "AND (state = 'running' AND run_id = :run OR state = 'sending' AND owner = :owner "
        "OR NOT :recovered AND state IN ('sending', 'unknown') AND run_id IS NULL) AND NOT EXISTS (SELECT 1 "
        "FROM flora_orders WHERE run_id = :run AND NOT (batch = :batch AND number = :number))",
        **values,
    )
    return changed > 0


def end(connection: sa.Connection, item: Item, state: State, charged: float | None, outcome: str) -> None:
    """Record the end of an order, unless another process has decided about it."""
    execute(
        connection,
        "UPDATE flora_orders SET state = :state, owner = NULL, ended = NOW(), outcome = :outcome, "
        "charged = coalesce(:charged, quoted) WHERE batch = :batch AND number = :number "
        "AND (state = 'running' OR state = 'sending' AND owner = :owner)",
        **item.held,
        state=state,
        charged=charged,
        outcome=outcome,
    )


def has_waiting(connection: sa.Connection, batch: str) -> bool:
    """Return whether a batch has orders that were not sent."""
    sql = "SELECT 1 FROM flora_orders WHERE batch = :batch AND state = 'waiting' LIMIT 1"
    return bool(select(connection, sql, batch=batch))


def list_runs(connection: sa.Connection, since: float) -> list[str]:
    """Return the runs of all orders that were sent since a time, of whichever batch."""
    sql = "SELECT run_id FROM flora_orders WHERE run_id IS NOT NULL AND sent >= :since"
    return [row.run_id for row in select(connection, sql, since=since)]


def list_from(connection: sa.Connection, batch: str, first: int, limit: int) -> list[Any]:
    """Return the orders from a number on, whatever their state."""
    sql = "SELECT * FROM flora_orders WHERE batch = :batch AND number >= :first ORDER BY number LIMIT :limit"
    return select(connection, sql, batch=batch, first=first, limit=limit)


def list_ended(connection: sa.Connection, batch: str, after: tuple[float, int], limit: int) -> list[Any]:
    """Return orders that ended after a time, or at that time and with a higher number, in completion order."""
    sql = (
        "SELECT * FROM flora_orders WHERE batch = :batch AND (ended > :ended OR ended = :ended AND number > :number) "
        "ORDER BY ended, number LIMIT :limit"
    )
    return select(connection, sql, batch=batch, ended=after[0], number=after[1], limit=limit)


def record_files(connection: sa.Connection, batch: str, number: int, files: str) -> None:
    """Record where the outputs of an order were saved."""
    sql = "UPDATE flora_orders SET files = :files WHERE batch = :batch AND number = :number"
    execute(connection, sql, files=files, batch=batch, number=number)
