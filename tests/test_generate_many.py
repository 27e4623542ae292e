"""generate_many: leaving it, sharing it, the cost limit, and failures of the caller's own code."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Generator, Iterable
from itertools import count
from typing import Any

import anyio
import pytest
from scripted import Scripted, answer, run, started, tasks_of_ours

from flora_async import (
    AnyOrder,
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    InsufficientCreditsError,
    Order,
    Outcome,
    RunFailedError,
    RunTimeoutError,
)
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_polls")]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox whose runs take a fiftieth of a second."""
    async with Sandbox(time_scale=0.01) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Return a client of the sandbox."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as client:
        yield client


def order(prompt: str, kind: Any = "text") -> Order:
    """Return an order."""
    return Order(type=kind, prompt=prompt, workspace_id="ws_1", project_id="prj_1")


class Source:
    """An asynchronous generator of orders that records how far it was read and whether it was closed."""

    def __init__(self, orders: Iterable[Order], *, endless: bool = False) -> None:
        self._orders = orders
        self._endless = endless
        self.closed = False

    async def __call__(self) -> AsyncIterator[Order]:
        """Yield the orders, then wait for ever if endless."""
        try:
            for each in self._orders:
                yield each
            if self._endless:
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # a generator may await while it is closed
            self.closed = True


@pytest.mark.parametrize("taken", [1, 2, 3, 5])
async def test_nothing_is_ordered_after_break(sandbox: Sandbox, flora: Flora, taken: int) -> None:
    """The last reference is gone with the loop: no create begins after it, and no task is left."""
    before = tasks_of_ours()
    orders = [order(f"{number}" if number < 5 else "[slow]") for number in range(20)]
    seen = 0
    async for _ in flora.generate_many(orders, concurrency=5):
        seen += 1
        if seen == taken:
            break
    await anyio.wait_all_tasks_blocked()
    assert tasks_of_ours() == before
    await anyio.sleep(0.1)  # a create that was on its way at the break arrives
    accepted = sandbox.accepted
    assert accepted <= taken + 5
    await anyio.sleep(0.1)
    assert sandbox.accepted == accepted


async def test_nothing_is_ordered_after_the_garbage_collector(sandbox: Sandbox, flora: Flora) -> None:
    """An iterator that another thread collects stops likewise."""
    before = tasks_of_ours()
    source = Source([order("[slow]") for _ in range(50)])
    outcomes = [flora.generate_many(source(), concurrency=2)]
    reading = asyncio.ensure_future(anext(outcomes[0]))
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.wait([reading])
    del reading
    gc.collect()
    thread = threading.Thread(target=outcomes.clear)
    thread.start()
    thread.join()
    await anyio.wait_all_tasks_blocked()
    assert (sandbox.accepted, tasks_of_ours(), source.closed) == (2, before, True)


async def test_the_callers_generator_is_closed(flora: Flora) -> None:
    """By aclose(), by leaving async with, by break, at the end, and when no outcome was asked for."""
    sources = [Source(order(f"{number}") for number in range(50)) for _ in range(4)]
    async with flora.generate_many(sources[0](), concurrency=2) as outcomes:
        await anext(outcomes)
    assert sources[0].closed
    outcomes = flora.generate_many(sources[1](), concurrency=2)
    await anext(outcomes)
    await outcomes.aclose()
    await outcomes.aclose()
    assert sources[1].closed
    async for _ in flora.generate_many(sources[2](), concurrency=2):
        break
    await anyio.wait_all_tasks_blocked()
    assert sources[2].closed
    assert len([outcome async for outcome in flora.generate_many(sources[3]())]) == 50
    assert sources[3].closed
    generator: Any = Source([])()
    async with flora.generate_many(generator):
        pass
    with pytest.raises(StopAsyncIteration):
        await anext(generator)


async def test_consumers_share_the_outcomes(flora: Flora) -> None:
    """Each outcome reaches exactly one of them, and all of them end."""
    outcomes = flora.generate_many([order(f"{number}") for number in range(40)], concurrency=7)

    async def consume() -> list[str]:
        return [outcome.order.prompt async for outcome in outcomes]

    async with asyncio.timeout(30):
        taken = await asyncio.gather(*(consume() for _ in range(3)))
    assert sorted(int(prompt) for prompts in taken for prompt in prompts) == list(range(40))


