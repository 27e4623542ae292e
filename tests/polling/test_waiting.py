"""Waiting for runs and watching them change."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import backoff
import msgspec
import pytest
from aiohttp import web
from scripted import RUN_ID, Scripted, answer, error, generation, hang_up, history, run, silence, started, tasks_of_ours

from flora_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    Flora,
    Generation,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    Run,
    RunFailedError,
    RunOutcomes,
    RunTimeoutError,
    RunWatch,
    StartedRun,
)
from flora_async._polling import poller

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time, pytest.mark.usefixtures("fast_retries")]

OWN = f"/runs/{RUN_ID}"
ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}


def often() -> Generator[float, Any, None]:
    """Return a schedule without delays."""
    return backoff.expo(base=1, factor=0.01)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Return a scripted server."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted) -> AsyncIterator[Flora]:
    """Return a client that polls without delays."""
    async with Flora("sk_1", base_url=server.base_url, poll=often) as client:
        yield client


def record(**changes: Any) -> Run:
    """Return one of the accepted forms of a run."""
    return msgspec.convert({**run("running"), **changes}, Run)


# -- result of a wait


async def test_a_run_by_each_of_its_records(flora: Flora, server: Scripted) -> None:
    """A wait accepts a StartedRun, a Run, a Generation and a run id."""
    server.on("GET", OWN, answer(run("pending")), answer(run("running", progress=40)), answer(run()))
    unfinished = msgspec.convert({**generation(RUN_ID), "status": "running", "progress": 3}, Generation)
    for subject in (msgspec.convert(started(), StartedRun), record(), unfinished, RUN_ID):
        finished = await flora.wait_for_run(subject)
        assert (finished.run_id, finished.succeeded, finished.outputs[0].url) == (RUN_ID, True, "hello")


async def test_a_finished_run_is_returned_without_a_request(flora: Flora, server: Scripted) -> None:
    """A finished run is returned, or raised if it failed, without a request."""
    done = record(**run())
    assert await flora.wait_for_run(done) is done
    with pytest.raises(RunFailedError) as caught:
        await flora.wait_for_run(record(status="failed", error_code="safety_blocked"))
    assert (caught.value.code, caught.value.run_id) == ("safety_blocked", RUN_ID)
    assert [seen async for seen in flora.watch_run(done)] == [done]
    assert not server.asked


async def test_a_run_that_fails(flora: Flora, server: Scripted) -> None:
    """RunFailedError contains the code and message of the failed run."""
    server.on("GET", OWN, answer(run("failed", error_code="provider_error", error_message="Sorry.")))
    with pytest.raises(RunFailedError, match="provider_error: Sorry") as caught:
        await flora.wait_for_run(RUN_ID)
    assert caught.value.run.status == "failed"


async def test_a_completed_run_without_outputs_is_complete(flora: Flora, server: Scripted) -> None:
    """A completed run without outputs and a failed run without a code are both finished."""
    server.on("GET", OWN, answer(run(outputs=None)), answer(run("failed")))
    assert (await flora.wait_for_run(RUN_ID)).outputs == ()
    with pytest.raises(RunFailedError, match="no code"):
        await flora.wait_for_run(RUN_ID)


async def test_generate_creates_and_waits(flora: Flora, server: Scripted) -> None:
    """generate() sends one POST, then polls."""
    server.on("POST", "/generate", answer(started(), 201)).on("GET", OWN, answer(run("running")), answer(run()))
    seen: list[str] = []
    finished = await flora.generate(**ORDER, on_update=lambda run: seen.append(run.status))
    assert finished.succeeded
    assert seen == ["running", "completed"]


async def test_errors_after_the_start_know_the_run(flora: Flora, server: Scripted) -> None:
    """An error after the create contains the run id, because the run is billed."""
    server.on("POST", "/generate", answer(started(), 201)).on("GET", OWN, answer(run("running")), error(401))
    with pytest.raises(AuthenticationError) as caught:
        await flora.generate(**ORDER)
    assert caught.value.run_id == RUN_ID
    assert RUN_ID in str(caught.value)


# -- time of polls


async def test_a_run_just_started_is_first_polled_near_its_end(server: Scripted) -> None:
    """A run just created is first polled near its expected end, any other run at once."""
    server.on("POST", "/generate", answer(started(estimated_seconds=30), 201)).on("GET", OWN, answer(run()))
    async with Flora("sk_1", base_url=server.base_url) as flora, Flora("sk_1", base_url=server.base_url) as other:
        started_run = await flora.generations.create(**ORDER)
        with pytest.raises(RunTimeoutError, match="never seen"):
            await flora.wait_for_run(started_run, timeout=0.2)
        assert server.count("GET", OWN) == 0
        assert (await other.wait_for_run(started_run, timeout=5)).succeeded
        assert (await flora.wait_for_run(RUN_ID, timeout=5)).succeeded


@pytest.mark.parametrize(("estimate", "first"), [(10.0, 6.5), (None, 5.2), (0, 5.2)])
async def test_the_default_schedule_uses_the_estimate(
    server: Scripted, change_policies: Callable[..., None], estimate: float | None, first: float
) -> None:
    """The default schedule uses the estimate, or the default duration of the type."""
    change_policies(poll={"jitter": 0.0})
    server.on("POST", "/generate", answer(started(estimated_seconds=estimate), 201)).on("GET", OWN, answer(run()))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        waiting = asyncio.create_task(flora.wait_for_run(await flora.generations.create(**ORDER)))
        await anyio.wait_all_tasks_blocked()
        planned = flora._poller._tracked[RUN_ID].interval
        waiting.cancel()
    assert planned == pytest.approx(first, abs=0.1)


async def test_a_schedule_for_one_wait(server: Scripted) -> None:
    """The ``poll`` argument of a wait overrides the client's and makes a new schedule for each run."""
    server.on("GET", OWN, answer(run("running")), answer(run("running")), answer(run()))
    made: list[object] = []

    def mine() -> Generator[float, Any, None]:
        made.append(1)
        return often()

    async with Flora("sk_1", base_url=server.base_url) as flora:
        for _ in range(2):
            assert (await flora.wait_for_run(RUN_ID, poll=mine, timeout=5)).succeeded
    assert len(made) == 2


