"""Orders and the processes that have them: claimed, sent, running, ended. Each function runs in one transaction."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from flora_async._costs import KindCosts, PriceKey, add_costs, decide_start
from flora_async.durable._store.batches import BatchSettings
from flora_async.durable._store.database import execute, select
from flora_async.durable._store.outcomes import add_attempt
from flora_async.durable._store.schema import ENDED, IN_FLIGHT, State
from flora_async.errors import ConfigurationError, RunFailedError

BEAT_INTERVAL = 3.0
LOST_AFTER = 15.0
"""Seconds without a sign of life after which other processes take over the orders of a process; in ``LIVING()``."""
REASSIGN_AFTER = 7.0
"""Seconds without a sign of life after which the orders of a process can be reassigned by hand."""
RATE_BURST = 0.5
"""Seconds for which starts that the rate allowed, and no worker made, are made up for."""
KEEP_RUN = (
    "earlier_runs = CASE WHEN run_id IS NULL THEN earlier_runs "
    "ELSE coalesce(earlier_runs || ' ', '') || run_id END, run_id = NULL"
)
"""Moves the run of an order that is ordered again to those of its earlier attempts: no other create can be its run."""
UNREADABLE = "its runs cannot be read: "
"""Beginning of the reason of a batch that was stopped because FLORA refuses to show its runs."""


SETTLED_PAGE = 1000
"""Number of orders from which the costs of ended ones are summed anew."""
MAX_NUMBER = 2**31 - 1

Costs: TypeAlias = dict[PriceKey, KindCosts]


class SettledCosts(Struct, frozen=True):
    """The costs of the orders of a batch before one of them, all of which have ended."""

    end: int = 0
    costs: list[tuple[str, str | None, KindCosts]] = []


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
    attempts: str | None = None
    """The failures after which it was ordered again, as they are stored."""
    is_new: bool = False
    """Whether this process is the first that sends it."""


# -- processes


def beat(connection: sa.Connection, process: str) -> None:
    """Record a sign of life."""
    executor, host, pid = process.rpartition("/")[0], socket.gethostname(), os.getpid()
    sql = (
        "INSERT INTO flora_workers (process, executor, host, pid, seen) VALUES (:process, :executor, :host, :pid, "
        "NOW()) ON CONFLICT (process) DO UPDATE SET seen = NOW()"
    )
    execute(connection, sql, process=process, executor=executor, host=host, pid=pid)
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
    sql = "UPDATE flora_orders SET owner = NULL WHERE IN_FLIGHT() AND substr(owner, 1, :length) = :prefix"
    return execute(connection, sql, length=len(executor) + 1, prefix=f"{executor}/")


# -- claims


def list_claimable(connection: sa.Connection, only: str | None) -> list[str]:
    """Return the batches with orders that wait to be sent, oldest first."""
    sql = (
        "SELECT id FROM flora_batches b WHERE name = coalesce(:only, name) AND stopped IS NULL AND EXISTS "
        "(SELECT 1 FROM flora_orders WHERE batch = b.id AND state = 'waiting' "
        "AND coalesce(not_before, 0) <= NOW()) ORDER BY created"
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
    sql = (
        "SELECT number, key, body, kind, model, attempts FROM flora_orders WHERE batch = :batch AND state = 'waiting' "
        "AND coalesce(not_before, 0) <= :now ORDER BY number LIMIT :limit"
    )
    found = select(connection, sql, batch=batch, now=now, limit=limit)
    if row.max_cost is not None and found:
        costs = _read_costs_so_far(connection, batch, row.settled)
        found = _select_affordable(connection, batch, found, costs, row.max_cost)
    if not found:
        return [], None
    sent = time.time()
    sql = (
        "UPDATE flora_orders SET state = 'sending', owner = :process, sent = :sent WHERE batch = :batch "
        "AND state = 'waiting' AND coalesce(not_before, 0) <= :now AND number <= :last"
    )
    execute(connection, sql, process=process, sent=sent, batch=batch, now=now, last=found[-1].number)
    if rate is not None:
        next_start += len(found) / rate
        sql = "UPDATE flora_batches SET next_start = :next WHERE id = :batch"
        execute(connection, sql, next=next_start, batch=batch)
    name, settings = row.name, row.settings
    items = [
        Item(
            *(process, batch, name, each.number, each.key, each.body, "sending", sent, None, None),
            *(settings, each.attempts),
            is_new=True,
        )
        for each in found
    ]
    return items, None if rate is None else max(0.0, next_start - now)


def _select_affordable(
    connection: sa.Connection, batch: str, found: list[Any], costs: Costs, max_cost: float
) -> list[Any]:
    """Return the first orders that fit the cost limit together; stop the batch where none ever will."""
    for place, each in enumerate(found):
        decision = decide_start(costs, (each.kind, each.model), max_cost=max_cost)
        if decision == "stop" and not place:
            execute(connection, "UPDATE flora_batches SET stopped = 'max_cost' WHERE id = :batch", batch=batch)
        if decision != "start":
            return found[:place]
        kind = costs.get((each.kind, each.model), KindCosts())
        costs[each.kind, each.model] = replace(kind, unanswered=kind.unanswered + 1)
    return found


_OPEN = "(state = 'running' OR state = 'completed' AND charged IS NULL OR state = 'unknown' AND quoted IS NOT NULL)"
"""Condition of the orders with a run whose charge is not known."""


def read_costs(connection: sa.Connection, batch: str, first: int = 0, end: int = MAX_NUMBER) -> Costs:
    """Return the costs of a batch so far, by type and model, as sums over its orders from *first*, before *end*."""
    # By the states in its beginning, an index finds these orders beside a million that wait.
    sql = (
        "SELECT kind, model, coalesce(sum(charged) FILTER (WHERE state IN ('completed', 'failed')), 0) "
        "+ coalesce(sum(charged_before), 0), "
        "max(charged) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state = 'sending'), "
        "count(*) FILTER (WHERE state = 'running'), coalesce(sum(quoted) FILTER (WHERE OPEN), 0), "
        "max(quoted) FILTER (WHERE OPEN), count(*) FILTER (WHERE state = 'unknown' AND quoted IS NULL), "
        "count(*) FILTER (WHERE OPEN AND state <> 'running'), "
        "max(charged / nullif(quoted, 0)) FILTER (WHERE state = 'completed') "
        "FROM (PART AND state IN (SENT) UNION ALL PART AND earlier_runs IS NOT NULL AND state NOT IN (SENT)) AS sent "
        "GROUP BY kind, model"
    )
    part = (
        "SELECT kind, model, state, quoted, charged, charged_before FROM flora_orders "
        "WHERE batch = :batch AND number >= :first AND number < :end"
    )
    states = ", ".join(f"'{state}'" for state in (*IN_FLIGHT, *ENDED))
    sql = sql.replace("OPEN", _OPEN).replace("PART", part).replace("SENT", states)
    names = KindCosts.__struct_fields__  # in this order
    rows = select(connection, sql, batch=batch, first=first, end=end)
    return {(kind, model): KindCosts(**dict(zip(names, sums, strict=True))) for kind, model, *sums in rows}


def _read_costs_so_far(connection: sa.Connection, batch: str, stored: str | None) -> Costs:
    """Return the costs of a batch whose row is locked. The orders before the first that has not ended are summed once.

    A transaction that changes an ended order locks the row too, and deletes the sums.
    """
    settled = SettledCosts() if stored is None else msgspec.json.decode(stored, type=SettledCosts)
    first = "SELECT min(number) AS number FROM flora_orders WHERE batch = :batch AND state = "
    sql = " UNION ALL ".join(f"{first}'{state}'" for state in ("waiting", *IN_FLIGHT))
    unended = [row.number for row in select(connection, sql, batch=batch) if row.number is not None]
    first_open = min(unended, default=settled.end)
    costs = {(kind, model): sums for kind, model, sums in settled.costs}
    if first_open >= settled.end + SETTLED_PAGE:
        costs = add_costs(costs, read_costs(connection, batch, settled.end, first_open))
        settled = SettledCosts(end=first_open, costs=[(*key, sums) for key, sums in costs.items()])
        sql = "UPDATE flora_batches SET settled = :settled WHERE id = :batch"
        execute(connection, sql, settled=msgspec.json.encode(settled).decode(), batch=batch)
    return add_costs(costs, read_costs(connection, batch, settled.end))


def take_over(connection: sa.Connection, limit: int, process: str, only: str | None) -> list[Item]:
    """Claim orders in flight whose process is gone. One that was sent is left where its batch is stopped."""
    beat(connection, process)
    sql = (
        "SELECT o.batch, b.name, o.number, o.key, o.body, o.state, o.sent, o.run_id, o.quoted, b.settings, o.attempts "
        "FROM flora_orders o JOIN flora_batches b ON b.id = o.batch WHERE b.name = coalesce(:only, b.name) "
        "AND IN_FLIGHT() AND (o.owner IS NULL OR o.owner NOT IN LIVING()) AND (o.state = 'sending' "
        "AND b.stopped IS NULL OR o.state = 'running' AND coalesce(b.stopped, '') NOT LIKE :unreadable) LIMIT :limit "
        "FOR UPDATE OF o SKIP LOCKED"
    )
    rows = select(connection, sql, only=only, unreadable=f"{UNREADABLE}%", limit=limit)
    items = [Item(process, *row) for row in rows]
    for item in items:
        update(connection, item, "owner = :owner", "state <> 'waiting'")
    return items


def update(connection: sa.Connection, item: Item, values: str, condition: str, **parameters: object) -> bool:
    """Change the row of an order, where a condition about it holds; return whether it does."""
    template = "UPDATE flora_orders SET VALUES WHERE batch = :batch AND number = :number AND CONDITION"
    sql = template.replace("VALUES", values).replace("CONDITION", condition)
    named = {"batch": item.batch, "number": item.number, "owner": item.owner}
    return execute(connection, sql, **named, **parameters) > 0


def renew(connection: sa.Connection, item: Item) -> bool:
    """Return, before a POST, whether the order is still its owner's and the batch is not stopped."""
    beat(connection, item.owner)
    going_on = "EXISTS (SELECT 1 FROM flora_batches WHERE id = :batch AND stopped IS NULL)"
    return update(connection, item, "owner = owner", f"state = 'sending' AND owner = :owner AND {going_on}")