async def test_a_failure_reaches_one_of_the_consumers(flora: Flora) -> None:
    """The others end; nobody waits for ever."""

    def broken() -> Any:
        yield from (order(f"{number}") for number in range(6))
        raise ValueError("spoiled")

    outcomes = flora.generate_many(broken())

    async def consume() -> int:
        return len([outcome async for outcome in outcomes])

    async with asyncio.timeout(30):
        ends = await asyncio.gather(*(consume() for _ in range(3)), return_exceptions=True)
    assert [str(end) for end in ends if isinstance(end, Exception)] == ["spoiled"]


async def test_closing_ends_a_consumer_that_waits(flora: Flora) -> None:
    """The loop of another task ends as after the last outcome."""
    outcomes = flora.generate_many([order("[slow]")])

    async def consume() -> list[Outcome[Order]]:
        return [outcome async for outcome in outcomes]

    consumer = asyncio.ensure_future(consume())
    await asyncio.sleep(0.05)
    await outcomes.aclose()
    async with asyncio.timeout(1):
        assert await consumer == []


async def test_a_cancelled_consumer_loses_nothing(flora: Flora) -> None:
    """The next one gets the outcome."""
    outcomes = flora.generate_many([order("a mug")])
    consumer = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    consumer.cancel()
    await asyncio.wait([consumer])
    assert len([outcome async for outcome in outcomes]) == 1


async def test_a_failure_of_on_create_belongs_to_its_order(sandbox: Sandbox) -> None:
    """An order whose on_create raises is not sent and has an outcome with that exception as cause; the others run."""
    recorded: list[str] = []

    def record(_key: str, each: AnyOrder) -> None:
        assert isinstance(each, Order)
        if each.prompt.endswith("3"):
            raise OSError(28, "No space left on device")
        recorded.append(each.prompt)

    async with Flora(sandbox.api_key, base_url=sandbox.base_url, on_create=record) as flora:
        outcomes = [outcome async for outcome in flora.generate_many([order(f"{n}") for n in range(40)])]
    failed = {outcome.order.prompt: outcome.error for outcome in outcomes if outcome.error}
    assert failed.keys() == {"3", "13", "23", "33"}
    for error in failed.values():
        assert isinstance(error, ConfigurationError)
        assert isinstance(error.__cause__, OSError)
        assert "the order was not sent: on_create raised OSError" in str(error)
    assert sandbox.accepted == len(recorded) == 36


async def test_the_waits_have_their_own_timeout_and_schedule(sandbox: Sandbox, flora: Flora) -> None:
    """A run that takes longer than the timeout of generate_many is an outcome with its id; the run continues."""
    polls: list[float] = []

    def poll() -> Generator[float, None, None]:
        while True:
            polls.append(1)
            yield 0.05

    outcomes = flora.generate_many([order("a mug [slow]")], timeout=0.2, poll=poll)
    (outcome,) = [outcome async for outcome in outcomes]
    assert isinstance(outcome.error, RunTimeoutError)
    assert outcome.run_id == outcome.error.run_id
    assert polls
    with pytest.raises(ConfigurationError, match="timeout must be"):
        flora.generate_many([], timeout=0)


async def test_a_402_ends_the_reading_too(sandbox: Sandbox, flora: Flora) -> None:
    """An endless source that has nothing at the moment does not hold up the end, and is closed."""
    source = Source([order("a mug")], endless=True)
    sandbox.fail_next(402, method="POST")
    outcomes = flora.generate_many(source())
    async with asyncio.timeout(30):
        ends = [outcome async for outcome in outcomes]
    assert [type(outcome.error) for outcome in ends] == [InsufficientCreditsError]
    assert (outcomes.stop_reason, outcomes.unstarted, source.closed) == ("insufficient_credits", None, True)


