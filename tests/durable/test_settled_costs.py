"""The stored costs of ended orders: always those of a sum over all rows, whatever happens to the orders."""

import random
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from flora_async import RunFailedError
from flora_async.durable import Batches
from flora_async.durable._store import orders
from flora_async.durable._store.database import Database, execute, select
from flora_async.durable._store.orders import Item
from flora_async.durable._store.schema import State
from flora_async.models import Run

pytestmark = pytest.mark.anyio

COUNT = 80
ENDS: list[tuple[State, float | None]] = [
    ("completed", 0.01),
    ("completed", 0.03),
    ("completed", None),
    ("failed", 0.0),
    ("failed", 0.02),
    ("unknown", None),
    ("unknown", None),
    ("refused", None),
]


def store(connection: sa.Connection) -> None:
    """Store a batch of two models."""
    sql = (
        "INSERT INTO flora_batches (id, name, storer, digest, total, created, settings, max_cost) "
        "VALUES ('b', 'mugs', 'one/1', '', :total, 0, '{}', 1000)"
    )
    execute(connection, sql, total=COUNT)
    sql = (
        "INSERT INTO flora_orders (batch, number, attempt, key, kind, model, body, state) "
        "VALUES ('b', :number, 0, 'key', 'image', :model, '{}', 'waiting')"
    )
    for number in range(COUNT):
        execute(connection, sql, number=number, model=f"model {number % 2}")


def check(connection: sa.Connection) -> int:
    """Compare the costs that a claim uses with the sums over all orders; return the number of orders summed before."""
    sql = "SELECT settled FROM flora_batches WHERE id = 'b' FOR UPDATE"
    ((stored,),) = select(connection, sql)
    costs, sums = orders._read_costs_so_far(connection, "b", stored), orders.read_costs(connection, "b")
    assert costs.keys() == sums.keys()
    for key, kind in sums.items():
        for name in kind.__struct_fields__:
            assert getattr(costs[key], name) == pytest.approx(getattr(kind, name)), (key, name)
    ((stored,),) = select(connection, sql)
    return 0 if stored is None else msgspec.json.decode(stored, type=orders.SettledCosts).end


def failure(run_id: str) -> RunFailedError:
    """Return the failure of a run that FLORA charged."""
    run = {"run_id": run_id, "status": "failed", "progress": 0, "created_at": 0, "charged_cost": 0.01}
    return RunFailedError(msgspec.convert(run, Run))


def step(connection: sa.Connection, chance: random.Random, seen: Counter[str], runs: list[str]) -> None:
    """Let something happen to an order, as one of two processes sees it."""
    sql = "SELECT * FROM flora_orders WHERE number = :number"
    (row,) = select(connection, sql, number=chance.randrange(COUNT))
    item = Item("one/1", "b", "mugs", row.number, row.key, "{}", row.state, 0.0, row.run_id, row.quoted, "{}")
    if chance.random() < 0.1:
        seen["claimed"] += len(orders.claim(connection, "b", 3, chance.choice(["one/1", "two/2"]))[0])
    elif row.state == "sending" and chance.random() < 0.6:
        runs.append(f"run_{len(runs)}")
        recovered = chance.random() < 0.5
        quoted = chance.choice([None, 0.02])
        seen["started"] += orders.start(connection, item, runs[-1], quoted, recovered=recovered)
    elif row.state == "running" and chance.random() < 0.2:
        orders.order_again(connection, item, failure(row.run_id), 0.0)
    elif row.state in ("sending", "running"):
        orders.end(connection, item, *chance.choice(ENDS), "{}")
    elif row.state == "unknown" and row.run_id is None:  # a late response
        runs.append(f"run_{len(runs)}")
        seen["late"] += orders.start(connection, item, runs[-1], 0.02, recovered=False)
    elif row.recovered:  # its run is another's
        sql = "SELECT number, key FROM flora_orders WHERE state = 'sending' AND owner = 'one/1' LIMIT 1"
        for other in select(connection, sql):
            true = Item("one/1", "b", "mugs", other.number, other.key, "{}", "sending", 0.0, None, None, "{}")
            seen["taken"] += orders.start(connection, true, row.run_id, 0.02, recovered=False)


def act(connection: sa.Connection, chance: random.Random, seen: Counter[str], runs: list[str]) -> None:
    """Let things happen to the orders, and check the costs after each fifth."""
    for number in range(600):
        if not select(connection, "SELECT 1 FROM flora_orders WHERE state = 'waiting' LIMIT 1"):
            break
        step(connection, chance, seen, runs)
        if number % 5 == 0:
            seen["settled"] = max(seen["settled"], check(connection))


async def test_stored_costs_are_the_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, ends, late responses, runs of other orders and requeued failures leave no sum that is not exact."""
    monkeypatch.setattr(orders, "SETTLED_PAGE", 1)
    seen: Counter[str] = Counter()
    for seed in range(2):
        url = f"sqlite:///{tmp_path}/{seed}.db"
        database = Database(url)
        await database.open(create=True)
        database._transact(store, writes=True)
        changes = partial(act, chance=random.Random(seed), seen=seen, runs=[])
        async with Batches(None, database=url) as batches:
            for _ in range(3):
                database._transact(changes, writes=True)
                seen["requeued"] += await batches["mugs"].retry_failed()
                database._transact(check, writes=True)
        await database.close()
    assert min(seen[name] for name in ("claimed", "started", "late", "taken", "requeued", "settled")) >= 1, seen
