"""Many runs at once: orders begun as room and money allow, ends handed out as they come."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import msgspec
import pytest
from scripted import Scripted, answer, error, generation, run, started, tasks_of_ours

from flora_async import (
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    InsufficientCreditsError,
    NotFoundError,
    Order,
    Run,
    RunFailedError,
    RunLike,
    RunTimeoutError,
)
from flora_async.sandbox import Sandbox
from flora_async.sandbox._virtual_time import VirtualTimeLoop

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time, pytest.mark.usefixtures("fast_retries", "fast_polls")]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a sandbox whose runs take a fiftieth of a second."""
    async with Sandbox(time_scale=0.01) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as client:
        yield client


def orders(count: int, prompt: str = "a mug") -> Iterator[Order]:
    """Give orders, one by one."""
    for number in range(count):
        yield Order(type="text", prompt=f"{prompt} {number}", workspace_id="ws_1", project_id="prj_1")


# -- generate_many


async def test_every_order_has_one_outcome(sandbox: Sandbox, flora: Flora) -> None:
    """Of its own, in whatever order."""
    outcomes = [outcome async for outcome in flora.generate_many(orders(100), concurrency=20)]
    assert sorted(outcome.order.prompt for outcome in outcomes) == sorted(order.prompt for order in orders(100))
    for outcome in outcomes:
        assert outcome.error is None
        assert outcome.run is not None
        assert outcome.order.prompt in outcome.run.outputs[0].url
    assert sandbox.accepted == 100


class Row(Order, frozen=True, kw_only=True):
    """An order with a thing of the caller's own, which is nothing for FLORA and need not be JSON."""

    line: object


async def test_an_order_may_carry_more(sandbox: Sandbox, flora: Flora) -> None:
    """It comes back as it was given; FLORA is not told of what is the caller's."""
    rows = [Row(**msgspec.structs.asdict(order), line=object()) for order in orders(3)]
    outcomes = [outcome async for outcome in flora.generate_many(rows)]
    assert {id(outcome.order) for outcome in outcomes} == {id(row) for row in rows}
    assert all(outcome.run for outcome in outcomes)


async def test_one_failure_spoils_nothing(flora: Flora) -> None:
    """Failed runs, refused creates and bad orders are outcomes like others."""
    mixed = [
        *orders(2),
        *orders(1, "[fail:safety_blocked]"),
        *orders(1, "[http:400]"),
        Order(type="text", prompt="", workspace_id="ws_1", project_id="prj_1"),
    ]
    outcomes = {outcome.order.prompt: outcome async for outcome in flora.generate_many(mixed)}
    kinds = {prompt: type(outcome.error).__name__ for prompt, outcome in outcomes.items()}
    assert kinds == {
        "a mug 0": "NoneType",
        "a mug 1": "NoneType",
        "[fail:safety_blocked] 0": "RunFailedError",
        "[http:400] 0": "BadRequestError",
        "": "ConfigurationError",
    }
    assert all((outcome.run is None) != (outcome.error is None) for outcome in outcomes.values())


async def test_orders_are_read_as_there_is_room(flora: Flora) -> None:
    """No more are begun than are handed out, but for the concurrency."""
    read: list[int] = []

    async def lazily() -> AsyncIterator[Order]:
        for order in orders(30):
            read.append(1)
            yield order

    handed = 0
    async for _ in flora.generate_many(lazily(), concurrency=4):
        handed += 1
        await anyio.sleep(0.005)
        assert len(read) <= handed + 4
    assert (handed, len(read)) == (30, 30)


async def test_a_402_stops_the_creating(sandbox: Sandbox, flora: Flora) -> None:
    """What was begun finishes."""
    read: list[Order] = []

    def each() -> Iterator[Order]:
        for order in orders(50):
            read.append(order)
            if len(read) == 6:
                sandbox.fail_next(402, method="POST", times=50)
            yield order

    outcomes = [outcome async for outcome in flora.generate_many(each(), concurrency=2)]
    broke = [outcome for outcome in outcomes if isinstance(outcome.error, InsufficientCreditsError)]
    assert len(outcomes) == len(read) < 10
    assert 1 <= len(broke) <= 2
    assert sandbox.accepted == len(outcomes) - len(broke)


async def test_no_more_is_spent_than_allowed(sandbox: Sandbox, flora: Flora) -> None:
    """A text costs a cent: five fit into five and a half; the orders behind are not read."""
    read: list[Order] = []

    def each() -> Iterator[Order]:
        for order in orders(50):
            read.append(order)
            yield order

    outcomes = [outcome async for outcome in flora.generate_many(each(), concurrency=16, max_cost=0.055)]
    assert len(outcomes) == len(read) == sandbox.accepted == 5
    assert [outcome async for outcome in flora.generate_many(orders(3), max_cost=0)] == []
    assert sandbox.accepted == 5