async def test_a_schedule_with_invalid_delays(flora: Flora, server: Scripted) -> None:
    """A schedule with invalid delays raises ConfigurationError."""
    server.on("GET", OWN, answer(run("running")))
    with pytest.raises(ConfigurationError, match="schedule"):
        await flora.wait_for_run(RUN_ID, poll=lambda: backoff.expo(base=1, factor=-1))


async def test_runs_of_implausible_age_are_polled_like_new_ones(server: Scripted) -> None:
    """A run with an implausible creation time is polled like a new one."""
    server.on("GET", OWN, answer(run("running", created_at=0)), answer(run()))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        assert (await flora.wait_for_run(RUN_ID, timeout=4)).succeeded


# -- URL of polls


async def test_a_poll_url_on_the_clients_origin_is_polled(flora: Flora, server: Scripted) -> None:
    """A poll_url on the client's origin below its base path is polled."""
    server.on("POST", "/generate", answer(started(poll_url=f"{server.base_url}/poll/7?token=x"), 201))
    server.on("GET", "/poll/7", answer(run("running")), answer(run()))
    await flora.generate(**ORDER)
    assert server.count("GET", "/poll/7") == 2
    assert server.asked[-1].query == {"token": "x"}
    assert server.count("GET", OWN) == 0


async def test_a_foreign_poll_url_is_ignored_and_logged_once(
    flora: Flora, server: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """A poll_url on another host is ignored and logged once; the run is polled at its own URL."""
    caplog.set_level(logging.WARNING)
    async with Scripted() as elsewhere:
        away = elsewhere.base_url + OWN
        server.on("POST", "/generate", answer(started(poll_url=away), 201))
        server.on("GET", OWN, answer(run("running", poll_url=away)), answer(run(poll_url=away)))
        assert (await flora.generate(**ORDER)).succeeded
        assert (await flora.wait_for_run(RUN_ID)).succeeded
        assert not elsewhere.asked
    assert len([record for record in caplog.records if "poll_url" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "fault", [error(404), error(403), error(400), answer({}), answer(run(run_id="run_x")), error(302)]
)
async def test_a_poll_url_that_fails_is_replaced_by_the_runs_own_url(
    flora: Flora, server: Scripted, fault: Any
) -> None:
    """After an error at the poll_url, the run is polled at its own URL, and that response decides."""
    server.on("POST", "/generate", answer(started(poll_url=f"{server.base_url}/poll/7"), 201))
    server.on("GET", "/poll/7", fault).on(
        "GET", OWN, answer(run("running", poll_url=f"{server.base_url}/poll/7")), answer(run())
    )
    assert (await flora.generate(**ORDER)).succeeded
    assert server.count("GET", "/poll/7") == 1


# -- end of a wait


@pytest.mark.parametrize(
    "fault",
    [
        *(error(status) for status in (408, 429, 500, 502, 503, 504)),
        *(hang_up, answer(b"<html>"), answer(b""), answer(run(run_id="run_other")), answer(run("paused"))),
    ],
)
async def test_transient_errors_do_not_end_a_wait(
    server: Scripted, change_policies: Callable[..., None], fault: Any
) -> None:
    """Transient errors of any kind and number, and unknown statuses, do not end a wait."""
    change_policies(poll={"max_delay": 0.01})
    server.on("GET", OWN, *[fault] * 8, answer(run()))
    async with Flora("sk_1", base_url=server.base_url, poll=often) as flora:
        assert (await flora.wait_for_run(RUN_ID)).succeeded


async def test_a_poll_without_a_response_times_out(server: Scripted) -> None:
    """A poll without a response times out by the client's timeout; the wait continues."""
    server.on("GET", OWN, silence, answer(run()))
    async with Flora("sk_1", base_url=server.base_url, timeout=0.1, poll=often) as flora:
        assert (await flora.wait_for_run(RUN_ID)).succeeded


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequestError), (401, AuthenticationError), (403, PermissionDeniedError), (410, APIError)],
)
async def test_definite_responses_end_a_wait(flora: Flora, server: Scripted, status: int, kind: type[APIError]) -> None:
    """Definite error responses end a wait at once; the error contains the run id."""
    server.on("GET", OWN, answer(run("running")), error(status))
    with pytest.raises(kind) as caught:
        await flora.wait_for_run(RUN_ID)
    assert (caught.value.run_id, caught.value.status) == (RUN_ID, status)
    assert server.count("GET", OWN) == 2


