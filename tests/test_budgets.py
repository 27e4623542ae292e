"""Budgets and charges: late charges, limits that calls share, orders that are ordered again after a failure."""

import asyncio
import math
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace
from scripted import Scripted, answer, run, started, tasks_of_ours

from flora_async import (
    APIConnectionError,
    Budget,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    Order,
    RunFailedError,
    RunTimeoutError,
)
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

PRICE = 0.04
"""USD of an image of the sandbox."""
QUOTE = 0.011429


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox whose quotes are too low by 3.5, and whose charges come half a minute late."""
    async with Sandbox(quote_factor=3.5, charge_delay=30) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Return a client of the sandbox."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as client:
        yield client


def image(prompt: str = "a mug") -> Order:
    """Return an order."""
    return Order(type="image", prompt=prompt, workspace_id="ws_1", project_id="prj_1")


def images(count: int, prompt: str = "a mug") -> Iterator[Order]:
    """Yield orders."""
    return (image(f"{prompt} {number}") for number in range(count))


def now() -> float:
    """Return the time of the event loop."""
    return asyncio.get_running_loop().time()


# -- charges that come late


async def test_a_quote_is_named_as_one(flora: Flora) -> None:
    """The charge of a create is its quote, under both names; the run has another amount."""
    created = await flora.generations.create(image())
    assert created.quoted_cost == created.charged_cost == QUOTE
    assert (await flora.wait_for_run(created, settle=True)).charged_cost == PRICE


async def test_waits_with_and_without_the_charge(sandbox: Sandbox, flora: Flora) -> None:
    """Two waits for one run end at the end of the run and at its charge; each way to wait can do both."""
    created = await flora.generations.create(image())
    began = now()
    settled = asyncio.create_task(flora.wait_for_run(created, settle=True))
    early = await flora.wait_for_run(created)
    assert (early.charged_cost, settled.done()) == (None, False)
    assert now() - began < 20
    again = await flora.wait_for_run(created)  # beside the wait for the charge: at once
    assert again.charged_cost is None
    assert (await settled).charged_cost == PRICE
    assert 30 < now() - began < 60
    assert (await flora.wait_for_run(early, settle=True)).charged_cost == PRICE  # a record from before the charge
    seen: list[Any] = []
    other = await flora.generations.create(image())
    assert (await flora.wait_for_run(other, settle=True, on_update=seen.append)).charged_cost == PRICE
    assert (await flora.generate(image(), settle=True)).charged_cost == PRICE


async def test_many_charges_are_read_from_pages(sandbox: Sandbox, flora: Flora) -> None:
    """A hundred charges cost few requests: one poller, no request for each run and poll."""
    runs = [await flora.generations.create(image(f"{number}")) for number in range(100)]
    before = sandbox.requests.total()
    costs = [outcome.run and outcome.run.charged_cost async for outcome in flora.as_completed(runs, settle=True)]
    assert costs == [PRICE] * 100
    assert sandbox.requests.total() - before < 100
    finished = [await flora.generations.retrieve(run) for run in runs]
    assert len([outcome async for outcome in flora.as_completed(finished, settle=True)]) == 100


async def test_a_charge_that_never_comes(flora: Flora) -> None:
    """The wait for it is bounded, by itself and by the timeout, and the completed run is returned."""
    record = answer(run(created_at=1e12, completed_at=None))
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, batch_polling=False) as client:
        server.on("POST", "/generate", answer(started(), 201)).on("GET", "/runs/run_abc123", record)
        began = now()
        assert (await client.generate(image(), settle=True)).charged_cost is None
        assert 85 < now() - began < 110
        began = now()
        finished = await client.wait_for_run("run_abc123", settle=True, timeout=7)
        assert (finished.succeeded, finished.charged_cost) == (True, None)
        assert now() - began == pytest.approx(7, abs=1)
        assert server.count("GET", "/runs/run_abc123") < 40


@pytest.mark.parametrize("begin", ["id", "record", "watched"])
async def test_the_wait_for_a_charge_has_the_timeout_of_its_call(flora: Flora, begin: str) -> None:
    """A run whose charge is late is returned without it at the end of the timeout, however the wait began."""
    created = await flora.generations.create(image())
    run = await flora.wait_for_run(created) if begin == "record" else created.run_id
    watch = (lambda _run: None) if begin == "watched" else None
    began = now()
    finished = await flora.wait_for_run(run, settle=True, on_update=watch, timeout=20)
    assert (finished.succeeded, finished.charged_cost) == (True, None)
    assert 19.9 < now() - began < 20.1


async def test_no_error_loses_a_completed_run() -> None:
    """A run that has completed is returned, also if the key is refused while its charge is awaited."""
    gone = answer({"error": {"code": "unauthorized", "message": "rotated"}}, 401)
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, batch_polling=False) as client:
        server.on("POST", "/generate", answer(started(), 201)).on("GET", "/runs/run_abc123", answer(run()), gone)
        assert (await client.generate(image(), settle=True)).succeeded
        (outcome,) = [each async for each in client.as_completed([run_record()], settle=True)]
        assert outcome.run is not None


async def test_a_charge_after_a_webhook(sandbox: Sandbox, flora: Flora) -> None:
    """Where a webhook is expected, and lost, the charge is polled for as soon as elsewhere once the run has ended."""
    flora.inbox(sandbox.webhook_secret)
    began = now()
    order = replace(image(), callback_url="http://127.0.0.1:9/nowhere")
    assert (await flora.generate(order, settle=True)).charged_cost == PRICE
    assert now() - began < 90


def run_record() -> Any:
    """Return a completed run without a charge."""
    from flora_async import Run

    return Run(run_id="run_abc123", status="completed", progress=100, created_at=1e9)


# -- amounts of an iterator


async def test_amounts_while_the_runs_end(flora: Flora) -> None:
    """What was charged, what is quoted, and of how many orders the charge is unknown."""
    outcomes = flora.generate_many(images(4), settle=True)
    assert (outcomes.spent, outcomes.quoted, outcomes.unsettled) == (0, 0, 0)
    first = await anext(outcomes)
    assert first.run is not None
    assert first.run.charged_cost == PRICE
    assert outcomes.spent + outcomes.unsettled * PRICE == pytest.approx(4 * PRICE)
    assert len([outcome async for outcome in outcomes]) == 3
    assert (outcomes.quoted, outcomes.unsettled) == (0, 0)
    assert outcomes.spent == pytest.approx(4 * PRICE)
    quick = flora.generate_many(images(2))
    assert len([outcome async for outcome in quick]) == 2
    assert (quick.spent, quick.unsettled) == (0, 2)
    assert quick.quoted == pytest.approx(2 * QUOTE)


@pytest.mark.parametrize("settle", [False, True])
async def test_a_limit_holds_with_late_charges(sandbox: Sandbox, flora: Flora, settle: bool) -> None:
    """Completed runs without a charge count at their expected cost: the limit is not passed, and it is used."""
    outcomes = flora.generate_many(images(100), concurrency=16, max_cost=1.0, settle=settle)
    assert len([outcome async for outcome in outcomes]) == sandbox.accepted == 25
    assert outcomes.stop_reason == "max_cost"
    assert outcomes.spent == pytest.approx(1.0)


# -- budgets


async def test_three_iterators_share_a_budget(sandbox: Sandbox, flora: Flora) -> None:
    """Together they spend it and no more; each says that the budget has ended it."""
    reached: list[float] = []
    budget = Budget(2.0, on_threshold=lambda _, share: reached.append(share))
    iterators = [flora.generate_many(images(100, f"{n}"), budget=budget, concurrency=10) for n in range(3)]

    async def read(outcomes: Any) -> int:
        return len([outcome async for outcome in outcomes])

    counts = await asyncio.gather(*map(read, iterators))
    assert sum(counts) == sandbox.accepted == 50
    assert min(counts) > 5
    assert {outcomes.stop_reason for outcomes in iterators} == {"budget"}
    assert budget.spent == budget.expected == pytest.approx(2.0)
    assert budget.remaining < 1e-9
    assert (budget.quoted, budget.unsettled, reached) == (0, 0, [0.5, 0.8, 1.0])
    with pytest.raises(BudgetExceededError, match="2 USD"):
        await flora.generate(image(), budget=budget)
    with pytest.raises(BudgetExceededError):
        await flora.start_run(image(), budget=budget)
    assert sandbox.accepted == 50


async def test_a_budget_that_knows_only_dear_orders_reads_cheap_ones(sandbox: Sandbox, flora: Flora) -> None:
    """What another call has ordered within the budget says nothing about the orders of this one."""
    budget = Budget(0.6)
    async for _ in flora.generate_many([replace(image(), type="video")] * 2, budget=budget):
        pass
    assert sandbox.accepted == 1
    assert budget.remaining == pytest.approx(0.1)
    texts = flora.generate_many([replace(image(), type="text")] * 100, budget=budget)
    assert len([outcome async for outcome in texts]) == 10
    assert texts.stop_reason == "budget"
    assert budget.spent == pytest.approx(0.6)


async def test_single_calls_share_a_budget(sandbox: Sandbox, flora: Flora) -> None:
    """Forty tasks with one order each, and creates that are awaited later, stay within it together."""
    budget = Budget(0.5)
    results = await asyncio.gather(
        *(flora.generate(order, budget=budget) for order in images(40)), return_exceptions=True
    )
    assert Counter(type(result).__name__ for result in results) == {"Run": 12, "BudgetExceededError": 28}
    assert sandbox.accepted == 12
    more = Budget(1.0)
    created = await flora.start_run(image(), budget=more)
    assert more.unsettled == 1
    assert more.expected == pytest.approx(4 * QUOTE)
    await flora.wait_for_run(created, settle=True)
    assert (more.spent, more.expected, more.unsettled) == (PRICE, PRICE, 0)


async def test_leaving_gives_places_back(sandbox: Sandbox, flora: Flora) -> None:
    """After break, aclose and cancellation: nothing that was not sent counts, and all that was sent does."""
    budget = Budget(100.0)
    before = tasks_of_ours()
    async with flora.generate_many(images(50), budget=budget, concurrency=20) as outcomes:
        await anext(outcomes)
    billed = sandbox.accepted
    assert (budget.unsettled, budget.spent) == (billed, 0)
    for steps in range(12):  # before and after the first byte of the creates
        outcomes = flora.generate_many(images(50), budget=budget, concurrency=20)
        reading = asyncio.create_task(anext(outcomes))
        single = asyncio.create_task(flora.generate(image(), budget=budget))
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        single.cancel()
        await outcomes.aclose()
        await asyncio.wait([single])
        if steps == 0:
            assert budget.unsettled == billed
    await asyncio.sleep(1)
    assert billed < sandbox.accepted <= budget.unsettled
    assert budget.expected >= billed * PRICE
    assert tasks_of_ours() - before <= {flora._poller._task}


async def test_unknown_outcomes_stay_counted(sandbox: Sandbox, flora: Flora) -> None:
    """A create without an answer, and a run that was not awaited to its end, count as billed."""
    budget = Budget(100.0)
    await flora.generate(image(), budget=budget, settle=True)
    sandbox.fail_next("lost_reply", method="POST", times=1)
    sandbox.fail_next(500, path="/generations", times=50)
    outcomes = [each async for each in flora.generate_many([image("lost")], budget=budget)]
    assert (type(outcomes[0].error).__name__, budget.unsettled) == ("CreateOutcomeUnknownError", 1)
    with pytest.raises(RunTimeoutError) as late:
        await flora.generate(image("[slow]"), budget=budget, timeout=1)
    assert budget.unsettled == 2
    assert budget.expected == pytest.approx(3 * PRICE)
    await flora.wait_for_run(late.value.run_id, settle=True)  # awaited again, by its id
    assert budget.unsettled == 1
    assert budget.spent == pytest.approx(2 * PRICE)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"usd": usd} for usd in (-1, math.nan, math.inf, 10**400, "5", True, Decimal(5))),
        {"usd": 1, "thresholds": [2]},
        {"usd": 1, "on_threshold": 3},
    ],
)
def test_budgets_that_make_no_sense(wrong: dict[str, Any]) -> None:
    """Amounts, thresholds and functions are checked at the construction."""
    with pytest.raises(ConfigurationError) as refused:
        Budget(**wrong)
    assert ("float(...)" in str(refused.value)) == isinstance(wrong["usd"], Decimal)


async def test_what_is_no_budget(flora: Flora) -> None:
    """An amount in the place of a Budget is refused, with the fix."""
    wrong: Any = 5.0
    with pytest.raises(ConfigurationError, match=r"Budget\(usd="):
        flora.generate_many([], budget=wrong)


async def test_a_threshold_function_that_fails(flora: Flora, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the order is carried out and counted."""
    budget = Budget(0.01, on_threshold=lambda budget, share: 1 / 0)
    await flora.generate(image(), budget=budget, settle=True)
    assert budget.spent == PRICE
    assert "on_threshold failed" in caplog.text


