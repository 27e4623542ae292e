"""Durable batches in one process: orders are sent once, end as they should, and survive what can happen."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import backoff
import msgspec
import pytest
import sqlalchemy as sa
from killing import order

from flora_async import (
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DatabaseError,
    Flora,
    FloraError,
    Order,
    PermissionDeniedError,
    RunFailedError,
    RunTimeoutError,
)
from flora_async.durable import Batches, reassign
from flora_async.durable._store import database as database_module
from flora_async.durable._store import orders as orders_module
from flora_async.durable._store.database import Database
from flora_async.durable._store.schema import batches as batch_rows
from flora_async.durable._store.schema import orders as order_rows
from flora_async.durable._store.schema import workers
from flora_async.durable._worker import worker as worker_module
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, change_worker_policy: Callable[..., None], fast_retries: None) -> None:
    """Make pauses short."""
    change_worker_policy(first_pause=0.02, max_pause=0.1, read_interval=0.05, take_over_interval=0.1)
    monkeypatch.setattr(database_module, "OUTAGE_PAUSE", 0.02)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a sandbox whose runs take no time, and that rejects keys which were used before."""
    async with Sandbox(time_scale=0.005) as own:
        yield own


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Give a place for a database."""
    return f"sqlite:///{tmp_path}/batch.db"


@asynccontextmanager
async def opened(sandbox: Sandbox, url: str, **settings: Any) -> AsyncIterator[Batches]:
    """Open the batches of a database, with a client of their own."""
    settings = {"executor": "one", "only": "mugs", "poll": lambda: backoff.expo(base=1, factor=0.02), **settings}
    async with (
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as flora,
        Batches(flora, database=url, **settings) as batches,
    ):
        yield batches


def orders(count: int, prompt: str = "mug") -> Iterable[Order]:
    """Give orders."""
    return (order(number, prompt) for number in range(count))


def change(url: str, statement: sa.Executable) -> None:
    """Change the database behind everybody's back."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(statement)
    engine.dispose()


async def outcomes(batch: Any, **settings: Any) -> list[Any]:
    """Collect what became of the orders."""
    return [outcome async for outcome in batch.results(**settings)]


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


async def test_the_database_never_holds_the_key(sandbox: Sandbox, url: str, tmp_path: Path) -> None:
    """The file and its log hold no API key, also after orders that went wrong."""
    async with opened(sandbox, url) as batches:
        sandbox.fail_next(500, times=3)
        await batches["mugs"].run([*orders(5), *orders(2, "mug [fail:safety_blocked]"), *orders(2, "mug [http:400]")])
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert any(b"safety_blocked" in content for content in files)
    assert not any(sandbox.api_key.encode() in content for content in files)


class Row(Order, frozen=True, kw_only=True):
    """An order with a thing of the caller's own, which is nothing for FLORA and need not be JSON."""

    line: object


async def test_a_client_that_is_closed_under_a_batch(sandbox: Sandbox, url: str) -> None:
    """The call ends with that error at once, nothing is logged as a fault, and the next start finishes the batch."""
    async with opened(sandbox, url) as batches:
        run = asyncio.create_task(batches["mugs"].run(orders(3, "mug [slow]")))
        await until(lambda: sandbox.accepted == 3)
        assert batches._worker is not None
        await batches._worker.flora.close()
        with pytest.raises(ClientClosedError, match="cannot continue 'mugs'"):
            await asyncio.wait_for(run, 5)
        with pytest.raises(ClientClosedError):
            await outcomes(batches["mugs"])
    async with opened(sandbox, url) as batches:
        assert (await batches["mugs"].status()).running == 3
    assert sandbox.accepted == 3


async def test_an_order_may_carry_more(sandbox: Sandbox, url: str) -> None:
    """What is the caller's own stays behind."""
    rows = [Row(**msgspec.structs.asdict(order), line=object()) for order in orders(3)]
    async with opened(sandbox, url) as batches:
        assert (await batches["mugs"].run(rows)).completed == 3
        assert [outcome.order for outcome in await outcomes(batches["mugs"])] == list(orders(3))