async def test_a_redirect_ends_a_wait_at_once(flora: Flora, server: Scripted) -> None:
    """A redirect means a wrong base URL and ends a wait; the error contains the run id."""
    server.on("GET", OWN, error(302))
    with pytest.raises(ProtocolError, match="base_url") as caught:
        await flora.wait_for_run(RUN_ID)
    assert caught.value.run_id == RUN_ID
    assert server.count("GET", OWN) == 1


@pytest.mark.parametrize("code", [None, "canceled"])
async def test_an_unknown_status_with_a_completion_time_ends_a_wait(
    flora: Flora, server: Scripted, code: str | None
) -> None:
    """An unknown status with a completion time ends a wait; without that time it does not."""
    ended = run("canceled", completed_at=9.0, error_code=code)
    server.on("GET", OWN, answer(run("canceled")), answer(ended))
    assert [(seen.status, seen.finished) async for seen in flora.watch_run(RUN_ID)] == [
        ("canceled", False),
        ("canceled", True),
    ]
    with pytest.raises(RunFailedError, match="canceled") as caught:
        await flora.wait_for_run(RUN_ID)
    assert caught.value.run.completed_at == 9.0
    assert [outcome.error is not None async for outcome in flora.as_completed([RUN_ID])] == [True]


async def test_a_finished_row_without_outputs_is_retrieved(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A finished history item without outputs is retrieved once by waits and downloads."""
    server.on("GET", OWN, answer(run()))
    row = msgspec.convert(generation(RUN_ID, outputs=None), Generation)
    assert row.finished
    assert (await flora.wait_for_run(row)).outputs[0].url == "hello"
    assert [seen.outputs[0].url async for seen in flora.watch_run(row)] == ["hello"]
    assert [outcome.run and len(outcome.run.outputs) async for outcome in flora.as_completed([row])] == [1]
    assert len(await flora.download(row, tmp_path)) == 1
    assert server.count("GET", OWN) == 4
    failed = msgspec.convert(generation(RUN_ID, status="failed", outputs=None, error_code="no"), Generation)
    with pytest.raises(RunFailedError):
        await flora.wait_for_run(failed)
    assert server.count("GET", OWN) == 4


async def test_a_fresh_run_may_not_be_found_yet(
    flora: Flora, server: Scripted, change_policies: Callable[..., None]
) -> None:
    """A 404 is final 10 seconds after the creation; for a bare id, after the first poll."""
    missing = [error(404)] * 3
    server.on("POST", "/generate", answer(started(), 201)).on("GET", OWN, *missing, answer(run()))
    assert (await flora.generate(**ORDER)).succeeded
    server.on("GET", OWN, *missing, answer(run()))
    assert (await flora.wait_for_run(RUN_ID)).succeeded
    change_policies(poll={"not_found_grace": 0.05})
    server.on("GET", OWN, error(404))
    began = asyncio.get_running_loop().time()
    async with Flora("sk_1", base_url=server.base_url, poll=often) as impatient:
        with pytest.raises(NotFoundError) as caught:
            await impatient.wait_for_run(RUN_ID)
    assert asyncio.get_running_loop().time() - began >= 0.05
    assert caught.value.run_id == RUN_ID


async def test_an_old_run_that_is_not_found(flora: Flora, server: Scripted) -> None:
    """A 404 for an old run ends a wait at once, by the age in its record."""
    with pytest.raises(NotFoundError):
        await flora.wait_for_run(record(created_at=time.time() - 60))
    assert server.count("GET", OWN) == 1


@pytest.mark.parametrize(
    "say", [answer(run("running", progress=7)), silence, error(500), error(429, headers={"Retry-After": "9999"})]
)
async def test_the_timeout_limits_everything(flora: Flora, server: Scripted, say: Any) -> None:
    """The timeout limits a hanging request and a long Retry-After; the error contains the last record."""
    server.on("GET", OWN, answer(run("running", progress=7)), say)
    began = asyncio.get_running_loop().time()
    with pytest.raises(RunTimeoutError, match="the run continues") as caught:
        await flora.wait_for_run(RUN_ID, timeout=0.3)
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.3, abs=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.run_id, caught.value.run and caught.value.run.progress) == (RUN_ID, 7.0)


async def test_a_run_whose_wait_timed_out_can_be_awaited_again(flora: Flora, server: Scripted) -> None:
    """A run whose wait timed out can be awaited again."""
    server.on("GET", OWN, answer(run("running")))
    with pytest.raises(RunTimeoutError) as caught:
        await flora.wait_for_run(RUN_ID, timeout=0.05)
    server.on("GET", OWN, answer(run()))
    assert (await flora.wait_for_run(caught.value.run_id or "")).succeeded


async def test_cancelling_a_wait_stops_the_polls(flora: Flora, server: Scripted) -> None:
    """A cancelled wait stops its polls and leaves the client usable."""
    server.on("GET", OWN, answer(run("running")))
    with anyio.move_on_after(0.05) as scope:
        await flora.wait_for_run(RUN_ID)
    assert scope.cancelled_caught
    polls = server.count("GET", OWN)
    await anyio.sleep(0.2)  # time for twenty
    assert server.count("GET", OWN) <= polls + 1  # one may have been on its way


async def test_an_exception_of_on_update_ends_the_wait(flora: Flora, server: Scripted) -> None:
    """An exception from on_update ends the wait and is raised unchanged."""
    server.on("GET", OWN, answer(run("running")))

    def stop(run: Run) -> None:
        raise KeyError(run.run_id)

    with pytest.raises(KeyError, match=RUN_ID):
        await flora.wait_for_run(RUN_ID, on_update=stop)


# -- watching


async def test_a_watch_yields_each_change_once(flora: Flora, server: Scripted) -> None:
    """A watch omits unchanged records and lower progress, and ends with the finished run."""
    told = [
        ("pending", 0),
        ("pending", 0),
        ("running", 10),
        ("running", 30),
        ("running", 20),
        ("running", 30),
        ("odd", 1),
    ]
    server.on("GET", OWN, *(answer(run(status, progress=progress)) for status, progress in told), answer(run()))
    seen = [(run.status, run.progress) async for run in flora.watch_run(RUN_ID)]
    assert seen == [("pending", 0), ("running", 10), ("running", 30), ("odd", 30), ("completed", 100)]


async def test_early_outputs_are_a_change(flora: Flora, server: Scripted) -> None:
    """A new output before the end is a change."""
    early = [{"output_id": "1", "type": "text", "url": "first"}]
    server.on("GET", OWN, answer(run("running")), answer(run("running", outputs=early)), answer(run()))
    assert [len(run.outputs) async for run in flora.watch_run(RUN_ID)] == [0, 1, 1]


async def test_a_watch_ends_with_the_failed_run(flora: Flora, server: Scripted) -> None:
    """A watch yields a failed run as its last item."""
    server.on("GET", OWN, answer(run("failed", error_code="provider_error")))
    watch = flora.watch_run(RUN_ID)
    assert (await anext(watch)).error_code == "provider_error"
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_the_timeout_of_a_watch_spares_its_reader(flora: Flora, server: Scripted) -> None:
    """The timeout of a watch does not cancel its reader between two items."""
    server.on("GET", OWN, answer(run("running")))
    undisturbed = False
    with pytest.raises(RunTimeoutError):
        async for _ in flora.watch_run(RUN_ID, timeout=0.5):
            await anyio.sleep(0.6)
            undisturbed = True
    assert undisturbed


async def test_an_unknown_status_is_logged_once(
    flora: Flora, server: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown status is logged once for each run."""
    caplog.set_level(logging.WARNING)
    server.on("GET", OWN, answer(run("paused")), answer(run("paused")), answer(run("paused")), answer(run()))
    await flora.wait_for_run(RUN_ID)
    assert len([record for record in caplog.records if "paused" in record.getMessage()]) == 1


async def test_nothing_is_left_after_a_break(flora: Flora, server: Scripted) -> None:
    """After a break, a watch leaves no task and sends no poll."""
    server.on("GET", OWN, answer(run("running")))
    before = tasks_of_ours()
    async for _ in flora.watch_run(RUN_ID):
        break
    assert tasks_of_ours() == before


async def test_concurrent_waits(flora: Flora, server: Scripted) -> None:
    """Concurrent waits each return their own run."""
    ids = [f"run_{number}" for number in range(50)]
    for run_id in ids:
        server.on("GET", f"/runs/{run_id}", answer(run("running", run_id)), answer(run(run_id=run_id)))
    finished = await asyncio.gather(*(flora.wait_for_run(run_id) for run_id in ids))
    assert [run.run_id for run in finished] == ids


async def test_the_number_of_stored_runs_is_limited(flora: Flora, server: Scripted) -> None:
    """A client stores only awaited runs, up to a limit."""
    flora._awaited.limit = 3
    for number in range(5):
        server.on("POST", "/generate", answer(started(f"run_{number}"), 201))
        server.on("GET", f"/runs/run_{number}", answer(run("running", f"run_{number}")))
        begun = await flora.generations.create(**ORDER)
        assert not flora._awaited or number
        with pytest.raises(RunTimeoutError):
            await flora.wait_for_run(begun, timeout=0.1)
    assert list(flora._awaited) == ["run_2", "run_3", "run_4"]


# -- concurrent waits


async def test_hanging_polls_hold_up_no_other_wait(server: Scripted) -> None:
    """A finished run is known in 4 seconds while 200 polls and the history hang."""
    server.on("GET", "/generations", silence).on("GET", OWN, answer(run()))
    hanging = [f"run_{number}" for number in range(200)]
    for run_id in hanging:
        server.on("GET", f"/runs/{run_id}", silence)
    async with Flora("sk_1", base_url=server.base_url) as flora:
        waiting = [asyncio.create_task(flora.wait_for_run(run_id, timeout=None)) for run_id in hanging]
        began = asyncio.get_running_loop().time()
        assert (await flora.wait_for_run(RUN_ID)).succeeded
        assert asyncio.get_running_loop().time() - began <= 4
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()


async def test_polls_that_are_slow_succeed_in_the_end(server: Scripted, change_policies: Callable[..., None]) -> None:
    """With all polls slow, the eviction time grows, so that slow responses arrive in the end."""
    change_policies(poll={"max_concurrent": 4})

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3)
        return web.json_response(run(run_id=request.path.rsplit("/", 1)[1]))

    ids = [f"run_{number}" for number in range(12)]
    for run_id in ids:
        server.on("GET", f"/runs/{run_id}", slow)
    async with Flora("sk_1", base_url=server.base_url, batch_polling=False) as flora:
        finished = await asyncio.gather(*(flora.wait_for_run(run_id, timeout=300) for run_id in ids))
    assert [run.run_id for run in finished] == ids