# -- ordered again after a failure

BY_ADVICE = {
    "retry": "GENERATION_PROVIDER_TIMEOUT",
    "retry_later": "GENERATION_QUEUE_TOO_LARGE",
    "change_input": "GENERATION_PROMPT_MODERATED",
    None: "SOMETHING_NEW",
}


@pytest.mark.parametrize("advice", list(BY_ADVICE))
async def test_which_failures_are_ordered_again(sandbox: Sandbox, flora: Flora, advice: str | None) -> None:
    """Those with the advice retry, and after a pause retry_later; each under a new key, at most twice here."""
    keys: list[str] = []
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, on_create=lambda key, _: keys.append(key)) as client:
        began = now()
        order = image(f"[fail:{BY_ADVICE[advice]}]")
        (outcome,) = [each async for each in client.generate_many([order], retry_failed=2)]
        times = 3 if advice in ("retry", "retry_later") else 1
        assert (sandbox.accepted, len(set(keys)), len(outcome.attempts)) == (times, times, times - 1)
        assert isinstance(outcome.error, RunFailedError)
        assert outcome.run_id not in {attempt.run_id for attempt in outcome.attempts}
        assert (now() - began > 30) == (advice == "retry_later")  # pauses of 10 and 20 seconds


async def test_an_order_that_succeeds_in_the_end() -> None:
    """The outcome has the failed attempts, oldest first; ``generate`` returns the run."""
    failed = [answer(run("failed", f"run_{n}", error_code="SERVER_ERROR")) for n in range(2)]
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, batch_polling=False) as client:
        ids = ("run_0", "run_1", "run_2")
        server.on("POST", "/generate", *(answer(started(each), 201) for each in (*ids, *ids)))
        for each, step in zip(ids, [*failed, answer(run(run_id="run_2", charged_cost=0.1))], strict=True):
            server.on("GET", f"/runs/{each}", step)
        (outcome,) = [each async for each in client.generate_many([image()], retry_failed=5)]
        assert outcome.run is not None
        assert [attempt.run_id for attempt in outcome.attempts] == ["run_0", "run_1"]
        assert outcome.to_dict()["attempts"][0]["code"] == "SERVER_ERROR"
        async with Flora("sk_1", base_url=server.base_url, batch_polling=False) as another:
            assert (await another.generate(image(), retry_failed=5, idempotency_key="mine")).run_id == "run_2"
        keys = [asked.headers["Idempotency-Key"] for asked in server.asked if asked.method == "POST"]
        assert (keys[3], len(set(keys))) == ("mine", 6)