async def test_all_is_ordered_once_and_comes_back_in_order(sandbox: Sandbox, url: str) -> None:
    """With the order, the run, the key and what it cost."""
    async with opened(sandbox, url, only=None) as batches:
        status = await batches["mugs"].run(orders(30))
        assert (status.total, status.completed, status.ended, status.finished) == (30, 30, 30, True)
        assert status.cost == pytest.approx(0.3)
        ended = await outcomes(batches["mugs"])
        assert [outcome.index for outcome in ended] == list(range(30))
        assert [outcome.order for outcome in ended] == list(orders(30))
        for outcome in ended:
            assert sandbox.orders[outcome.run.run_id] == outcome.order
            assert outcome.run.outputs[0].type == "text"
        assert len({outcome.key for outcome in ended}) == 30
        by_end = await outcomes(batches["mugs"], as_finished=True)
        assert sorted(outcome.index for outcome in by_end) == list(range(30))
        assert [status.batch for status in await batches.statuses()] == ["mugs"]
    assert sandbox.accepted == 30


async def test_orders_may_come_asynchronously(sandbox: Sandbox, url: str) -> None:
    """And results while it runs."""

    async def slowly() -> AsyncIterator[Order]:
        for each in orders(5):
            await asyncio.sleep(0)
            yield each

    async with opened(sandbox, url) as batches:
        running = asyncio.create_task(batches["mugs"].run(slowly()))
        await until(lambda: sandbox.accepted > 0)
        assert len(await outcomes(batches["mugs"], as_finished=True)) == 5
        assert (await running).finished


async def test_a_batch_that_is_there_is_gone_on_with(sandbox: Sandbox, url: str) -> None:
    """The same orders are not ordered again, whoever asks."""
    for _ in range(2):
        async with opened(sandbox, url) as batches:
            assert (await batches["mugs"].run(orders(3))).completed == 3
            assert (await batches["mugs"].run(orders(3))).completed == 3
    assert sandbox.accepted == 3


async def test_other_orders_need_another_name(sandbox: Sandbox, url: str) -> None:
    """They are not mistaken for those that are there."""
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(3))
        with pytest.raises(ConfigurationError, match="has other orders"):
            await batches["mugs"].run(orders(4))
    assert sandbox.accepted == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([order(0), "mug"], "order 1: a batch takes Orders, not str"),
        ([order(0), Order(type="text", prompt="", workspace_id="ws_1", project_id="prj_1")], "order 1: prompt must"),
        ([], "there are no orders"),
    ],
)
async def test_orders_that_cannot_be(sandbox: Sandbox, url: str, given: Any, words: str) -> None:
    """All or none: nothing is ordered, and the name is still free."""
    async with opened(sandbox, url) as batches:
        with pytest.raises(ConfigurationError, match=words):
            await batches["mugs"].run(given)
        assert sandbox.accepted == 0
        assert (await batches["mugs"].run(orders(2))).completed == 2


async def test_each_failure_touches_its_order_only(sandbox: Sandbox, url: str) -> None:
    """A run that FLORA gives up, an order that it refuses."""
    mixed = [order(0), order(1, "[fail:safety_blocked]"), order(2, "[http:400]"), order(3)]
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].run(mixed)
        assert (status.completed, status.failed, status.refused) == (2, 1, 1)
        assert status.cost == pytest.approx(0.02)
        _, failed, refused, _ = await outcomes(batches["mugs"])
    assert isinstance(failed.error, RunFailedError)
    assert failed.error.code == "safety_blocked"
    assert failed.error.run.run_id in sandbox.orders
    assert isinstance(refused.error, BadRequestError)


async def test_nothing_to_order_anew(sandbox: Sandbox, url: str) -> None:
    """Then nothing is."""
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(2))
        assert await batches["mugs"].retry_failed() == 0


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refusal_that_all_would_meet_stops_the_batch(sandbox: Sandbox, url: str, status: int) -> None:
    """It says why, nothing has failed, and it can be gone on with."""
    sandbox.fail_next(status, times=1000, method="POST")
    async with opened(sandbox, url) as batches:
        stopped = await batches["mugs"].run(orders(5))
        assert (stopped.waiting, stopped.ended) == (5, 0)
        assert stopped.stopped is not None
        assert stopped.stopped.startswith(str(status))
        assert await outcomes(batches["mugs"]) == []
        sandbox._planned.clear()
        assert (await batches["mugs"].resume()).completed == 5
    assert sandbox.accepted == 5