async def test_a_bad_schedule_ends_its_own_wait_alone(server: Scripted) -> None:
    """A custom schedule that raises ends its own wait; waits for other runs and for the same run continue."""

    def bad() -> Generator[float, Any, None]:
        yield 0.0
        yield 0.5
        raise ValueError("a bug in one caller's schedule")

    ids = [RUN_ID, *(f"run_{number}" for number in range(5))]
    rows = [generation(run_id, status="running", outputs=None) for run_id in ids]
    server.on("GET", "/generations", history(*rows), history(*rows), history(*map(generation, ids)))
    for run_id in ids:
        server.on("GET", f"/runs/{run_id}", answer(run("running", run_id)), answer(run(run_id=run_id)))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        good = [asyncio.create_task(flora.wait_for_run(run_id, timeout=60)) for run_id in ids]
        with pytest.raises((ValueError, ConfigurationError)):
            await flora.wait_for_run(RUN_ID, poll=bad, timeout=60)
        assert all(run.succeeded for run in await asyncio.gather(*good))


@pytest.mark.parametrize("made", [5, None, [1.0], iter(())])
async def test_a_poll_function_without_a_generator_is_refused(flora: Flora, server: Scripted, made: Any) -> None:
    """A poll function that returns no wait generator is a configuration error, before any request."""
    with pytest.raises(ConfigurationError, match="poll must return a wait generator"):
        await flora.wait_for_run(RUN_ID, poll=lambda: made)
    assert not server.asked