def leave(connection: sa.Connection, item: Item, *, doubtful: bool) -> None:
    """Requeue an order. One that may have been accepted is sent again under its key."""
    values = "owner = NULL" if doubtful else "state = 'waiting', owner = NULL, sent = NULL"
    update(connection, item, values, "owner = :owner" if doubtful else "owner = :owner AND state = 'sending'")


def release_others(connection: sa.Connection, process: str, in_hand: Collection[tuple[str, int]]) -> None:
    """Release the orders of a process but those *in_hand*: it holds them unknowingly, or ends."""
    held = "SELECT batch, number FROM flora_orders WHERE IN_FLIGHT() AND owner = :process"
    sql = "UPDATE flora_orders SET owner = NULL WHERE batch = :batch AND number = :number"
    for batch, number in select(connection, held, process=process):
        if (batch, number) not in in_hand:
            execute(connection, sql, batch=batch, number=number)


# -- runs and ends


def delete_settled(connection: sa.Connection, batch: str) -> None:
    """Delete the stored sums of a batch: one of its ended orders has changed."""
    execute(connection, "UPDATE flora_batches SET settled = NULL WHERE id = :batch", batch=batch)


def start(connection: sa.Connection, item: Item, run_id: str, quoted: float | None, *, recovered: bool) -> bool:
    """Record the run of an order; false if the run is another order's, or the order has another end.

    A response of FLORA that names the run decides, whichever process has the order by now, and an order that was only
    matched with the run is unknown again.
    """
    if not recovered:
        sql = (
            "UPDATE flora_orders SET state = 'unknown', run_id = NULL, owner = NULL, charged = NULL, ended = NOW() "
            "WHERE run_id = :run AND recovered AND NOT (batch = :batch AND number = :number)"
        )
        if execute(connection, sql, run=run_id, batch=item.batch, number=item.number):
            execute(connection, "UPDATE flora_batches SET settled = NULL")
    values = (
        "state = 'running', run_id = :run, recovered = :recovered, quoted = :quoted, ended = NULL, outcome = NULL, "
        "owner = coalesce(owner, :owner)"
    )
    condition = (
        "(state = 'running' AND run_id = :run OR state = 'sending' AND owner = :owner "
        "OR NOT :recovered AND state = OTHER AND run_id IS NULL) AND NOT EXISTS (SELECT 1 "
        "FROM flora_orders WHERE run_id = :run AND NOT (batch = :batch AND number = :number))"
    )
    if recovered:
        condition += (
            " AND NOT EXISTS (SELECT 1 FROM flora_orders WHERE earlier_runs IS NOT NULL "
            "AND ' ' || earlier_runs || ' ' LIKE '% ' || :run || ' %')"
        )
    parameters = {"run": run_id, "quoted": quoted, "recovered": recovered}
    if update(connection, item, values, condition.replace("OTHER", "'sending'"), **parameters):
        return True
    if recovered or not update(connection, item, values, condition.replace("OTHER", "'unknown'"), **parameters):
        return False
    delete_settled(connection, item.batch)
    return True