async def test_what_it_may_cost(sandbox: Sandbox, url: str) -> None:
    """The batch stops before the order that would be too much, and goes on when it may cost more."""
    async with opened(sandbox, url) as batches:
        stopped = await batches["mugs"].run(orders(20), max_cost=0.075)
        assert (stopped.completed, stopped.waiting, stopped.stopped) == (7, 13, "max_cost")
        assert sandbox.accepted == 7
        assert (await batches["mugs"].resume(max_cost=1)).completed == 20


async def test_orders_a_second(sandbox: Sandbox, url: str) -> None:
    """All workers together keep to the rate."""
    async with opened(sandbox, url) as batches:
        began = time.monotonic()
        await batches["mugs"].run(orders(4), rate=2)
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize("begun", [0, 10])
async def test_flora_is_away_for_longer_than_all_retries(url: str, begun: int) -> None:
    """The batch pauses, and goes on by itself; nothing has failed."""
    async with Sandbox(time_scale=0.005) as sandbox, opened(sandbox, url, concurrency=4) as batches:
        port = int(sandbox.base_url.split(":")[2].split("/")[0])
        if not begun:
            await sandbox.close()
        running = asyncio.create_task(batches["mugs"].run(orders(60)))
        if begun:
            await until(lambda: sandbox.accepted > begun)
            await sandbox.close()
        else:
            await until(lambda: batches.trouble is not None)
        await asyncio.sleep(0.5)  # five times the longest pause
        before = await batches["mugs"].status()
        assert before.waiting > 0
        assert (before.failed, before.refused, before.unknown) == (0, 0, 0)
        async with Sandbox(time_scale=0.005, port=port, api_key=sandbox.api_key) as back:
            back._keys, back._runs = sandbox._keys, sandbox._runs
            status = await running
        assert batches.trouble is None
        assert (status.completed, status.failed, status.refused, status.unknown) == (60, 0, 0, 0)
        assert sandbox.accepted + back.accepted == 60


async def test_errors_that_pass(url: str) -> None:
    """503s, 429s, 500s, lost replies: each order is billed once, and ends as its run or as unknown with its key."""
    faults: Any = {"lost_reply": 0.1, 503: 0.1, 500: 0.1, 429: 0.1}
    async with (
        Sandbox(time_scale=0.005, faults=faults, seed=4, idempotency="replay") as sandbox,
        opened(sandbox, url, concurrency=8) as batches,
    ):
        status = await batches["mugs"].run(orders(40))
        assert (status.completed, sandbox.accepted) == (40, 40)


async def left_behind(sandbox: Sandbox, url: str, **values: Any) -> str:
    """Store two orders as a process leaves them that was killed after it sent the first; return its key."""
    sandbox.fail_next(402, times=1000, method="POST")
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(2))
    sandbox._planned.clear()
    sent = {"state": "sending", "owner": "one/dead", "sent": time.time(), **values}
    change(url, sa.update(order_rows).where(order_rows.c.number == 0).values(sent))
    (key,) = stored(url, "SELECT key FROM flora_orders WHERE number = 0")
    return str(key)