async def test_each_wait_has_its_own_schedule(server: Scripted) -> None:
    """A run is polled when any of its schedules is due; the schedule of a cancelled wait is removed."""
    server.on("GET", OWN, answer(run("running")))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        usual = asyncio.create_task(flora.wait_for_run(RUN_ID))
        await asyncio.sleep(3)
        before = server.count("GET", OWN)
        assert before <= 3
        often = asyncio.create_task(flora.wait_for_run(RUN_ID, poll=lambda: backoff.constant(interval=[0.25])))
        await asyncio.sleep(5)
        assert server.count("GET", OWN) - before >= 15
        often.cancel()
        await asyncio.sleep(1)
        before = server.count("GET", OWN)
        await asyncio.sleep(10)
        assert 1 <= server.count("GET", OWN) - before <= 6
        usual.cancel()


async def test_the_timeout_error_of_a_watch_has_the_latest_record(server: Scripted) -> None:
    """RunTimeoutError of a watch contains the latest record, also one that another wait received."""
    states = [answer(run("running", progress=progress)) for progress in (10, 20, 30)]
    server.on("GET", OWN, *states)
    async with Flora("sk_1", base_url=server.base_url) as flora:
        watch = flora.watch_run(RUN_ID, timeout=20)
        assert (await anext(watch)).progress == 10
        other = asyncio.create_task(flora.wait_for_run(RUN_ID))
        await asyncio.sleep(3)
        with pytest.raises(RunTimeoutError, match="30 %") as caught:
            async for _ in watch:
                pass
        assert caught.value.run is not None
        assert caught.value.run.progress == 30
        other.cancel()


