"""Creates whose answer was lost: found again, or told with all that is known."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Any

import pytest
from scripted import DUPLICATE, RUN_ID, Scripted, answer, error, generation, hang_up, history, row, started
from test_single_response import fails

from flora_async import (
    APITimeoutError,
    ConfigurationError,
    ConflictError,
    CreateOutcomeUnknownError,
    Flora,
    IdempotencyConflictError,
    InternalServerError,
    Order,
    StartedRun,
)
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}


@pytest.fixture(autouse=True)
def quick(change_policies: Callable[..., None], fast_retries: None) -> None:
    """Shorten the pauses of the search for a run."""
    change_policies(recovery={"pauses": (0.01, 0.01), "max_wait_for_others": 0.01})


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora("sk_1", base_url=server.base_url) as client:
        yield client


async def unknown(call: Any) -> CreateOutcomeUnknownError:
    """Give the error of a create that stays unknown."""
    failure = await fails(call)
    assert isinstance(failure, CreateOutcomeUnknownError), failure
    return failure


async def test_a_run_that_comes_late_into_the_history(flora: Flora, server: Scripted) -> None:
    """The history is read until two reads agree on the only run that it can be, which is returned."""
    server.on("POST", "/generate", hang_up, DUPLICATE).on("GET", "/generations", history(), history(row()))
    begun = await flora.generations.create(**ORDER)
    assert (begun.run_id, begun.recovered) == (RUN_ID, True)
    assert server.count("GET", "/generations") == 3
    assert server.asked[-1].query == {"limit": "100", "project_id": "prj_1", "workspace_id": "ws_1"}


async def test_a_run_that_another_joins(flora: Flora, server: Scripted) -> None:
    """One look was not enough: it is nobody's for certain."""
    server.on("POST", "/generate", hang_up, DUPLICATE).on(
        "GET", "/generations", history(row()), history(row(), row("run_2"))
    )
    assert (await unknown(flora.generations.create(**ORDER))).candidates == (RUN_ID, "run_2")


async def test_a_run_that_never_shows(flora: Flora, server: Scripted) -> None:
    """The error says that it exists."""
    server.on("POST", "/generate", hang_up, DUPLICATE).on("GET", "/generations", history(row("run_old", age=3600)))
    failure = await unknown(flora.generations.create(**ORDER))
    assert (failure.accepted, failure.candidates) == (True, ())
    assert "create accepted, but its run id is unknown" in str(failure)


async def test_a_history_that_cannot_be_read(flora: Flora, server: Scripted) -> None:
    """What happened to the create is what is told."""
    server.on("POST", "/generate", hang_up, DUPLICATE).on("GET", "/generations", error(500))
    failure = await unknown(flora.generations.create(**ORDER))
    assert failure.accepted
    assert "idempotency_duplicate" in str(failure)


async def test_without_proof_nothing_is_taken(flora: Flora, server: Scripted) -> None:
    """The run that is there may be anybody's."""
    server.on("POST", "/generate", hang_up).on("GET", "/generations", history(row()))
    failure = await unknown(flora.generations.create(**ORDER))
    assert (failure.accepted, failure.candidates) == (False, (RUN_ID,))


async def test_runs_that_this_client_has_started_are_known(flora: Flora, server: Scripted) -> None:
    """They are not taken for the lost one."""
    server.on("POST", "/generate", answer(started("run_1"), 201), hang_up, DUPLICATE)
    server.on("GET", "/generations", history(row("run_2"), row("run_1")))
    await flora.generations.create(**ORDER)
    assert (await flora.generations.create(**ORDER)).run_id == "run_2"


async def test_creates_under_way_speak_first(server: Scripted, change_policies: Callable[..., None]) -> None:
    """A create in flight is waited for: its run can be in the history before its response has come."""
    change_policies(recovery={"max_wait_for_others": 2.0})
    release = asyncio.Event()
    slowly = answer(started("run_slow"), 201)

    async def slow(request: Any) -> Any:
        await release.wait()
        step: Any = slowly
        return await step(request)

    async def listed(request: Any) -> Any:
        asyncio.get_running_loop().call_later(0.05, release.set)
        step: Any = history(row("run_lost"), row("run_slow"))
        return await step(request)

    server.on("POST", "/generate", slow, hang_up, DUPLICATE).on("GET", "/generations", listed)
    async with Flora("sk_1", base_url=server.base_url) as flora:
        first = asyncio.create_task(flora.generations.create(**ORDER))
        while not server.asked:
            await asyncio.sleep(0.001)
        second = await flora.generations.create(**ORDER)
        assert (second.run_id, second.recovered) == ("run_lost", True)
        assert (await first).run_id == "run_slow"