async def test_reordering_stays_within_the_limit(sandbox: Sandbox, flora: Flora) -> None:
    """An order is not ordered again if its cost no longer fits; nor is a create of unknown outcome, ever."""
    budget = Budget(PRICE * 2.5)
    orders = [image(), image(), image("[fail:SERVER_ERROR]")]
    await flora.generate(image(), budget=budget, settle=True)
    outcomes = [each async for each in flora.generate_many(orders, budget=budget, retry_failed=9, concurrency=1)]
    assert [each.error is None for each in outcomes] == [True]
    sandbox.fail_next("lost_reply", method="POST")
    sandbox.fail_next(500, path="/generations", times=50)
    before = sandbox.accepted
    (lost,) = [each async for each in flora.generate_many([image("lost")], retry_failed=5)]
    assert (sandbox.accepted - before, lost.attempts, lost.run_id) == (1, (), None)


@pytest.mark.parametrize("code", ["BILLING_NOT_ENOUGH_CREDITS", "ACCESS_DENIED", "VIDEO_ENTITLEMENT_REQUIRED"])
async def test_stop_ends_the_ordering(sandbox: Sandbox, flora: Flora, code: str) -> None:
    """A failure with the advice stop ends the reading and what pauses, like a 402; runs in flight are yielded."""
    orders = [image("[fail:GENERATION_QUEUE_TOO_LARGE]"), image(f"[fail:{code}]"), *images(50)]
    outcomes = flora.generate_many(orders, concurrency=3, retry_failed=3)
    began = now()
    seen = [outcome async for outcome in outcomes]
    assert outcomes.stop_reason == "run_failed"
    assert len(seen) == sandbox.accepted < 10
    assert now() - began < 30
    assert [each.attempts for each in seen if isinstance(each.error, RunFailedError)] == [(), ()]


