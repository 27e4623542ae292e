"""Batches on DBOS, in one process: what is ordered, what it ends as, and what is never done twice."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import backoff
import msgspec
import pytest
import sqlalchemy as sa
from anyio.to_thread import run_sync
from dbos import DBOS
from dbos import error as dbos_error
from killing import order

from flora_async import (
    BadRequestError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DatabaseError,
    Flora,
    FloraError,
    Order,
    RunFailedError,
    _pacing,
)
from flora_async.durable import (
    Batches,
    BatchSettings,
    _batch,
    _deciding,
    _fulfilling,
    _ledger,
    _workflows,
    adopt,
)
from flora_async.durable._tables import batches as batch_rows
from flora_async.durable._tables import items, processes
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses short."""
    for name in ("RETRY_FIRST", "RATE_LIMIT_PAUSE", "RESEND_PAUSE", "RECOVERY_CONFIRM"):
        monkeypatch.setattr(_pacing, name, 0.01)
    monkeypatch.setattr(_pacing, "RECOVERY_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(_pacing, "RATE_FLOOR", 1000.0)
    monkeypatch.setattr(_deciding, "PAUSE_FIRST", 0.02)
    monkeypatch.setattr(_deciding, "PAUSE_CAP", 0.1)
    monkeypatch.setattr(_fulfilling, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(_fulfilling, "MONEY_AGAIN", 0.02)
    monkeypatch.setattr(_batch, "LOOK", 0.05)


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


def taken(url: str) -> Sequence[str]:
    """List the chunks that an executor has taken."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT workflow_uuid FROM workflow_status WHERE status = 'PENDING'"))
        listed = [row[0] for row in found]
    engine.dispose()
    return listed


async def outcomes(batch: Any, **settings: Any) -> list[Any]:
    """Collect what became of the orders."""
    return [outcome async for outcome in batch.results(**settings)]


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


async def test_what_comes_from_the_queue_at_the_end_is_given_back(sandbox: Sandbox, url: str) -> None:
    """Chunks that DBOS takes while the block is left wait for nobody: others take them up."""
    async with opened(sandbox, url, executor="one") as batches:
        _workflows._attached.clear()  # as leaving the block begins
        await batches["mugs"].add(_batch._plainly(orders(3)), max_cost=None, settings=BatchSettings())
        await until(lambda: len(taken(url)) == 3)
    assert taken(url) == []
    async with asyncio.timeout(20), opened(sandbox, url, executor="two") as batches:
        assert (await batches["mugs"].resume()).completed == 3


@pytest.mark.parametrize("ended", ["ERROR", "SUCCESS", "CANCELLED", None])
async def test_orders_that_dbos_has_done_with_are_taken_up(sandbox: Sandbox, url: str, ended: str | None) -> None:
    """Whatever it holds for ended, or has lost: an order without an end is gone on with, and is ordered once."""
    async with opened(sandbox, url) as batches:
        _workflows._attached.clear()
        await batches["mugs"].add(_batch._plainly(orders(150)), max_cost=None, settings=BatchSettings())
    for _ in range(2):
        change(
            url,
            sa.text(f"UPDATE workflow_status SET status = '{ended}', completed_at = 1")
            if ended
            else sa.text("DELETE FROM workflow_status"),
        )
        async with asyncio.timeout(60), opened(sandbox, url) as batches:
            status = await batches["mugs"].resume()
            assert (status.completed, sandbox.accepted) == (150, 150)


async def test_what_fails_in_dbos_is_not_the_end(
    sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Like a chunk that begins as DBOS shuts down; it is given back."""

    async def gone(*args: object) -> None:
        raise dbos_error.DBOSException("Executor accessed before DBOS was launched")

    async with opened(sandbox, url) as batches:
        with monkeypatch.context() as patch:
            patch.setattr(DBOS, "run_step_async", gone)
            await batches["mugs"].add(_batch._plainly(orders(3)), max_cost=None, settings=BatchSettings())
            await until(lambda: caplog.text.count("left for later") == 3)
    assert taken(url) == []
    async with asyncio.timeout(20), opened(sandbox, url) as batches:
        assert (await batches["mugs"].resume()).completed == 3


async def test_a_step_that_fails_is_done_again(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though DBOS could not write it down, or read it."""
    monkeypatch.setattr(_workflows, "FAULT_PAUSE", 0.01)
    whole, failures = DBOS.run_step_async, iter(range(2))

    async def failing(*arguments: Any) -> Any:
        done = await whole(*arguments)
        if next(failures, None) is not None:
            raise OSError("the disk is full")
        return done

    monkeypatch.setattr(DBOS, "run_step_async", failing)
    async with opened(sandbox, url) as batches:
        assert (await batches["mugs"].run(orders(3))).completed == 3
        assert sandbox.accepted == 3
        await until(lambda: not taken(url))


async def test_nothing_waits_for_whoever_opens_batches_next(sandbox: Sandbox, url: str) -> None:
    """Chunks that nobody has seen to are left by the tasks that waited with them."""
    async with opened(sandbox, url) as batches:
        _workflows._attached.clear()
        await batches["mugs"].add(_batch._plainly(orders(3)), max_cost=None, settings=BatchSettings())
        await until(lambda: len(_workflows._unattended) == 3)
    await until(lambda: not _workflows._unattended)
    assert taken(url) == []


async def test_the_database_never_holds_the_key(sandbox: Sandbox, url: str, tmp_path: Path) -> None:
    """Neither ours nor DBOS's part of it, with its log; orders that went wrong included."""
    async with opened(sandbox, url) as batches:
        sandbox.fail_next(500, times=3)
        await batches["mugs"].run([*orders(5), *orders(2, "mug [fail:safety_blocked]"), *orders(2, "mug [http:400]")])
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert any(b"safety_blocked" in content for content in files)
    assert not any(sandbox.api_key.encode() in content for content in files)


class Row(Order, frozen=True, kw_only=True):
    """An order with a thing of the caller's own, which is nothing for FLORA and need not be JSON."""

    line: object


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


async def test_only_what_certainly_failed_is_ordered_anew(sandbox: Sandbox, url: str) -> None:
    """Under a new key; what is unknown keeps its own, and is looked for once more."""
    async with opened(sandbox, url) as batches:
        batch = batches["mugs"]
        await batch.run([order(0), order(1, "[fail:model_timeout]"), order(2), order(3, "[http:400]")])
        keys = [outcome.key for outcome in await outcomes(batch)]
        lost = {"state": "unknown", "run_id": None, "sent": time.time() - 9000, "ending": None}
        change(url, sa.update(items).where(items.c.number == 2).values(lost))
        assert await batch.retry_failed() == 3
        status = await batch.resume()
        again = await outcomes(batch)
    assert (status.completed, status.failed, status.refused, status.unknown) == (1, 1, 1, 1)
    assert [outcome.key != key for outcome, key in zip(again, keys, strict=True)] == [False, True, False, True]
    assert sandbox.accepted == 4  # 3 at first, and the one that had failed
    assert sandbox.requests["POST /generate"] == 6


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
    """Leave a batch of two orders, as a process does that was killed after it has sent the first; give its key."""
    sandbox.fail_next(402, times=1000, method="POST")
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(2))
        first = await batches["mugs"]._ledger.item("mugs", 0)
    sandbox._planned.clear()
    change(url, sa.update(batch_rows).values(sending=1))
    sent = {"state": "sent", "owner": "one/dead", "sent": time.time(), **values}
    change(url, sa.update(items).where(items.c.number == 0).values(sent))
    return first.key


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


async def test_an_order_that_another_process_has_out(sandbox: Sandbox, url: str) -> None:
    """It is left to that process while that lives, and taken over when it is gone."""
    await left_behind(sandbox, url)
    row = {"process": "one/dead", "executor": "one", "host": "elsewhere", "pid": 1}
    seen: sa.ColumnElement[float] = sa.literal_column("(julianday('now') - 2440587.5) * 86400.0")
    change(url, sa.insert(processes).values(**row, seen=seen))
    async with opened(sandbox, url) as batches:
        running = asyncio.create_task(batches["mugs"].resume())
        await until(lambda: sandbox.accepted == 1)
        await asyncio.sleep(0.3)
        assert sandbox.accepted == 1
        await run_sync(change, url, sa.update(processes).where(processes.c.process == "one/dead").values(seen=0))
        assert (await running).completed == 2
    assert sandbox.accepted == 2


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


async def test_the_work_of_a_living_executor_is_not_adopted(sandbox: Sandbox, url: str) -> None:
    """It is told when it was seen; of one that has left, nothing is left to be adopted."""
    async with opened(sandbox, url) as batches:
        await batches["mugs"].run(orders(2))
        with pytest.raises(ConfigurationError, match=r"one was seen \d+ s ago"):
            await adopt(url, "one")
    assert await adopt(url, "one") == 0


async def test_the_work_of_an_executor_that_is_gone(sandbox: Sandbox, url: str) -> None:
    """It is named, and taken over when that is asked for."""
    async with opened(sandbox, url) as batches:
        _workflows._attached.clear()
        await batches["mugs"].add(_batch._plainly(orders(3)), max_cost=None, settings=BatchSettings())
    change(url, sa.text("UPDATE workflow_status SET status = 'PENDING', executor_id = 'dead'"))
    async with asyncio.timeout(20), opened(sandbox, url) as batches:
        assert await batches["mugs"].gone() == ["dead"]
        resumed = asyncio.create_task(batches["mugs"].resume())
        assert await adopt(url, "dead") == 3
        assert (await resumed).completed == 3
        assert await batches["mugs"].gone() == []


async def test_adopting_in_a_database_without_batches(url: str) -> None:
    """There is none, and none is made."""
    with pytest.raises(ConfigurationError, match="there is no batch in sqlite"):
        await adopt(url, "one")
    assert not Path(url.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize("database", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:////no/such/folder/x.db"])
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
        with pytest.raises(ConfigurationError, match="a batch is named by"):
            batches["a/b"]


async def test_once_in_a_process(sandbox: Sandbox, url: str) -> None:
    """DBOS is there once."""
    async with opened(sandbox, url):
        with pytest.raises(ConfigurationError, match="open already"):
            async with opened(sandbox, url):
                pass


async def test_names_are_resolved_after_it_was_closed(sandbox: Sandbox, url: str) -> None:
    """DBOS lends the loop its threads, and takes them along."""
    async with opened(sandbox, url):
        pass
    assert await asyncio.to_thread(lambda: 7) == 7


@pytest.mark.skipif(
    sys.version_info >= (3, 12) and sqlite3.sqlite_version_info < (3, 42),
    reason="DBOS by itself does not work with the SQLite of this Python",
)
@pytest.mark.parametrize("on_this_loop", [True, False])
async def test_in_a_service_that_runs_dbos(sandbox: Sandbox, url: str, on_this_loop: bool) -> None:
    """Its DBOS is used, wherever its loop is, and left running."""
    DBOS(config={"name": "a-service", "system_database_url": url, "application_version": "7", "log_level": "ERROR"})
    await (launch() if on_this_loop else run_sync(DBOS.launch))
    try:
        async with opened(sandbox, url) as batches:
            assert (await batches["mugs"].run(orders(10))).completed == 10
            assert DBOS.application_version == "7"
        assert await DBOS.list_application_versions_async()
    finally:
        await run_sync(DBOS.destroy)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())


async def launch() -> None:
    """Launch DBOS on this loop."""
    DBOS.launch()


async def test_the_database_is_away_for_a_moment(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be written is written when it is back."""
    monkeypatch.setattr(_ledger, "OUTAGE_PAUSE", 0.01)
    transact, failures = _ledger.Ledger._transact, iter(range(3))

    def away(self: Any, wishes: Any) -> Any:
        if next(failures, None) is not None:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("gone"))
        return transact(self, wishes)

    monkeypatch.setattr(_ledger.Ledger, "_transact", away)
    async with opened(sandbox, url) as batches:
        assert (await batches["mugs"].run(orders(5))).completed == 5


@pytest.mark.parametrize("method", ["unended", "item", "change"])
async def test_the_database_fails(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """No order is left out, and none is billed twice, whatever could not be read or written."""
    monkeypatch.setattr(_workflows, "FAULT_PAUSE", 0.05)
    whole, failures = getattr(_ledger.Ledger, method), iter(range(2))

    async def failing(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise DatabaseError("gone")
        return await whole(*arguments)

    monkeypatch.setattr(_ledger.Ledger, method, failing)
    async with opened(sandbox, url) as batches:
        status = await batches["mugs"].run(orders(5))
    assert (status.completed + status.unknown, sandbox.accepted) == (5, 5)


async def test_only_errors_of_ours_leave(sandbox: Sandbox, url: str) -> None:
    """A database whose tables are gone is one."""
    async with opened(sandbox, url) as batches:
        change(url, sa.text("DROP TABLE flora_items"))
        with pytest.raises(FloraError, match="no such table"):
            await batches["mugs"].run(orders(2))