async def test_many_lost_at_once_share_their_looks(flora: Flora, server: Scripted) -> None:
    """Twenty of one order: each gets one of the twenty runs."""
    posts: dict[str, int] = {}

    async def lose(request: Any) -> Any:
        key = request.headers["Idempotency-Key"]
        posts[key] = posts.get(key, 0) + 1
        step: Any = error(409, "idempotency_duplicate", {"request-id": f"req_of_{key}"})
        if posts[key] == 1:
            step = hang_up
        return await step(request)

    server.on("POST", "/generate", lose)
    server.on("GET", "/generations", history(*(row(f"run_{number}") for number in range(20))))
    runs = await asyncio.gather(*(flora.generations.create(**ORDER) for _ in range(20)))
    assert {begun.run_id for begun in runs} == {f"run_{number}" for number in range(20)}
    assert server.count("GET", "/generations") < 20


async def test_many_lost_at_once_share_a_read_that_fails(flora: Flora, server: Scripted) -> None:
    """Creates whose history hangs do not queue up for one read each, which would take a time-out for each of them."""
    reads = 0

    async def refuse_late(request: Any) -> Any:
        nonlocal reads
        reads += 1
        while server.count("POST", "/generate") < 40:
            await asyncio.sleep(0.001)
        return await failing(request)

    failing: Any = error(500)
    server.on("POST", "/generate", hang_up).on("GET", "/generations", refuse_late)
    async with Flora("sk_1", base_url=server.base_url, max_retries=1) as client:
        lost = await asyncio.gather(*(unknown(client.generations.create(**ORDER)) for _ in range(20)))
    assert len(lost) == 20
    assert reads <= 8


async def test_recover_create_asks_again_under_the_key(flora: Flora, server: Scripted) -> None:
    """Within half an hour; a replay is the run, and nothing was ordered twice."""
    server.on("POST", "/generate", hang_up)
    failure = await unknown(flora.generations.create(**ORDER))
    server.on("POST", "/generate", answer(started(), 201, {"idempotent-replayed": "true"}))
    run = await flora.recover_create(failure)
    assert isinstance(run, StartedRun)
    assert (run.run_id, run.recovered) == (RUN_ID, False)
    assert {asked.headers["Idempotency-Key"] for asked in server.asked if asked.method == "POST"} == {
        failure.idempotency_key
    }


async def test_recover_create_learns_that_it_was_accepted(flora: Flora, server: Scripted) -> None:
    """And finds it."""
    server.on("POST", "/generate", hang_up)
    failure = await unknown(flora.generations.create(**ORDER))
    server.on("POST", "/generate", DUPLICATE).on("GET", "/generations", history(row(), row("run_mine")))
    again = await unknown(flora.recover_create(failure))
    assert (again.accepted, again.candidates) == (True, (RUN_ID, "run_mine"))
    found = await flora.recover_create(again, known=["run_mine"])
    assert (found.run_id, found.recovered) == (RUN_ID, True)


async def test_recover_create_while_flora_is_down(flora: Flora, server: Scripted) -> None:
    """Still nobody knows."""
    server.on("POST", "/generate", hang_up)
    failure = await unknown(flora.generations.create(**ORDER))
    server.on("POST", "/generate", error(503))
    again = await unknown(flora.recover_create(failure))
    assert (again.accepted, again.idempotency_key) == (False, failure.idempotency_key)
    assert again.window[0] == failure.window[0]


async def test_recover_create_after_half_an_hour(flora: Flora, server: Scripted) -> None:
    """The order is not sent again: FLORA forgets keys."""
    old = CreateOutcomeUnknownError(
        order=Order(**ORDER),
        idempotency_key="key-1",
        window=(time.time() - 3000, time.time() - 2900),
        attempts=3,
        reason="cut",
    )
    server.on("GET", "/generations", history(row("run_1", age=2950)))
    failure = await unknown(flora.recover_create(pickle.loads(pickle.dumps(old))))
    assert failure.candidates == ("run_1",)
    assert server.count("POST", "/generate") == 0