def stored(url: str, question: str) -> list[Any]:
    """Read a column of the database."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        return [row[0] for row in database.execute(question)]


async def test_an_order_that_another_process_has_out(sandbox: Sandbox, url: str) -> None:
    """It is left to that process while that gives signs of life, and taken over when it gives none."""
    await left_behind(sandbox, url)
    row = {"process": "one/dead", "executor": "one", "host": "elsewhere", "pid": 1}
    seen: sa.ColumnElement[float] = sa.literal_column("(julianday('now') - 2440587.5) * 86400.0")
    change(url, sa.insert(workers).values(**row, seen=seen))
    async with opened(sandbox, url) as batches:
        resumed = asyncio.create_task(batches["mugs"].resume())
        await until(lambda: sandbox.accepted == 1)
        await asyncio.sleep(0.3)
        assert sandbox.accepted == 1
        with pytest.raises(ConfigurationError, match=r"was seen \d+ s ago"):
            await reassign(url, "one")
        change(url, sa.update(workers).where(workers.c.process == "one/dead").values(seen=workers.c.seen - 16))
        assert (await resumed).completed == 2
    assert sandbox.accepted == 2


async def test_an_executor_that_is_lost_is_named(sandbox: Sandbox, url: str) -> None:
    """Its orders can be released by hand, once it was not seen for seven seconds."""
    await left_behind(sandbox, url, state="running", run_id="run_1")
    async with Batches(None, database=url) as batches:
        assert await batches["mugs"].lost_executors() == ["one"]
        assert await reassign(url, "one") == 1
        assert await batches["mugs"].lost_executors() == []


async def test_a_process_that_lost_its_order_does_not_send_it(
    sandbox: Sandbox, url: str, change_worker_policy: Callable[..., None]
) -> None:
    """A worker that wakes up after others took its order over finds that out before it sends."""
    change_worker_policy(renew_after=0.0)
    key = await left_behind(sandbox, url)
    async with opened(sandbox, url) as batches:
        await batches["mugs"].resume(wait=False)
        sandbox.fail_next(500, times=3, method="POST")
        await until(lambda: stored(url, f"SELECT owner FROM flora_orders WHERE key = '{key}'") != ["one/dead"])
        change(url, sa.insert(workers).values(process="b", executor="b", host="b", pid=1, seen=time.time() + 99))
        change(url, sa.update(order_rows).where(order_rows.c.number == 0).values(owner="b", state="sending"))
        before = sandbox.accepted
        await asyncio.sleep(0.5)
        assert sandbox.accepted <= before + 1  # the second order may be sent, the lost one is not
        assert stored(url, f"SELECT owner FROM flora_orders WHERE key = '{key}'") == ["b"]


async def test_the_client_does_not_send_again_what_others_took_over(
    sandbox: Sandbox, url: str, change_worker_policy: Callable[..., None], change_policies: Callable[..., None]
) -> None:
    """The claim is renewed also before the attempts that the client itself makes after a 503."""
    change_worker_policy(renew_after=0.0)
    change_policies(retry={"first_delay": 0.5})
    sandbox.fail_next(503, method="POST")
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora, Batches(flora, database=url) as batches:
        running = asyncio.create_task(batches["mugs"].run(orders(1)))
        await until(lambda: not sandbox._planned)
        change(url, sa.insert(workers).values(process="b", executor="b", host="b", pid=1, seen=time.time() + 99))
        change(url, sa.update(order_rows).values(owner="b"))
        await asyncio.sleep(1.5)  # three times the pause
        assert (sandbox.accepted, stored(url, "SELECT owner FROM flora_orders")) == (0, ["b"])
        running.cancel()


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (409, "conflict"), (409, "idempotency_duplicate")])
async def test_a_doubtful_order_is_never_ordered_anew(sandbox: Sandbox, url: str, status: int, code: str) -> None:
    """Its first response was lost; whatever FLORA answers later, its run is looked for, and nothing else is ordered."""
    run_id = await post(sandbox, await left_behind(sandbox, url))
    sandbox.fail_next(status, times=2 if status == 404 else 1, method="POST", code=code)
    async with opened(sandbox, url, concurrency=1) as batches:
        await batches["mugs"].resume()
        first, second = await outcomes(batches["mugs"])
        assert second.state == "completed"
        if status == 404:
            assert (first.state, first.error.candidates) == ("unknown", (run_id,))
        else:
            assert (first.state, first.run.run_id) == ("completed", run_id)
        assert await batches["mugs"].retry_failed() == 0
    assert sandbox.accepted == 2


async def test_only_failed_and_refused_orders_are_requeued(sandbox: Sandbox, url: str) -> None:
    """They get new keys; an unknown order is left as it is."""
    async with opened(sandbox, url) as batches:
        batch = batches["mugs"]
        await batch.run([order(0), order(1, "[fail:model_timeout]"), order(2), order(3, "[http:400]")])
        keys = [outcome.key for outcome in await outcomes(batch)]
        change(url, sa.update(order_rows).where(order_rows.c.number == 2).values(state="unknown", outcome=None))
        assert await batch.retry_failed() == 2
        status = await batch.resume()
        again = await outcomes(batch)
    assert (status.completed, status.failed, status.refused, status.unknown) == (1, 1, 1, 1)
    assert [outcome.key != key for outcome, key in zip(again, keys, strict=True)] == [False, True, False, True]
    assert sandbox.accepted == 4  # 3 at first, and the failed one again


async def test_one_403_ends_one_order(sandbox: Sandbox, url: str) -> None:
    """An order whose model is forbidden ends as refused, also as the first of all, one at a time."""
    async with opened(sandbox, url, concurrency=1) as batches:
        status = await batches["mugs"].run([order(0, "[http:403]"), *orders(3)])
        assert (status.refused, status.completed, status.stopped) == (1, 3, None)
        assert isinstance((await outcomes(batches["mugs"]))[0].error, PermissionDeniedError)


async def test_a_batch_started_twice_at_once(sandbox: Sandbox, url: str) -> None:
    """It is one batch: nothing is billed twice, and no database error is raised."""
    async with opened(sandbox, url, only=None) as batches, opened(sandbox, url, only=None, executor="two") as others:
        for name in ("a", "b", "c"):
            both = batches[name].run(orders(20)), others[name].run(orders(20))
            assert [status.completed for status in await asyncio.gather(*both)] == [20, 20]
    assert sandbox.accepted == 60


async def test_two_processes_share_a_cost_limit(sandbox: Sandbox, url: str) -> None:
    """Both begin orders at once; together they stay below the limit, and all orders have their end."""
    async with opened(sandbox, url) as batches, opened(sandbox, url, executor="two") as others:
        status = await batches["mugs"].run(orders(60), max_cost=0.305)
        assert (await others["mugs"].finished()).stopped == "max_cost"
        assert (status.completed, sandbox.accepted, round(status.cost, 6)) == (30, 30, 0.3)


async def test_a_recovered_order_has_its_cost(url: str) -> None:
    """Its run was found in the history; the charge counts against the limit."""
    async with Sandbox(time_scale=0.005) as sandbox, opened(sandbox, url, concurrency=4) as batches:
        sandbox.fail_next("lost_reply", times=2, method="POST", path="/generate")
        status = await batches["mugs"].run(orders(12), max_cost=0.105)
        assert (status.completed, sandbox.accepted) == (10, 10)
        assert status.cost == pytest.approx(0.1)


async def test_a_run_that_takes_too_long(sandbox: Sandbox, url: str) -> None:
    """It ends as unknown, with the run's id: it may end well later, and is not ordered again."""
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].run([order(0, "[slow]")], run_timeout=0.3)
        (outcome,) = await outcomes(batches["mugs"])
        assert (status.unknown, await batches["mugs"].retry_failed()) == (1, 0)
    assert isinstance(outcome.error, RunTimeoutError)
    assert outcome.error.run_id in sandbox.orders