def mixed(count: int) -> Iterator[Order]:
    """Yield orders of which a fifth fails, by a code of each class in turn."""
    codes = [*BY_ADVICE.values()]
    for number in range(count):
        failure = f" [fail:{codes[number // 5 % len(codes)]}]" if number % 5 == 0 else ""
        yield image(f"{number}{failure}")


@pytest.mark.parametrize("how", ["start_run", "generate", "generate_many"])
async def test_a_recovered_create_is_settled_by_its_wait(how: str) -> None:
    """An order whose outcome was unknown counts its charge once its run was found and has completed."""
    budget = Budget(1.0)
    async with (
        Sandbox(quote_factor=3.5, charge_delay=30, idempotency="replay") as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0, recover="strict") as flora,
    ):
        await flora.generate(image(), budget=budget, settle=True)  # the price is known
        sandbox.fail_next("lost_reply", path="/generate")
        with pytest.raises(CreateOutcomeUnknownError) as unknown:
            if how == "generate_many":
                (await anext(flora.generate_many([image()], budget=budget))).result()
            else:
                await getattr(flora, how)(image(), budget=budget)
        assert (budget.unsettled, budget.spent) == (1, PRICE)
        assert budget.expected == pytest.approx(2 * PRICE)
        started = await flora.recover_create(unknown.value)
        await flora.wait_for_run(started, settle=True)
    assert budget.unsettled == 0
    assert budget.spent == budget.expected == pytest.approx(2 * PRICE)