async def test_a_key_of_ones_own_that_was_used_before(flora: Flora, server: Scripted) -> None:
    """The run of its first use is found likewise."""
    server.on("POST", "/generate", DUPLICATE).on("GET", "/generations", history(row(age=1800)))
    conflict = await fails(flora.generations.create(**ORDER, idempotency_key="batch-1:7"))
    assert isinstance(conflict, IdempotencyConflictError)
    assert isinstance(conflict.order, Order)
    assert (conflict.order.prompt, conflict.idempotency_key) == ("a mug", "batch-1:7")
    revived: IdempotencyConflictError = pickle.loads(pickle.dumps(conflict))
    found = await flora.recover_create(revived)
    assert (found.run_id, found.recovered) == (RUN_ID, True)
    assert server.count("POST", "/generate") == 1


async def test_recovering_the_same_create_twice_at_once(flora: Flora, server: Scripted) -> None:
    """Both find the run, and one that is cancelled does not take the search of the other along."""
    server.on("POST", "/generate", DUPLICATE).on("GET", "/generations", history(row(age=1800)))
    conflict: Any = await fails(flora.generations.create(**ORDER, idempotency_key="batch-1:7"))
    ends = await asyncio.gather(*(flora.recover_create(conflict) for _ in range(2)))
    assert [end.run_id for end in ends] == [RUN_ID, RUN_ID]
    for reads in range(1, 4):
        first, second = (asyncio.create_task(flora.recover_create(conflict)) for _ in range(2))
        before = server.count("GET", "/generations")
        while server.count("GET", "/generations") < before + reads and not first.done():
            await asyncio.sleep(0)
        first.cancel()
        assert (await second).run_id == RUN_ID


@pytest.mark.parametrize(
    "what",
    [None, "run_1", ValueError("x"), ConflictError("x", status=409), IdempotencyConflictError("x", status=409)],
)
async def test_what_cannot_be_recovered(flora: Flora, what: Any) -> None:
    """Said at once."""
    assert isinstance(await fails(flora.recover_create(what)), ConfigurationError)


async def test_a_recovered_run_in_a_batch(server: Scripted) -> None:
    """It counts like others, and its outcome says that it was recovered."""
    server.on("POST", "/generate", hang_up, DUPLICATE).on("GET", "/generations", history(row()))
    server.on("GET", f"/runs/{RUN_ID}", answer(generation(RUN_ID, charged_cost=0.04)))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        async for outcome in flora.generate_many([Order(**ORDER)], max_cost=1):
            assert outcome.run is not None
            assert outcome.run.recovered


async def test_the_hook_is_told_before_the_first_byte() -> None:
    """The key, and the order; and the sandbox replays under it."""
    told: list[tuple[str, Order]] = []
    async with (
        Sandbox(idempotency="replay") as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, on_create=lambda *about: told.append(about)) as flora,
    ):
        begun = await flora.generations.create(**ORDER)
        ((key, order),) = told
        assert order.prompt == "a mug"
        assert (await flora.generations.create(**ORDER, idempotency_key=key)).run_id == begun.run_id
        assert sandbox.accepted == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_5xx_proves_nothing(flora: Flora, server: Scripted, status: int) -> None:
    """It can come from behind the acceptance: with a run that it could be, the outcome is unknown."""
    server.on("POST", "/generate", error(status)).on("GET", "/generations", history(), history(row()))
    failure = await unknown(flora.generations.create(**ORDER))
    assert (failure.accepted, failure.candidates, failure.attempts) == (False, (RUN_ID,), 3)


@pytest.mark.virtual_time
async def test_a_5xx_whose_run_is_nowhere(flora: Flora, server: Scripted) -> None:
    """The history is read, and read again when it no longer lags; then nothing was started."""
    server.on("POST", "/generate", error(429), error(503), error(500, "unknown_error"))
    server.on("GET", "/generations", history(row(age=100)))
    with pytest.raises(InternalServerError, match="Check 'prj_1'") as caught:
        await flora.generations.create(**ORDER)
    assert (caught.value.status, caught.value.attempts) == (500, 3)
    assert server.count("GET", "/generations") == 2


@pytest.mark.parametrize("last", [error(402), error(404), error(409, "conflict"), error(400)])
async def test_a_refusal_after_a_5xx(flora: Flora, server: Scripted, last: Any) -> None:
    """The first attempt may have been accepted: the refusal of the second says nothing about it."""
    server.on("POST", "/generate", error(503), last).on("GET", "/generations", history())
    assert not (await unknown(flora.generations.create(**ORDER))).accepted


async def test_a_5xx_and_a_history_that_cannot_be_read(flora: Flora, server: Scripted) -> None:
    """Nothing is known."""
    server.on("POST", "/generate", error(503)).on("GET", "/generations", error(503))
    await unknown(flora.generations.create(**ORDER))