async def test_life_with_a_batch(sandbox: Sandbox, url: str) -> None:
    """Cancelled, continued, with orders that are skipped, and deleted at the end."""
    sandbox.fail_next(402, times=1000, method="POST")
    async with opened(sandbox, url) as batches:
        batch = batches["mugs"]
        await batch.run(orders(5))
        sandbox._planned.clear()
        await batch.cancel()
        assert (await batch.status()).stopped == "cancelled"
        assert await batch.skip([1, 3, 3, 99]) == 2
        status = await batch.resume()
        assert (status.completed, status.skipped, status.finished) == (3, 2, True)
        assert [outcome.state for outcome in await outcomes(batch)][:2] == ["completed", "skipped"]
        assert await batch.skip([0]) == 0
        await batch.delete()
        assert await batches.statuses() == []
        assert (await batch.run(orders(2))).completed == 2


async def test_a_batch_in_work_is_not_deleted(sandbox: Sandbox, url: str) -> None:
    """Its orders are in flight, and would be lost."""
    async with opened(sandbox, url) as batches:
        running = asyncio.create_task(batches["mugs"].run([order(0, "[slow]")]))
        await until(lambda: sandbox.accepted > 0)
        with pytest.raises(ConfigurationError, match="1 orders of the batch are in flight"):
            await batches["mugs"].delete()
        running.cancel()