async def test_the_timeout_error_of_a_watch_has_its_last_item(server: Scripted) -> None:
    """If all polls since the last item failed, RunTimeoutError of a watch contains the last item."""
    server.on("GET", OWN, answer(run("running", progress=10)), error(503))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        with pytest.raises(RunTimeoutError, match="10 %"):
            async for _ in flora.watch_run(RUN_ID, timeout=20):
                pass


@pytest.mark.parametrize("tasks", [1, 2, 5])
async def test_iterators_are_shared_by_tasks(flora: Flora, server: Scripted, tasks: int) -> None:
    """Each item is yielded to exactly one of the reading tasks, and all tasks end."""
    ids = [f"run_{number}" for number in range(8)]

    async def read(iterator: RunOutcomes | RunWatch, into: list[Any]) -> None:
        async for item in iterator:
            into.append(item)
            await asyncio.sleep(0.01)

    for make in (flora.as_completed, flora.watch_run):
        for run_id in ids:
            server.on("GET", f"/runs/{run_id}", answer(run("running", run_id)), answer(run(run_id=run_id)))
        into: list[Any] = []
        iterator = make(ids)
        async with asyncio.timeout(60):
            await asyncio.gather(*(read(iterator, into) for _ in range(tasks)))
        ended = [item.run_id for item in into if not isinstance(item, Run) or item.finished]
        assert sorted(ended) == ids