async def test_a_5xx_and_a_row_that_cannot_be_read(flora: Flora, server: Scripted) -> None:
    """The row may be the run."""
    server.on("POST", "/generate", error(503)).on("GET", "/generations", history({"run_id": 5}))
    await unknown(flora.generations.create(**ORDER))


async def test_a_5xx_and_then_no_connection() -> None:
    """The last attempt was not sent, the first may have been accepted."""
    async with Scripted() as server:
        base_url = server.base_url
        async with Flora("sk_1", base_url=base_url) as flora:
            pauses: list[float] = []

            async def accept(request: Any) -> Any:
                asyncio.get_running_loop().call_soon(lambda: pauses.append(1))
                step: Any = error(503)
                return await step(request)

            server.on("POST", "/generate", accept)
            creating = asyncio.ensure_future(flora.generations.create(**ORDER))
            while not pauses:
                await asyncio.sleep(0)
            await server.__aexit__(None, None, None)
            failure = await unknown(creating)
            assert (failure.accepted, failure.candidates) == (False, ())


async def test_a_strangers_run_is_shown_before_ours(flora: Flora, server: Scripted) -> None:
    """The history lags: what looked like the only run is not taken."""
    server.on("POST", "/generate", hang_up, DUPLICATE)
    server.on("GET", "/generations", history(row("run_theirs")), history(row("run_theirs"), row("run_ours")))
    assert (await unknown(flora.generations.create(**ORDER))).candidates == ("run_theirs", "run_ours")


async def test_no_run_is_taken_beside_a_row_that_cannot_be_read(flora: Flora, server: Scripted) -> None:
    """The broken row may be ours, and the other a stranger's."""
    server.on("POST", "/generate", hang_up, DUPLICATE)
    server.on("GET", "/generations", history(row("run_theirs"), {"run_id": "run_ours", "status": 7}))
    failure = await unknown(flora.generations.create(**ORDER))
    assert (failure.accepted, failure.candidates) == (True, ("run_theirs",))


async def test_a_create_that_hangs_holds_no_other_up(flora: Flora, server: Scripted) -> None:
    """Another order of the project is found while the first still has no response."""

    async def hang(_request: Any) -> Any:
        await asyncio.sleep(3600)

    server.on("POST", "/generate", hang, hang_up, DUPLICATE).on("GET", "/generations", history(row()))
    hanging = asyncio.ensure_future(flora.generations.create(**ORDER))
    while not server.asked:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(20):
        assert (await flora.generations.create(**ORDER)).run_id == RUN_ID
    hanging.cancel()
    await asyncio.wait([hanging])


async def test_recover_create_asks_flora_for_the_time(
    flora: Flora, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose clock is three hours slow the key seems fresh; FLORA has forgotten it."""
    now = time.time()
    old = CreateOutcomeUnknownError(
        order=Order(**ORDER), idempotency_key="key-1", window=(now - 10810, now - 10790), attempts=1, reason="cut"
    )
    listed = answer({"generations": [], "meta": {}}, 200, {"Date": formatdate(now, usegmt=True)})
    server.on("GET", "/generations", listed)
    monkeypatch.setattr(time, "time", lambda: now - 10800)
    await unknown(flora.recover_create(old))
    assert server.count("POST", "/generate") == 0


async def test_projects_are_forgotten(flora: Flora, server: Scripted) -> None:
    """A client that orders for thousands of projects keeps nothing of those that are idle."""
    numbers = iter(range(300))

    async def create(request: Any) -> Any:
        step: Any = answer(started(f"run_{next(numbers)}"), 201)
        return await step(request)

    server.on("POST", "/generate", create)
    for number in range(250):
        await flora.generations.create(**{**ORDER, "project_id": f"prj_{number}"})
    assert len(flora._recovery._scopes) <= 101


async def test_a_run_whose_response_was_read_as_it_timed_out(
    flora: Flora, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is this create's own: it is returned, and no other run is taken for it."""
    read = flora._recovery._read

    def read_and_time_out(key: str, answer: Any) -> StartedRun:
        read(key, answer)
        raise APITimeoutError("/generate: no complete response in time", sent="maybe_sent")

    monkeypatch.setattr(flora._recovery, "_read", read_and_time_out)
    server.on("POST", "/generate", answer(started(RUN_ID), 201), DUPLICATE)
    server.on("GET", "/generations", history(row(RUN_ID), row("run_other")))
    begun = await flora.generations.create(**ORDER)
    assert (begun.run_id, begun.recovered) == (RUN_ID, True)