async def test_several_batches_share_the_places(sandbox: Sandbox, url: str) -> None:
    """A small batch does not wait for the end of a large one."""
    async with opened(sandbox, url, only=None, concurrency=4) as batches:
        large = asyncio.create_task(batches["large"].run(orders(200)))
        await until(lambda: sandbox.accepted > 4)
        assert (await batches["small"].run(orders(4))).completed == 4
        assert not large.done()
        large.cancel()


async def test_orders_of_a_dead_storer_are_deleted(sandbox: Sandbox, url: str) -> None:
    """A process that died while it stored a batch leaves no orders behind, and its name is free."""
    async with opened(sandbox, url) as batches:
        row = {"id": "x", "storer": "dead", "digest": "", "total": 0, "created": 0.0, "settings": "{}"}
        change(url, sa.insert(batch_rows).values(**row))
        await batches["mugs"].run(orders(2))
    assert stored(url, "SELECT name FROM flora_batches") == ["mugs"]


async def test_the_database_is_away_for_a_moment(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes are repeated, and so is a commit whose outcome is unknown: no order is lost or billed twice."""
    transact, calls = Database._transact, iter(range(10_000))

    def fail_often(self: Any, work: Any, writes: bool) -> Any:
        call = next(calls)
        if self._opened and call % 5 == 0:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("gone"))
        done = transact(self, work, writes)
        if self._opened and call % 5 == 1:
            raise sa.exc.OperationalError("COMMIT", {}, Exception("gone"))
        return done

    async with opened(sandbox, url, concurrency=4) as batches:
        monkeypatch.setattr(Database, "_transact", fail_often)
        status = await batches["mugs"].run(orders(20))
        monkeypatch.undo()
    assert (status.completed, sandbox.accepted) == (20, 20)


@pytest.mark.parametrize("words", ["attempt to write a readonly database", "unable to open database file"])
async def test_a_database_that_cannot_be_written_for_a_while(
    sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The batch pauses and names the trouble, then goes on, with the runs that were accepted meanwhile."""
    transact = Database._transact

    def refuse_writes(self: Any, work: Any, writes: bool) -> Any:
        if writes:
            raise sa.exc.OperationalError("UPDATE", {}, Exception(words))
        return transact(self, work, writes)

    async with opened(sandbox, url, concurrency=4) as batches, asyncio.timeout(20):
        running = asyncio.create_task(batches["mugs"].run(orders(12)))
        await until(lambda: sandbox.accepted >= 4)
        monkeypatch.setattr(Database, "_transact", refuse_writes)
        await until(lambda: words in (batches.trouble or ""))
        monkeypatch.setattr(Database, "_transact", transact)
        assert (await running).completed == 12
    assert sandbox.accepted == 12


async def test_a_failed_write_leaves_no_order_in_forgetful_hands(
    sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an error that is not retried each order ends; an accepted run that was not recorded is in the log."""

    def fail_at_first(change: Callable[..., Any]) -> Callable[..., Any]:
        failures = iter(range(8))

        def changed(*given: Any, **named: Any) -> Any:
            if next(failures, None) is not None:
                raise sa.exc.OperationalError("UPDATE", {}, Exception("no such table: flora_orders"))
            return change(*given, **named)

        return changed

    monkeypatch.setattr(worker_module, "FAULT_PAUSE", 0.05)
    monkeypatch.setattr(orders_module, "start", fail_at_first(orders_module.start))
    monkeypatch.setattr(orders_module, "leave", fail_at_first(orders_module.leave))
    async with opened(sandbox, url, concurrency=4) as batches, asyncio.timeout(20):
        status = await batches["mugs"].run(orders(12))
    assert (status.ended, sandbox.accepted) == (12, 12)
    assert "its run is run_" in caplog.text


async def test_a_value_that_cannot_be_stored_fails_alone(sandbox: Sandbox, url: str) -> None:
    """A change that the driver refuses raises an error of ours, and the changes of its transaction are made."""
    async with opened(sandbox, url) as batches, asyncio.timeout(20):
        await batches["mugs"].run(orders(1))
        changes = (
            batches["mugs"].record_files(0, ["mug.png"]),
            batches["mugs"].skip([2**64]),
            batches["mugs"].record_files(0, ["\udc80.png"]),
            batches.reassign("\udc80"),
        )
        made = await asyncio.gather(*changes, return_exceptions=True)
        assert [type(each) for each in made] == [type(None), DatabaseError, DatabaseError, DatabaseError]
        assert [outcome.files for outcome in await outcomes(batches["mugs"])] == [("mug.png",)]


async def test_closing_while_the_database_is_away(
    sandbox: Sandbox, url: str, change_worker_policy: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that waits for the database fails when the batches are closed, and does not wait forever."""

    def fail(self: Any, work: Any, writes: bool) -> Any:
        raise sa.exc.OperationalError("UPDATE", {}, Exception("gone"))

    monkeypatch.setattr(database_module, "CLOSE_TIMEOUT", 0.05)
    change_worker_policy(close_timeout=0.05)
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(1))
        monkeypatch.setattr(Database, "_transact", fail)
        changes = [asyncio.create_task(batches["mugs"].cancel()) for _ in range(2)]
        await until(lambda: batches.trouble is not None)
        changes.append(asyncio.create_task(batches["mugs"].cancel()))
    for change_made in changes:
        with pytest.raises(DatabaseError, match="closed before the change"):
            await asyncio.wait_for(change_made, 5)


async def test_batches_that_were_never_opened_are_closed(sandbox: Sandbox, url: str) -> None:
    """No database is created for it, and closing twice is closing once."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        batches = Batches(flora, database=url)
        await batches.close()
        assert not Path(url.removeprefix("sqlite:///")).exists()
        async with batches:
            pass
        await batches.close()


async def test_a_database_of_an_older_version(sandbox: Sandbox, url: str) -> None:
    """One sentence, and nothing in it is changed."""
    change(url, sa.text("CREATE TABLE flora_batches (batch TEXT)"))
    with pytest.raises(ConfigurationError, match="another version of flora-async"):
        async with opened(sandbox, url):
            pass


async def test_a_worker_is_alive_by_its_signs_only(url: str, sandbox: Sandbox) -> None:
    """Host and pid are shown, and never trusted: a pid of another container says nothing."""
    async with opened(sandbox, url):
        with pytest.raises(ConfigurationError, match=r"one \(host .*, process \d+\) was seen \d+ s ago"):
            await reassign(url, "one")
        change(url, sa.update(workers).values(seen=workers.c.seen - 16))
        assert await reassign(url, "one") == 0


async def test_without_a_client_nothing_is_ordered(sandbox: Sandbox, url: str) -> None:
    """Batches that only look refuse to order, in one sentence."""
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(1))
    async with Batches(None, database=url) as batches:
        assert (await batches["mugs"].status()).completed == 1
        with pytest.raises(ConfigurationError, match="no client to order with"):
            await batches["other"].run(orders(1))


async def post(sandbox: Sandbox, key: str) -> str:
    """Order the first as the killed process has; give its run."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        order = Order(type="text", prompt="mug 0", workspace_id="ws_1", project_id="prj_1")
        started = await flora.generations.create(order, idempotency_key=key)
        return started.run_id


@pytest.mark.parametrize("account", ["replay", "reject"])
async def test_killed_between_acceptance_and_record(url: str, account: Any) -> None:
    """The run is found, and nothing is ordered again."""
    async with Sandbox(time_scale=0.005, idempotency=account) as sandbox:
        run_id = await post(sandbox, await left_behind(sandbox, url))
        async with opened(sandbox, url) as batches:
            status = await batches["mugs"].resume()
            first, _ = await outcomes(batches["mugs"])
        assert (status.completed, sandbox.accepted, first.run.run_id) == (2, 2, run_id)


async def test_killed_before_it_was_sent(sandbox: Sandbox, url: str) -> None:
    """It is sent now, under its key."""
    key = await left_behind(sandbox, url)
    async with opened(sandbox, url) as batches:
        assert (await batches["mugs"].resume()).completed == 2
        first, _ = await outcomes(batches["mugs"])
    assert (first.key, sandbox.accepted) == (key, 2)


async def test_a_run_that_is_another_orders_is_not_taken(sandbox: Sandbox, url: str) -> None:
    """Two that it could be: unknown, with its key and both."""
    key = await left_behind(sandbox, url)
    mine, strange = await post(sandbox, key), await post(sandbox, "somebody-else")
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].resume()
        first, _ = await outcomes(batches["mugs"])
    assert (status.completed, status.unknown, sandbox.accepted) == (1, 1, 3)
    assert isinstance(first.error, CreateOutcomeUnknownError)
    assert (first.error.idempotency_key, first.error.accepted) == (key, True)
    assert set(first.error.candidates) >= {mine, strange}


