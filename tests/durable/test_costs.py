"""Durable batches and money: late charges, limits, shares of a budget, orders that are ordered again."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import backoff
import pytest

from flora_async import Budget, ConfigurationError, Flora, Order, RunFailedError
from flora_async._failures import ReorderPolicy
from flora_async.durable import Batches
from flora_async.durable._store import orders as order_store
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

PRICE = 0.01
"""USD of a text of the sandbox."""


@pytest.fixture(autouse=True)
def quick(change_worker_policy: Callable[..., None], fast_retries: None) -> None:
    """Make pauses short."""
    change_worker_policy(read_interval=0.02, take_over_interval=0.05)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox with low quotes and late charges."""
    async with Sandbox(time_scale=0.005, quote_factor=3.5, charge_delay=20) as own:
        yield own


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of a database."""
    return f"sqlite:///{tmp_path}/batch.db"


@asynccontextmanager
async def opened(sandbox: Sandbox, url: str, **settings: Any) -> AsyncIterator[Batches]:
    """Open the batches of a database with a client of their own."""
    settings = {"poll": lambda: backoff.expo(base=1, factor=0.02), **settings}
    async with (
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as flora,
        Batches(flora, database=url, **settings) as batches,
    ):
        assert batches._worker is not None
        batches._worker.processor._reorder_policy = ReorderPolicy(first_pause=0.05)
        yield batches


def texts(count: int, prompt: str = "mug") -> list[Order]:
    """Return orders."""
    return [
        Order(type="text", prompt=f"{prompt} {number}", workspace_id="ws_1", project_id="prj_1")
        for number in range(count)
    ]


async def outcomes(batch: Any) -> list[Any]:
    """Return the outcomes of all orders."""
    return [outcome async for outcome in batch.results()]


async def test_costs_are_charges(sandbox: Sandbox, url: str) -> None:
    """A batch ends with the charges, not the quotes; its limit holds for them, and is used."""
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].run(texts(5))
        assert status.completed == 5
        assert status.cost == pytest.approx(5 * PRICE)
        assert [outcome.cost for outcome in await outcomes(batches["mugs"])] == [PRICE] * 5
        limited = await batches["lamps"].run(texts(40, "lamp"), max_cost=0.2)
        assert (limited.completed, limited.stopped) == (20, "max_cost")
        assert limited.cost == pytest.approx(0.2)
    assert sandbox.accepted == 25


async def test_a_process_that_ends_before_the_charge(sandbox: Sandbox, url: str) -> None:
    """The order is still open in the database: the next process awaits its charge, and orders nothing again."""
    async with Sandbox(time_scale=0.005, charge_delay=200) as slow:
        async with opened(slow, url) as batches:
            running = asyncio.create_task(batches["mugs"].run(texts(3)))
            await asyncio.sleep(0.4)
            status = await batches["mugs"].status()
            assert (status.running, status.completed) == (3, 0)
            running.cancel()
        async with opened(slow, url) as batches:
            status = await batches["mugs"].run(texts(3))
            assert status.completed == 3
            assert status.cost == pytest.approx(3 * PRICE)
        assert slow.accepted == 3


FAILURES = {"MODEL_TIMEOUT": 3, "GENERATION_NO_RESULT": 3, "SAFETY_BLOCKED": 1, "SOMETHING_NEW": 1}
"""Codes of runs, and how often they are ordered with ``retry_failed=2``."""


async def test_what_is_ordered_again(sandbox: Sandbox, url: str, tmp_path: Path) -> None:
    """Each attempt has a key of its own and is in the outcome; no other class is ordered again."""
    orders = [*texts(2), *(texts(1, f"[fail:{code}]")[0] for code in FAILURES)]
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].run(orders, retry_failed=2)
        assert (status.completed, status.failed) == (2, 4)
        ended = await outcomes(batches["mugs"])
        assert [len(outcome.attempts) + 1 for outcome in ended] == [1, 1, *FAILURES.values()]
        for outcome in ended[2:4]:
            errors = [*outcome.attempts, outcome.error]
            assert len({error.run_id for error in errors}) == 3
            assert all(isinstance(error, RunFailedError) for error in errors)
            assert outcome.key.endswith(f".{outcome.index}.2")
            assert len(outcome.to_dict()["attempts"]) == 2
        assert sandbox.accepted == 2 + sum(FAILURES.values())
        assert await batches["mugs"].retry_failed() == 4
        await batches["mugs"].finished()
        assert sandbox.accepted == 2 + 2 * sum(FAILURES.values())
        runs = await batches._database.read(lambda connection: order_store.list_runs(connection, 0.0))
        assert sorted(runs) == sorted(sandbox.orders)  # a lost create is not matched with an earlier attempt's run


async def test_no_attempt_is_lost_or_repeated(sandbox: Sandbox, url: str) -> None:
    """Processes that end at any moment leave the number of attempts as it is, and the settings of the batch."""
    codes = Counter({"MODEL_TIMEOUT": 10, "GENERATION_NO_RESULT": 10})
    orders = [each for code, count in codes.items() for each in texts(count, f"[fail:{code}]")]
    for step in range(8):
        async with opened(sandbox, url) as batches:
            running = asyncio.create_task(batches["mugs"].run(orders, retry_failed=3))
            await asyncio.sleep(0.05 * step)
            running.cancel()
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].resume()
        assert (status.failed, status.total) == (20, 20)
        assert [len(outcome.attempts) for outcome in await outcomes(batches["mugs"])] == [3] * 20
    assert sandbox.accepted == 80


async def test_a_failure_that_is_seen_twice(
    sandbox: Sandbox, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process that reports the failure of a run changes nothing: the order waits once."""
    seen: list[Any] = []
    original = order_store.order_again

    def twice(connection: Any, item: Any, failure: RunFailedError, pause: float) -> None:
        for _ in range(2):
            original(connection, item, failure, pause)
            seen.append(failure)

    monkeypatch.setattr(order_store, "order_again", twice)
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(texts(1, "[fail:MODEL_TIMEOUT]"), retry_failed=1)
    assert (len(seen), sandbox.accepted) == (2, 2)
    with closing(sqlite3.connect(tmp_path / "batch.db")) as database:
        assert database.execute("SELECT attempt FROM flora_orders").fetchall() == [(1,)]


