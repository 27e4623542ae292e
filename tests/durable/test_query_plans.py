"""The statements of a batch in SQLite: their cost does not grow with the table."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import backoff
import pytest
import sqlalchemy as sa
from killing import order

from flora_async import Flora
from flora_async.durable import Batch, Batches
from flora_async.durable._store import orders
from flora_async.durable._store.database import Database
from flora_async.durable._store.orders import Item
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(change_worker_policy: Callable[..., None], fast_retries: None) -> None:
    """Make pauses short."""
    change_worker_policy(first_pause=0.02, max_pause=0.1, read_interval=0.05, take_over_interval=0.01)


@pytest.fixture
def sent() -> Iterator[dict[str, Any]]:
    """Record each statement that reaches a database, with its parameters."""
    statements: dict[str, Any] = {}

    def record(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
            statements[statement] = values[0] if many else values

    sa.event.listen(sa.Engine, "before_cursor_execute", record)
    yield statements
    sa.event.remove(sa.Engine, "before_cursor_execute", record)


def plans(file: Path, statements: dict[str, Any]) -> dict[str, list[str]]:
    """Return the steps of each statement, as SQLite explains them."""
    with closing(sqlite3.connect(file)) as connection:
        return {
            statement: [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in statements.items()
        }


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Batch]:
    """Open a batch, with a sandbox and a client of its own."""
    async with (
        Sandbox(time_scale=0.005) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        Batches(flora, database=f"sqlite:///{file}", poll=lambda: backoff.expo(base=1, factor=0.02)) as batches,
    ):
        yield batches["mugs"]


async def test_no_statement_of_a_batch_scans_the_orders(tmp_path: Path, sent: dict[str, Any]) -> None:
    """Claim, start, end, take over, status, results, resume and close find their rows by an index."""
    file = tmp_path / "batch.db"
    async with opened(file) as batch:
        mugs = [order(number) for number in range(20)] + [order(20, "mug [fail:safety_blocked]")]
        assert (await batch.run(mugs, retry_failed=1)).completed == 20
        assert len([outcome async for outcome in batch.results()]) == 21
        assert len([outcome async for outcome in batch.results(as_finished=True)]) == 21
        assert await batch.retry_failed() == 1
        await batch.resume()
        assert await batch.lost_executors() == []
        assert await batch.skip([0]) == 0
    recovered = Item("one/1", "b", "mugs", 1, "k", "{}", "sending", 0.0, None, None, "{}")
    database = Database(f"sqlite:///{file}")
    await database.write(lambda c: orders.start(c, recovered, "run_1", None, recovered=True))
    await database.write(lambda c: orders.reassign(c, "two"))
    await database.close()
    found = plans(file, sent)
    assert len(found) > 20
    scanning = ("SCAN flora_orders", "SCAN o")
    scans = [step for steps in found.values() for step in steps if step.startswith(scanning)]
    assert {scan for scan in scans if "flora_orders_with_earlier_runs" not in scan} == set()


async def test_results_in_completion_order_continue_at_their_place(tmp_path: Path, sent: dict[str, Any]) -> None:
    """The next page of outcomes begins at an index entry, and the status sorts nothing."""
    file = tmp_path / "batch.db"
    async with opened(file) as batch:
        assert (await batch.run([order(0)])).completed == 1
        assert len([outcome async for outcome in batch.results(as_finished=True)]) == 1
    found = plans(file, sent)
    (results,) = [steps for sql, steps in found.items() if "ORDER BY ended" in sql]
    assert results == ["SEARCH flora_orders USING INDEX flora_orders_by_end (batch=? AND (ended,number)>(?,?))"]
    (sums,) = [steps for sql, steps in found.items() if "GROUP BY batch, state" in sql]
    assert sums == ["SEARCH flora_orders USING COVERING INDEX flora_orders_by_state (batch=?)"]


async def steps_of_a_claim(file: Path, ended: int) -> int:
    """Return the steps of SQLite for a claim under a cost limit, after so many orders have ended and as many wait."""
    database = Database(f"sqlite:///{file}")
    await database.open(create=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "INSERT INTO flora_batches (id, name, storer, digest, total, created, settings, max_cost) "
            "VALUES ('b', 'mugs', 'one/1', '', ?, 0, '{}', 1e6)",
            [2 * ended],
        )
        connection.executemany(
            "INSERT INTO flora_orders (batch, number, attempt, key, kind, model, body, state, quoted, charged) "
            "VALUES ('b', ?, 0, 'key', 'image', 'm', '{}', ?, ?, ?)",
            [(n, "completed", 0.02, 0.01) if n < ended else (n, "waiting", None, None) for n in range(2 * ended)],
        )
    steps: list[int] = []

    def count(connection: sa.Connection) -> int:
        steps.clear()
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(lambda: steps.append(1), 10)
        assert len(orders.claim(connection, "b", 20, "one/1")[0]) == 20
        raw.set_progress_handler(None, 0)
        return 10 * len(steps)

    await database.write(count)
    again = await database.write(count)
    await database.close()
    return again


async def test_a_claim_under_a_cost_limit_does_not_read_ended_orders(tmp_path: Path) -> None:
    """The second claim takes as many steps after 20,000 ended orders as after 2,000."""
    few, many = [await steps_of_a_claim(tmp_path / f"{ended}.db", ended) for ended in (2_000, 20_000)]
    assert many <= 1.2 * few