async def test_closing_the_client_ends_the_reading(flora: Flora) -> None:
    """Orders of an endless source are not read one by one into a closed client."""
    outcomes = flora.generate_many((order(f"{number}") for number in count()), concurrency=4)
    await anext(outcomes)
    await flora.close()
    async with asyncio.timeout(30):
        ends = [outcome async for outcome in outcomes]
    assert len(ends) <= 4
    assert all(outcome.run or isinstance(outcome.error, ClientClosedError) for outcome in ends)
    assert outcomes.stop_reason == "client_closed"


@pytest.mark.parametrize("orders", [None, 3, order("not in a list")])
async def test_what_is_no_iterable(flora: Flora, orders: Any) -> None:
    """Refused at the call, before anything is read."""
    with pytest.raises(ConfigurationError, match="orders must be an iterable"):
        flora.generate_many(orders)


async def test_a_limit_with_orders_of_different_prices(sandbox: Sandbox, flora: Flora) -> None:
    """A cheap first order says nothing about the videos behind it."""
    orders = [order("haiku"), *(order(f"{number}", "video") for number in range(100))]
    outcomes = flora.generate_many(orders, concurrency=64, max_cost=1.0)
    runs = [outcome.run async for outcome in outcomes]
    assert sum(each.charged_cost or 0 for each in runs if each) == pytest.approx(0.51)
    assert sandbox.accepted == 2
    assert outcomes.stop_reason == "max_cost"
    assert outcomes.unstarted == orders[2]


async def test_a_limit_that_is_not_reached(flora: Flora) -> None:
    """The loop ends with its orders, and gives no reason."""
    outcomes = flora.generate_many([order(f"{number}") for number in range(5)], max_cost=0.06)
    assert len([outcome async for outcome in outcomes]) == 5
    assert (outcomes.stop_reason, outcomes.unstarted) == (None, None)


async def test_failed_runs_are_free(sandbox: Sandbox, flora: Flora) -> None:
    """They leave the money to the orders behind them."""
    orders = [order(f"{number} [fail:x]" if number % 2 else f"{number}") for number in range(40)]
    outcomes = flora.generate_many(orders, concurrency=4, max_cost=0.1)
    ends = [outcome async for outcome in outcomes]
    assert sum(outcome.run is not None for outcome in ends) == 10
    assert all(outcome.run or isinstance(outcome.error, RunFailedError) for outcome in ends)
    assert sum(outcome.run.charged_cost or 0 for outcome in ends if outcome.run) == pytest.approx(0.1)
    assert outcomes.stop_reason == "max_cost"


async def test_a_limit_holds_if_no_create_can_be_understood() -> None:
    """Creates that are accepted and billed, and whose responses cannot be decoded, do not go on within a limit."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, max_retries=0, recover="strict") as flora:
        server.on("POST", "/generate", answer({"id": "run_1"}, 201)).on("GET", "/generations", answer({}, 500))
        outcomes = flora.generate_many([order(f"{number}") for number in range(50)], max_cost=10.0)
        ends = [outcome async for outcome in outcomes]
    assert {type(outcome.error) for outcome in ends} == {CreateOutcomeUnknownError}
    assert (len(ends), outcomes.unsettled, outcomes.stop_reason) == (5, 5, "max_cost")


@pytest.mark.parametrize(("quote", "charge", "billed"), [(0.253, 0.873, 3), (1.0, 0.1, 30), (0, 0.5, 6)])
async def test_a_quote_is_not_what_is_charged(quote: float, charge: float, billed: int) -> None:
    """The limit holds for the charges, whether the quotes are too low, too high or missing."""
    numbers = iter(range(1000))

    async def create(request: Any) -> Any:
        step: Any = answer(started(f"run_{next(numbers)}", charged_cost=quote), 201)
        return await step(request)

    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, batch_polling=False) as flora:
        server.on("POST", "/generate", create)
        for number in range(40):
            server.on("GET", f"/runs/run_{number}", answer(run(run_id=f"run_{number}", charged_cost=charge)))
        outcomes = flora.generate_many([order(f"{number}") for number in range(40)], concurrency=16, max_cost=3.0)
        assert sum(outcome.run is not None for outcome in [outcome async for outcome in outcomes]) == billed