def end(connection: sa.Connection, item: Item, state: State, charged: float | None, outcome: str) -> None:
    """Record the end of an order, unless another process has decided about it."""
    values = "state = :state, owner = NULL, ended = NOW(), outcome = :outcome, charged = :charged"
    condition = "(state = 'running' OR state = 'sending' AND owner = :owner)"
    update(connection, item, values, condition, state=state, charged=charged, outcome=outcome)


def order_again(connection: sa.Connection, item: Item, failure: RunFailedError, pause: float) -> None:
    """Queue an order whose run failed under a new key, after a pause in seconds; once, whichever process sees it."""
    values = (
        f"state = 'waiting', owner = NULL, {KEEP_RUN}, recovered = NULL, quoted = NULL, sent = NULL, "
        "attempt = attempt + 1, key = CAST(:name AS TEXT) || '.' || batch || '.' || CAST(number AS TEXT) || '.' "
        "|| CAST(attempt + 1 AS TEXT), not_before = NOW() + :pause, attempts = :attempts, "
        "charged_before = coalesce(charged_before, 0) + :charged"
    )
    charged, attempts = failure.run.charged_cost or 0.0, add_attempt(item.attempts, failure)
    parameters = {"name": item.name, "pause": pause, "attempts": attempts, "charged": charged, "run": failure.run_id}
    update(connection, item, values, "state = 'running' AND run_id = :run", **parameters)


def list_runs(connection: sa.Connection, since: float) -> list[str]:
    """Return the runs of all orders, of whichever batch, that can have been created since a time."""
    sql = "SELECT run_id FROM flora_orders WHERE run_id IS NOT NULL AND sent >= :since"
    runs = [row.run_id for row in select(connection, sql, since=since)]
    # An order that was sent before that time has ended its earlier attempts before it.
    sql = "SELECT earlier_runs FROM flora_orders WHERE earlier_runs IS NOT NULL AND (sent IS NULL OR sent >= :since)"
    for row in select(connection, sql, since=since):
        runs += row.earlier_runs.split(" ")
    return runs
