"""The rate limit that the processes of a database share, with real clients."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from killing import order

from flora_async import ConfigurationError, DatabaseError, Flora
from flora_async.durable import Batches
from flora_async.durable._store.allowance import StoredAllowance
from flora_async.durable._store.database import Database
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries", "fast_polls")]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a sandbox whose runs take no time."""
    async with Sandbox(time_scale=0.005) as own:
        yield own


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a place for a database."""
    return tmp_path / "batch.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """Give an open database."""
    opened = Database(f"sqlite:///{path}")
    await opened.open(create=True)
    yield opened
    await opened.close()


def keep(state: bytes | None, _now: float) -> bytes | None:
    """Change nothing."""
    return state


def read_states(path: Path) -> list[tuple[str, bytes | None]]:
    """Return the rows of the allowances."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.execute("SELECT base_url, state FROM flora_allowances ORDER BY base_url"))


async def test_each_api_has_a_state_by_the_clock_of_the_database(database: Database, path: Path) -> None:
    """A change gets the last state of its base URL and the time, and None takes the state away."""
    allowance, seen = StoredAllowance(database), list[tuple[bytes | None, float]]()

    def change_to(state: bytes | None) -> Callable[[bytes | None, float], bytes | None]:
        def change(before: bytes | None, now: float) -> bytes | None:
            seen.append((before, now))
            return state

        return change

    for base_url, state in (("one", b"\x00\xff"), ("two", b"2"), ("one", b"1"), ("one", None), ("one", None)):
        await allowance.update(base_url, change_to(state))
    assert [before for before, _ in seen] == [None, None, b"\x00\xff", b"1", None]
    assert all(abs(now - time.time()) < 60 for _, now in seen)
    assert read_states(path) == [("one", None), ("two", b"2")]


async def test_updates_at_the_same_time_lose_nothing(database: Database, path: Path) -> None:
    """Of many updates from two connections, each sees the result of the one before."""
    other = Database(f"sqlite:///{path}")
    await other.open(create=True)

    def count(state: bytes | None, _now: float) -> bytes | None:
        return (state or b"") + b"."

    each = [StoredAllowance(database), StoredAllowance(other)] * 10
    await asyncio.gather(*(allowance.update("url", count) for allowance in each))
    await other.close()
    assert read_states(path) == [("url", b"." * 20)]


async def test_a_closed_database_waits_for_a_cancelled_update(path: Path) -> None:
    """An update that is cancelled in its thread ends before the connections are closed."""
    database = Database(f"sqlite:///{path}")
    await database.open(create=True)
    began = asyncio.Event()
    loop, ended = asyncio.get_running_loop(), list[bool]()

    def change(state: bytes | None, _now: float) -> bytes | None:
        loop.call_soon_threadsafe(began.set)
        time.sleep(0.1)
        ended.append(True)
        return state

    updating = asyncio.create_task(StoredAllowance(database).update("url", change))
    await began.wait()
    updating.cancel()
    await database.close()
    assert ended == [True]
    with pytest.raises(asyncio.CancelledError):
        await updating


async def test_batches_share_unless_the_client_does_already(sandbox: Sandbox, path: Path) -> None:
    """A client gets the allowance of its first open batches, keeps its own, and loses that of closed ones."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        async with Batches(flora, database=f"sqlite:///{path}"):
            first = flora.allowance
            assert isinstance(first, StoredAllowance)
            async with Batches(flora, database=f"sqlite:///{path.with_name('other.db')}"):
                assert flora.allowance is first
            assert flora.allowance is first
        assert flora.allowance is None
        with pytest.raises(ConfigurationError):
            await Batches(flora, database=f"sqlite:///{path.parent}/none/batch.db").__aenter__()
        with pytest.raises(DatabaseError):
            await Batches(flora, database=f"sqlite:///{path.parent}").__aenter__()
        assert flora.allowance is None


async def test_a_429_of_one_process_slows_the_other_and_the_next(sandbox: Sandbox, path: Path) -> None:
    """A pause holds for another client of the database, also for one that is opened after the first was closed."""
    async with AsyncExitStack() as stack:
        clients = [Flora(sandbox.api_key, base_url=sandbox.base_url) for _ in range(2)]
        for flora in clients:
            await stack.enter_async_context(flora)
        async with Batches(clients[0], database=f"sqlite:///{path}"):
            sandbox.fail_next(429, retry_after=1)
            waiting = asyncio.create_task(clients[0].workspaces.list())
            while not (path.exists() and any(state for _, state in read_states(path))):
                await asyncio.sleep(0.01)
            began = time.monotonic()
        async with Batches(clients[1], database=f"sqlite:///{path}"):
            await clients[1].workspaces.list()
            assert time.monotonic() - began > 0.7
        await waiting
        ((base_url, state),) = read_states(path)
        assert base_url == sandbox.base_url
        assert state is None or sandbox.api_key.encode() not in state


async def test_a_batch_survives_an_allowance_that_cannot_be_used(
    sandbox: Sandbox, path: Path, caplog: pytest.LogCaptureFixture, change_worker_policy: Callable[..., None]
) -> None:
    """Without its table, a worker continues by its own 429s, with one warning, and each order is sent once."""
    change_worker_policy(read_interval=0.05)
    async with (
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        Batches(flora, database=f"sqlite:///{path}") as batches,
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE flora_allowances")
            connection.commit()
        sandbox.fail_next(429, retry_after=0.1)
        status = await batches["mugs"].run(order(number) for number in range(20))
    assert status.completed == sandbox.accepted == 20
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the shared allowance cannot be used: DatabaseError. This client continues by its own 429s"
    ]