async def test_what_may_have_been_billed_counts() -> None:
    """An unknown create is taken to have cost what the dearest did."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, max_retries=0) as flora:
        server.on("POST", "/generate", answer(started(charged_cost=1.0), 201), error(500), answer(started(), 201))
        server.on("GET", "/runs/run_abc123", answer(run(charged_cost=1.0)))
        outcomes = [outcome async for outcome in flora.generate_many(orders(9), concurrency=1, max_cost=2.5)]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), CreateOutcomeUnknownError]


async def test_leaving_the_loop_stops_the_creating(sandbox: Sandbox, flora: Flora) -> None:
    """And leaves no task behind: by break, by async with, by aclose."""
    before = tasks_of_ours()
    async for _ in flora.generate_many(orders(10_000), concurrency=4):
        break
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    assert tasks_of_ours() == before
    accepted = sandbox.accepted
    async with flora.generate_many(orders(10_000), concurrency=4) as outcomes:
        await anext(outcomes)
    assert tasks_of_ours() == before
    with pytest.raises(StopAsyncIteration):
        await anext(outcomes)
    await outcomes.aclose()
    assert sandbox.accepted - accepted < 20


@pytest.mark.parametrize("bad", [ValueError("spoiled"), "not an order"])
async def test_orders_that_break_off(flora: Flora, bad: Any) -> None:
    """What was begun is handed out first, then the fault is told."""

    def each() -> Iterator[Any]:
        yield from orders(2)
        if isinstance(bad, Exception):
            raise bad
        yield bad

    seen = 0
    with pytest.raises(ValueError, match=r"spoiled|takes Orders"):
        async for outcome in flora.generate_many(each()):
            assert outcome.run
            seen += 1
    assert seen == 2


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"concurrency": 1.5}, {"max_cost": -1}, {"max_cost": "1"}])
async def test_settings_of_many_that_make_no_sense(flora: Flora, settings: dict[str, Any]) -> None:
    """One clear error, before anything is begun."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        flora.generate_many(orders(1), **settings)


# -- as_completed, and watching many


async def test_runs_as_they_finish(sandbox: Sandbox, flora: Flora) -> None:
    """By any of their records, also in another process by bare id; each outcome holds a run or an error."""
    begun = [
        await flora.generations.create(type="text", prompt=f"mug {n}", workspace_id="ws_1", project_id="prj_1")
        for n in range(20)
    ]
    failing = await flora.generations.create(type="text", prompt="[fail:x]", workspace_id="ws_1", project_id="prj_1")
    done = await flora.wait_for_run(begun[0])
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as other:
        subjects: list[RunLike] = [done, *begun[1:10], *(each.run_id for each in begun[10:]), failing.run_id]
        outcomes = {outcome.run_id: outcome async for outcome in other.as_completed(subjects)}
    assert set(outcomes) == {*(each.run_id for each in begun), failing.run_id}
    assert isinstance(outcomes.pop(failing.run_id).error, RunFailedError)
    assert all(outcome.run and outcome.run.outputs and not outcome.error for outcome in outcomes.values())
    assert type(outcomes[begun[5].run_id].run) is Run


@pytest.mark.virtual_time
async def test_outcomes_of_runs_that_do_not_end(change_policies: Callable[..., None], sandbox: Sandbox) -> None:
    """A time-out and a run that is not there are outcomes; a failed record needs no request."""
    change_policies(poll={"not_found_grace": 0.05})
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        slow = await flora.generations.create(type="text", prompt="[slow]", workspace_id="ws_1", project_id="prj_1")
        outcomes = {outcome.run_id: outcome async for outcome in flora.as_completed([slow, "run_nowhere"], timeout=0.5)}
        assert isinstance(outcomes[slow.run_id].error, RunTimeoutError)
        assert isinstance(outcomes["run_nowhere"].error, NotFoundError)
        assert [outcome async for outcome in flora.as_completed([])] == []
        with pytest.raises(ConfigurationError, match="run_id"):
            flora.as_completed(["job_1"])