async def test_stop_ends_the_batch(sandbox: Sandbox, url: str) -> None:
    """A failure with the advice stop stops the batch with its reason, as a 402 does; resume continues."""
    async with opened(sandbox, url, concurrency=1) as batches:
        orders = [*texts(1, "[fail:BILLING_NOT_ENOUGH_CREDITS]"), *texts(5)]
        status = await batches["mugs"].run(orders, retry_failed=3)
        assert (status.failed, status.waiting > 0) == (1, True)
        assert "BILLING_NOT_ENOUGH_CREDITS" in (status.stopped or "")
        assert (await batches["mugs"].resume()).completed == 5
    assert sandbox.accepted == 6


async def test_attempts_stay_within_the_limit(sandbox: Sandbox, url: str) -> None:
    """An order that would be ordered again does not start if it no longer fits."""
    async with opened(sandbox, url, concurrency=1) as batches:
        orders = [*texts(3), *texts(1, "[fail:MODEL_TIMEOUT]"), *texts(5)]
        status = await batches["mugs"].run(orders, retry_failed=100, max_cost=3.5 * PRICE)
        assert (status.completed, status.stopped, status.failed) == (3, "max_cost", 0)


# -- shares of a budget


async def test_a_batch_takes_a_share(sandbox: Sandbox, url: str) -> None:
    """The share is set aside while the batch runs, and replaced by its charges; others use the rest."""
    budget = Budget(0.5)
    async with opened(sandbox, url) as batches:
        running = asyncio.create_task(batches["mugs"].run(texts(10), max_cost=0.2, budget=budget))
        while not sandbox.accepted:
            await asyncio.sleep(0.005)
        assert (budget.expected, budget.spent) == (0.2, 0)
        with pytest.raises(ConfigurationError, match=r"budget has 0\.3 USD left"):
            await batches["lamps"].run(texts(10), max_cost=0.31, budget=budget)
        await running
        assert budget.spent == budget.expected == pytest.approx(0.1)
        with pytest.raises(ConfigurationError, match="max_cost"):
            await batches["lamps"].run(texts(10), budget=budget)
        with pytest.raises(ConfigurationError, match="other orders"):
            await batches["mugs"].run(texts(11), max_cost=0.2, budget=budget)
        assert budget.expected <= 0.1 + 1e-9


async def test_a_share_outlives_its_process(sandbox: Sandbox, url: str) -> None:
    """The batch stays within its share also after restarts, each with a new budget."""
    spent: Iterable[float] = []
    for patience in (0.1, 0.3, 60):
        budget = Budget(1.0)
        async with opened(sandbox, url, concurrency=4) as batches:
            running = asyncio.create_task(batches["mugs"].run(texts(60), max_cost=0.3, budget=budget))
            await asyncio.wait([running], timeout=patience)
            spent = [budget.spent]
            assert budget.expected <= 0.3 + 1e-9
            running.cancel()
    assert sandbox.accepted == 30
    assert list(spent) == [pytest.approx(0.3)]