@pytest.mark.parametrize("many", [False, True])
async def test_closing_the_client_ends_the_pause_before_another_order(
    sandbox: Sandbox, flora: Flora, many: bool
) -> None:
    """An order that waits to be ordered again ends at once, as every other wait does, and nothing more is ordered."""
    failing = image("[fail:GENERATION_QUEUE_TOO_LARGE]")

    async def order() -> None:
        if many:
            (await anext(flora.generate_many([failing], retry_failed=3))).result()
        else:
            await flora.generate(failing, retry_failed=3)

    ordering = asyncio.ensure_future(order())
    await asyncio.sleep(25)  # two runs have failed, and the pause before the third is long
    assert sandbox.accepted == 2
    began = now()
    await flora.close()
    with pytest.raises(ClientClosedError):
        await ordering
    assert now() - began < 0.1
    assert sandbox.accepted == 2


@pytest.mark.parametrize("many", [False, True])
async def test_a_budget_of_another_event_loop_is_refused(sandbox: Sandbox, flora: Flora, many: bool) -> None:
    """A thread with an event loop of its own would wait without end for room, as no change wakes it there."""
    budget = Budget(1.5 * PRICE)

    async def order_elsewhere() -> None:
        async with Flora(sandbox.api_key, base_url=sandbox.base_url) as other:
            if many:
                await anext(other.generate_many(images(2), budget=budget))
            else:
                await other.generate(image(), budget=budget)

    running = asyncio.ensure_future(flora.generate(image(), budget=budget))
    await asyncio.sleep(1)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigurationError, match="another event loop"):
        pool.submit(asyncio.run, order_elsewhere()).result()
    await running
    assert sandbox.accepted == 1