async def test_leaving_the_runs(flora: Flora) -> None:
    """By break, or by async with: nobody looks any more."""
    begun = [
        await flora.generations.create(type="text", prompt=prompt, workspace_id="ws_1", project_id="prj_1")
        for prompt in ("a mug", "[slow]", "[slow]")
    ]
    async for outcome in flora.as_completed(begun):
        assert outcome.run_id == begun[0].run_id
        break
    gc.collect()
    await anyio.sleep(0.05)
    assert not flora._poller._tracked
    async with flora.watch_run(begun) as watch:
        await anext(watch)
    async with flora.as_completed(begun) as outcomes:
        await anext(outcomes)
    await anyio.sleep(0.05)
    assert not flora._poller._tracked


async def test_many_watched_as_one_stream(flora: Flora) -> None:
    """Changes only; each run's progress rises, and its last item is the finished run."""
    begun = [
        await flora.generations.create(type="image", prompt=prompt, workspace_id="ws_1", project_id="prj_1")
        for prompt in ("one", "two", "three [fail:x]")
    ]
    told: dict[str, list[Run]] = {}
    async for seen in flora.watch_run(begun):
        told.setdefault(seen.run_id, []).append(seen)
    assert set(told) == {each.run_id for each in begun}
    for changes in told.values():
        assert [change.finished for change in changes] == [False] * (len(changes) - 1) + [True]
        assert [change.progress for change in changes] == sorted(change.progress for change in changes)
        assert len({(change.status, change.progress) for change in changes}) == len(changes)


async def test_two_waiters_cost_one_look() -> None:
    """A wait, a watch and another wait share their run."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("GET", "/runs/run_abc123", *[answer(run("running", progress=n)) for n in range(3)], answer(run()))
        changes: list[float] = []

        async def watch() -> None:
            changes.extend([seen.progress async for seen in flora.watch_run("run_abc123")])

        first, second, _ = await asyncio.gather(
            flora.wait_for_run("run_abc123"), flora.wait_for_run("run_abc123", timeout=5), watch()
        )
        assert first == second
        assert changes[-1] == 100
        assert len(server.asked) <= 6


# -- what pages save


def test_many_runs_cost_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred waits, far fewer requests; without pages, at least one each. In virtual time, on any machine."""
    monkeypatch.undo()

    async def cost(*, batch_polling: bool) -> int:
        async with (
            Sandbox() as sandbox,
            Flora(sandbox.api_key, base_url=sandbox.base_url, batch_polling=batch_polling) as flora,
        ):
            created = await asyncio.gather(
                *(
                    flora.generations.create(type="text", prompt=f"{n}", workspace_id="ws_1", project_id="prj_1")
                    for n in range(300)
                )
            )
            assert len([outcome async for outcome in flora.as_completed(created)]) == 300
            return sum(sandbox.requests.values()) - 300

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        alone = runner.run(cost(batch_polling=False))
        together = runner.run(cost(batch_polling=True))
    assert alone >= 300
    assert together * 10 < alone


async def test_rows_without_outputs_are_asked_for(sandbox: Sandbox) -> None:
    """A finished row that lacks what a finished run has is only a hint."""
    ids = [f"run_{number}" for number in range(5)]
    rows = [{**generation(run_id), "outputs": None} for run_id in ids]
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("GET", "/generations", answer({"generations": rows, "meta": {}}))
        for run_id in ids:
            server.on("GET", f"/runs/{run_id}", answer(run(run_id=run_id)))
        outcomes = [outcome async for outcome in flora.as_completed(ids)]
        assert {outcome.run_id for outcome in outcomes if outcome.run and outcome.run.outputs} == set(ids)
        assert server.count("GET", "/generations") >= 1


async def test_ends_that_nobody_came_for_are_nobodys_concern(flora: Flora, caplog: pytest.LogCaptureFixture) -> None:
    """A watch that is dropped after the client was closed reports nothing."""
    begun = [
        await flora.generations.create(type="text", prompt=prompt, workspace_id="ws_1", project_id="prj_1")
        for prompt in ("a mug", "[slow]", "[slow]")
    ]
    watch = flora.watch_run(begun)
    await anext(watch)
    await flora.close()
    await anyio.wait_all_tasks_blocked()
    del watch
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    assert not [record for record in caplog.records if "never retrieved" in record.getMessage()]


async def test_closing_ends_all_waits(flora: Flora) -> None:
    """However many, at once."""
    begun = [
        await flora.generations.create(type="text", prompt="[slow]", workspace_id="ws_1", project_id="prj_1")
        for _ in range(5)
    ]
    waits = [asyncio.create_task(flora.wait_for_run(each)) for each in begun]
    await anyio.wait_all_tasks_blocked()
    await flora.close()
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [ClientClosedError] * 5