async def test_down_for_longer_than_flora_remembers_keys(sandbox: Sandbox, url: str) -> None:
    """The order is not sent again: it is unknown, with its key."""
    key = await left_behind(sandbox, url, sent=time.time() - 7000)
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].resume()
        first, _ = await outcomes(batches["mugs"])
    assert (status.completed, status.unknown, sandbox.accepted) == (1, 1, 1)
    assert isinstance(first.error, CreateOutcomeUnknownError)
    assert (first.error.idempotency_key, first.error.accepted) == (key, False)


async def test_leaving_in_the_middle(sandbox: Sandbox, url: str) -> None:
    """What was begun can be taken up at once, by another executor too."""
    async with opened(sandbox, url, concurrency=3) as batches:
        running = asyncio.create_task(batches["mugs"].run(orders(30)))
        await until(lambda: sandbox.accepted > 4)
        running.cancel()
    assert sandbox.accepted < 30
    async with opened(sandbox, url, executor="two") as batches:
        assert (await batches["mugs"].resume()).completed == 30
    assert sandbox.accepted == 30


async def test_reassigning_in_a_database_without_batches(url: str) -> None:
    """There is none, and none is made."""
    with pytest.raises(ConfigurationError, match="there is no batch in sqlite"):
        await reassign(url, "one")
    assert not Path(url.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize(
    "database", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:////no/such/folder/x.db", "sqlite:///:memory:", 7]
)
async def test_a_database_that_cannot_be(sandbox: Sandbox, database: str) -> None:
    """Said at once."""
    with pytest.raises(ConfigurationError, match="database"):
        async with opened(sandbox, database):
            pass


async def test_a_database_that_is_none(sandbox: Sandbox, tmp_path: Path) -> None:
    """An error of ours, without what was to be written."""
    (tmp_path / "x.db").write_text("no database at all, but a file that is long enough to be taken for one" * 9)
    with pytest.raises(DatabaseError, match="file is not a database"):
        async with opened(sandbox, f"sqlite:///{tmp_path}/x.db"):
            pass


async def test_a_batch_that_is_not_there(sandbox: Sandbox, url: str) -> None:
    """Whatever is asked of it."""
    async with opened(sandbox, url) as batches:
        for call in (batches["mugs"].status, batches["mugs"].resume, batches["mugs"].retry_failed):
            with pytest.raises(ConfigurationError, match="there is no batch 'mugs'"):
                await call()
        with pytest.raises(ConfigurationError, match="a batch name is"):
            batches["a/b"]


async def test_only_errors_of_ours_leave(sandbox: Sandbox, url: str) -> None:
    """A database whose tables are gone is one."""
    async with opened(sandbox, url) as batches:
        change(url, sa.text("DROP TABLE flora_orders"))
        with pytest.raises(FloraError, match="no such table"):
            await batches["mugs"].run(orders(2))