async def test_a_budget_is_used_on_one_event_loop_after_another() -> None:
    """Each asyncio.run of a program may use the same budget, when the one before has ended."""
    budget = Budget(1.0)

    async def order() -> None:
        async with Flora("sk_1", base_url="http://127.0.0.1:9/api/v1", max_retries=0) as client:
            with pytest.raises(APIConnectionError):
                await client.generate(image(), budget=budget)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            pool.submit(asyncio.run, order()).result()
    assert budget.unsettled == 0


@pytest.mark.parametrize("how", ["generate", "start_run", "generate_many"])
async def test_closing_the_client_ends_the_wait_for_a_budget(sandbox: Sandbox, flora: Flora, how: str) -> None:
    """An order that waits for the charge of another client's run ends at once, and nothing more is ordered."""
    budget = Budget(1.5 * PRICE)
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as other:
        running = asyncio.ensure_future(other.generate(image("of another client"), budget=budget, settle=True))
        await asyncio.sleep(1)
        outcomes = flora.generate_many(images(3), budget=budget)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "generate": lambda: flora.generate(image(), budget=budget),
            "start_run": lambda: flora.start_run(image(), budget=budget),
            "generate_many": lambda: anext(outcomes, None),
        }
        waiting = asyncio.ensure_future(calls[how]())
        await asyncio.sleep(1)
        began = now()
        await flora.close()
        if how == "generate_many":
            assert await waiting is None
            assert outcomes.stop_reason == "client_closed"
        else:
            with pytest.raises(ClientClosedError):
                await waiting
        assert now() - began < 0.1
        assert budget.unsettled == 1
        await running
    assert sandbox.accepted == 1


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.proof)])
async def test_a_fifth_of_the_orders_fails(sandbox: Sandbox, flora: Flora, count: int) -> None:
    """Orders of two classes are ordered again, those of the others once; what was charged is what has completed."""
    outcomes = flora.generate_many(mixed(count), concurrency=64, retry_failed=2, settle=True)
    orders: Counter[str | None] = Counter()
    posts: Counter[str | None] = Counter()
    async for outcome in outcomes:
        code = outcome.error.code if isinstance(outcome.error, RunFailedError) else None
        orders[code] += 1
        posts[code] += 1 + len(outcome.attempts)
    table = [
        f"{advice or 'no advice':12} {code or '':28} {orders[code]:4} orders, {posts[code]:4} creates"
        for advice, code in {**BY_ADVICE, "(completed)": None}.items()
    ]
    table.append(f"{sandbox.accepted} creates, {outcomes.spent:.2f} USD charged for {orders[None]} completed runs")
    sys.stdout.write("\n".join(["", *table, ""]))
    each = count // 20
    for advice, code in BY_ADVICE.items():
        assert orders[code] == each
        assert posts[code] == each * (3 if advice in ("retry", "retry_later") else 1)
    assert posts[None] == orders[None]
    assert sandbox.accepted == posts.total()
    assert outcomes.spent == pytest.approx(PRICE * orders[None])