async def test_a_cancelled_reader_leaves_its_turn_to_another(flora: Flora, server: Scripted) -> None:
    """A reader cancelled as its item arrives does not lose the item for the other readers."""
    server.on("GET", OWN, answer(run("running")), answer(run("running")), answer(run()))
    outcomes = flora.as_completed([RUN_ID])
    readers = [asyncio.create_task(anext(outcomes)) for _ in range(3)]
    while not outcomes._queue.pending:
        await asyncio.sleep(0.001)
    (waiter,) = outcomes._queue.pending
    waiter.add_done_callback(lambda _: readers[0].cancel())
    ends = await asyncio.gather(*readers, return_exceptions=True)
    assert sum(not isinstance(end, BaseException) for end in ends) == 1
    assert {type(end) for end in ends if isinstance(end, BaseException)} <= {
        asyncio.CancelledError,
        StopAsyncIteration,
    }


async def test_closing_the_client_ends_waits_at_once(server: Scripted) -> None:
    """Closing the client ends all waits at once, with hanging polls, hanging pages and shared iterators."""
    server.on("GET", "/generations", silence)
    ids = [f"run_{number}" for number in range(20)]
    for run_id in ids:
        server.on("GET", f"/runs/{run_id}", silence)
    flora = Flora("sk_1", base_url=server.base_url)
    watch = flora.watch_run(ids)
    waits = [asyncio.create_task(flora.wait_for_run(run_id)) for run_id in ids]
    waits += [asyncio.create_task(anext(watch)) for _ in range(2)]
    await asyncio.sleep(2)
    began = asyncio.get_running_loop().time()
    await flora.close()
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert asyncio.get_running_loop().time() == pytest.approx(began, abs=0.1)
    assert {type(end) for end in ends} == {ClientClosedError}


async def test_a_webhook_ends_a_wait_whose_poll_hangs(server: Scripted) -> None:
    """A webhook cancels a hanging poll and starts a new one: the poll may predate the end."""
    server.on("GET", OWN, silence, answer(run()))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        waiting = asyncio.create_task(flora.wait_for_run(RUN_ID))
        await asyncio.sleep(1)
        flora._poller.notify_finished(RUN_ID)
        async with asyncio.timeout(1):
            assert (await waiting).succeeded


@pytest.mark.parametrize("timeout", [3.0, 30.0, 600.0])
async def test_a_lost_webhook_does_not_time_out_a_run_that_has_ended(server: Scripted, timeout: float) -> None:
    """If the webhook is lost, the run is polled shortly before the deadline, also after a failed poll."""
    loop = asyncio.get_running_loop()
    begins = loop.time()

    async def poll(_request: web.Request) -> web.StreamResponse:
        polls.append(loop.time() - begins)
        late = [poll for poll in polls if poll >= timeout - poller.FINAL_POLL_LEAD]
        return web.json_response(run() if len(late) > 1 else run("running"), status=503 if len(late) == 1 else 200)

    polls: list[float] = []
    server.on("POST", "/generate", answer(started(), 201))
    server.on("GET", OWN, poll)
    async with Flora("sk_1", base_url=server.base_url) as flora:
        flora.inbox("whsec_1")
        begun = await flora.generations.create(**ORDER, callback_url="https://example.com/hook")
        ended = await flora.wait_for_run(begun, timeout=timeout)
    assert ended.succeeded
    assert timeout - poller.FINAL_POLL_LEAD <= polls[-1] < timeout
    assert len(polls) <= 6


async def test_a_schedule_of_the_caller_gets_no_last_poll(server: Scripted) -> None:
    """A wait with a custom schedule is polled by that schedule only."""
    polls: list[web.Request] = []

    async def poll(request: web.Request) -> web.StreamResponse:
        polls.append(request)
        return web.json_response(run("running"))

    server.on("POST", "/generate", answer(started(), 201))
    server.on("GET", OWN, poll)
    async with Flora("sk_1", base_url=server.base_url) as flora:
        flora.inbox("whsec_1")
        begun = await flora.generations.create(**ORDER, callback_url="https://example.com/hook")
        with pytest.raises(RunTimeoutError):
            await flora.wait_for_run(begun, timeout=30, poll=lambda: backoff.constant(interval=20))
    assert len(polls) == 1
