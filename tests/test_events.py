"""What a client tells on_event, and what its log records carry."""

import ast
import asyncio
import gc
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import anyio
import backoff
import msgspec
import pytest
from scripted import RUN_ID, Scripted, answer, error, generation, history, page, run, silence, started

import flora_async
from flora_async import (
    APIConnectionError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    Event,
    Flora,
    PollFinished,
    PollStarted,
    RateLimited,
    RequestFinished,
    RetryScheduled,
    RunCreated,
    RunFailedError,
    RunTimeoutError,
    WaitFinished,
    WaitStarted,
)
from flora_async._http import transport
from flora_async._polling import poller, waiting
from flora_async._resources import generations
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

E = TypeVar("E", bound=Event)

ORDER: dict[str, Any] = {"type": "image", "prompt": "a secret mug", "workspace_id": "ws_1", "project_id": "prj_1"}
NOW = 1790000000


def often() -> Any:
    """Look as often as can be."""
    return backoff.constant(interval=[0.01])


class Told(list[Event]):
    """What was told."""

    def of(self, kind: type[E]) -> list[E]:
        """Give the events of a kind."""
        return [event for event in self if type(event) is kind]

    def names(self) -> list[str]:
        """Name all events."""
        return [type(event).__name__ for event in self]


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
def told() -> Told:
    """Give a place for what is told."""
    return Told()


@pytest.fixture
async def flora(server: Scripted, told: Told, change_policies: Callable[..., None]) -> AsyncIterator[Flora]:
    """Give a client that tells."""
    change_policies(retry={"first_delay": 0.001})
    async with Flora("sk_1", base_url=server.base_url, poll=often, on_event=told.append) as client:
        yield client


async def until(so: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    with anyio.fail_after(30):
        while not so():
            await asyncio.sleep(0.001)


# -- requests and runs


async def test_a_generation_from_order_to_end(flora: Flora, server: Scripted, told: Told) -> None:
    """The create, the run, the wait with each look and its request, in this order."""
    server.on("POST", "/generate", answer(started(model={"model_id": "m"}), 201))
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")), answer(run(charged_cost=0.04)))
    await flora.generate(**ORDER)
    look = ["PollStarted", "RequestFinished", "PollFinished"]
    assert told.names() == ["RequestFinished", "RunCreated", "WaitStarted", *look, *look, "WaitFinished"]
    create, first, _ = told.of(RequestFinished)
    assert (create.method, create.path, create.status, create.error) == ("POST", "/generate", 201, None)
    assert (create.attempt, create.request_id) == (1, "req_1")
    assert 0 < create.seconds < 30
    assert (first.method, first.path, first.status) == ("GET", "/runs/{id}", 200)
    assert told.of(RunCreated) == [
        RunCreated(run_id=RUN_ID, type="image", model_id="m", charged_cost=0.04, recovered=False)
    ]
    (began,), (ended,) = told.of(WaitStarted), told.of(WaitFinished)
    assert told.of(PollStarted) == [PollStarted(how="run", run_ids=(RUN_ID,))] * 2
    assert [(look.how, look.run_ids) for look in told.of(PollFinished)] == [("run", (RUN_ID,))] * 2
    assert (ended.wait, ended.run_id) == (began.wait, began.run_id) == (began.wait, RUN_ID)
    assert (ended.status, ended.error, ended.polls, ended.lag, ended.charged_cost) == ("completed", None, 2, None, 0.04)
    assert sum(look.seconds for look in told.of(PollFinished)) <= ended.seconds < 30


async def test_a_request_that_is_sent_again(flora: Flora, server: Scripted, told: Told) -> None:
    """Each attempt, and the pause between."""
    server.on("GET", f"/runs/{RUN_ID}", error(503), error(500), answer(run()))
    await flora.generations.retrieve(RUN_ID)
    assert told.names() == ["RequestFinished", "RetryScheduled", "RequestFinished", "RetryScheduled", "RequestFinished"]
    assert [(ended.attempt, ended.status, ended.error, ended.request_id) for ended in told.of(RequestFinished)] == [
        (1, 503, "InternalServerError", "req_1"),
        (2, 500, "InternalServerError", "req_1"),
        (3, 200, None, "req_1"),
    ]
    again = told.of(RetryScheduled)
    assert [(planned.method, planned.path, planned.error, planned.attempt) for planned in again] == [
        ("GET", "/runs/{id}", "InternalServerError", 1),
        ("GET", "/runs/{id}", "InternalServerError", 2),
    ]
    assert all(0 <= planned.pause < 1 for planned in again)


async def test_too_many_requests(flora: Flora, server: Scripted, told: Told) -> None:
    """For how long FLORA wants a pause, and for how long there is one."""
    server.on("GET", f"/runs/{RUN_ID}", error(429, headers={"retry-after": "0.05"}), answer(run()))
    await flora.generations.retrieve(RUN_ID)
    (limited,) = told.of(RateLimited)
    assert limited.path == "/runs/{id}"
    assert told.of(RequestFinished)[0].status == 429
    assert limited.retry_after is None or limited.retry_after <= limited.pause + 0.01
    assert limited.pause > 0


async def test_a_request_that_is_cancelled(flora: Flora, server: Scripted, told: Told) -> None:
    """Is over as well."""
    server.on("GET", f"/runs/{RUN_ID}", silence)
    asking = asyncio.create_task(flora.generations.retrieve(RUN_ID))
    await until(lambda: server.asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (ended,) = told
    assert isinstance(ended, RequestFinished)
    assert (ended.status, ended.error) == (None, "CancelledError")


@pytest.mark.parametrize(
    ("path", "template"),
    [("models", "/models"), ("/techniques/tech_1/runs/run_2", "/techniques/{id}/runs/{id}"), ("/run_", "/run_")],
)
async def test_paths_have_no_ids(flora: Flora, server: Scripted, told: Told, path: str, template: str) -> None:
    """Nor a query."""
    server.on("GET", "/" + path.removeprefix("/"), answer({}))
    await flora.request("GET", path, params={"token": "secret"})
    assert [ended.path for ended in told.of(RequestFinished)] == [template]


@pytest.mark.virtual_time
async def test_nothing_secret_is_told(told: Told, server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """No key, prompt, text, signed URL or error message, neither in events nor in the fields of log records."""
    caplog.set_level(logging.DEBUG, "flora_async")
    secrets = ("sk_live_1", "secret", "X-Amz", "hello")
    server.on(
        "POST", "/generate", error(503), answer(started(poll_url=f"{server.base_url}/runs/{RUN_ID}?X-Amz=1"), 201)
    )
    server.on("GET", f"/runs/{RUN_ID}", error(500, "secret"), answer(run()))
    server.on("GET", "/generations", history(generation("run_1"), generation("run_2")))
    async with Flora("sk_live_1", base_url=server.base_url, poll=often, on_event=told.append) as flora:
        await flora.generate(**ORDER)
        assert len([item async for item in flora.generations.list(cursor="secret")]) == 2
    assert len(told) > 8
    known = set(vars(logging.makeLogRecord({})))
    fields = [{name: value for name, value in vars(record).items() if name not in known} for record in caplog.records]
    for said in (*(repr(event) for event in told), *map(repr, fields)):
        assert not any(secret in said for secret in secrets), said


# -- waits


async def test_many_waits_share_looks(flora: Flora, server: Scripted, told: Told) -> None:
    """A page of the history is one look for several, and counts for each."""
    ids = [f"run_{number}" for number in range(5)]
    running = [generation(run_id, status="running", created_at=NOW, outputs=None) for run_id in ids]
    done = [generation(run_id, created_at=NOW, completed_at=NOW + 9, charged_cost=0.5) for run_id in ids]
    server.on("GET", "/generations", history(*running), history(*done))
    assert len([outcome async for outcome in flora.as_completed(ids) if outcome.run]) == 5
    assert {look.how for look in told.of(PollStarted)} >= {"page"}
    ended = told.of(WaitFinished)
    assert sorted(wait.run_id for wait in ended) == ids
    assert {(wait.status, wait.charged_cost) for wait in ended} == {("completed", 0.5)}
    polls = [run_id for look in told.of(PollFinished) for run_id in look.run_ids]
    assert all(wait.polls >= max(1, polls.count(wait.run_id)) for wait in ended)
    assert len({wait.wait for wait in told.of(WaitStarted)}) == 5


async def test_two_waits_for_one_run(flora: Flora, server: Scripted, told: Told) -> None:
    """Each begins and ends; they are looked at once."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    await asyncio.gather(flora.wait_for_run(RUN_ID), flora.wait_for_run(RUN_ID))
    assert sorted(wait.wait for wait in told.of(WaitStarted)) == sorted(wait.wait for wait in told.of(WaitFinished))
    assert len({wait.wait for wait in told.of(WaitFinished)}) == 2
    assert len(told.of(PollFinished)) == 1


async def test_a_finished_run_is_not_waited_for(flora: Flora, told: Told, server: Scripted) -> None:
    """Nothing is told."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    done = await flora.generations.retrieve(RUN_ID)
    told.clear()
    await flora.wait_for_run(done)
    assert told == []


async def test_how_late_the_end_was_known(flora: Flora, server: Scripted, told: Told) -> None:
    """Since the run ended, or since the wait began where that was later; never below zero."""
    server.on("GET", "/runs/run_1", answer(run(run_id="run_1", completed_at=NOW)))
    server.on("GET", "/runs/run_2", answer(run(run_id="run_2", completed_at=4e9)))
    server.on("GET", "/runs/run_3", answer(run("failed", run_id="run_3", completed_at=NOW)))
    await flora.wait_for_run("run_1")
    await flora.wait_for_run("run_2")
    with pytest.raises(RunFailedError):
        await flora.wait_for_run("run_3")
    past, future, failed = told.of(WaitFinished)
    assert past.lag is not None
    assert 0 <= past.lag <= past.seconds + 0.1
    assert future.lag == 0
    assert (failed.status, failed.error) == ("failed", None)


@pytest.mark.parametrize(
    ("answers", "timeout", "raised", "name"),
    [
        ([answer(run("running"))], 0.05, RunTimeoutError, "RunTimeoutError"),
        ([error(401)], None, AuthenticationError, "AuthenticationError"),
    ],
)
@pytest.mark.parametrize("updates", [False, True])
async def test_a_wait_that_ends_without_the_run(
    flora: Flora,
    server: Scripted,
    told: Told,
    answers: list[Any],
    timeout: float | None,
    raised: type[Exception],
    name: str,
    updates: bool,
) -> None:
    """By the name of the error; with on_update, too."""
    server.on("GET", f"/runs/{RUN_ID}", *answers)
    seen: list[object] = []
    with pytest.raises(raised):
        await flora.wait_for_run(RUN_ID, timeout=timeout, on_update=seen.append if updates else None)
    await until(lambda: told.of(WaitFinished))
    (ended,) = told.of(WaitFinished)
    assert (ended.status, ended.error) == (None, name)


async def test_a_wait_that_is_cancelled(flora: Flora, server: Scripted, told: Told) -> None:
    """Nobody waits any more."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")))
    waiting = asyncio.create_task(flora.wait_for_run(RUN_ID))
    await until(lambda: told.of(PollFinished))
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(lambda: told.of(WaitFinished))
    assert [wait.error for wait in told.of(WaitFinished)] == ["CancelledError"]


async def test_closing_the_client_ends_its_waits(flora: Flora, server: Scripted, told: Told) -> None:
    """And says so."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")))
    waiting = asyncio.create_task(flora.wait_for_run(RUN_ID))
    await until(lambda: told.of(PollFinished))
    await flora.close()
    with pytest.raises(ClientClosedError):
        await waiting
    assert [wait.error for wait in told.of(WaitFinished)] == ["ClientClosedError"]


async def test_a_watch_is_one_wait(flora: Flora, server: Scripted, told: Told) -> None:
    """However many changes it brings."""
    changes = [answer(run("running", progress=progress)) for progress in (10, 50, 90)]
    server.on("GET", f"/runs/{RUN_ID}", *changes, answer(run()))
    assert len([seen async for seen in flora.watch_run(RUN_ID)]) == 4
    await until(lambda: told.of(WaitFinished))
    (began,), (ended,) = told.of(WaitStarted), told.of(WaitFinished)
    assert (ended.wait, ended.polls, ended.status) == (began.wait, 4, "completed")


@pytest.mark.parametrize("way", ["closed", "dropped"])
async def test_a_watch_that_is_left(flora: Flora, server: Scripted, told: Told, way: str) -> None:
    """Between two changes, ends once: when it is closed or dropped."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")))
    watch = flora.watch_run([RUN_ID])
    await anext(watch)
    assert told.of(WaitFinished) == []
    if way == "closed":
        await watch.aclose()
    del watch
    gc.collect()
    await until(lambda: told.of(WaitFinished))
    await anyio.wait_all_tasks_blocked()
    assert [wait.error for wait in told.of(WaitFinished)] == ["CancelledError"]


async def test_looks_are_made_in_the_context_of_their_wait(flora: Flora, server: Scripted) -> None:
    """What on_event makes current when a wait begins, and what its caller had, the looks see; the caller does not."""
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    wait: ContextVar[str] = ContextVar("wait", default="none")
    seen: list[tuple[str, str, str]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, WaitStarted):
            wait.set(f"wait for {event.run_id}")
        seen.append((type(event).__name__, caller.get(), wait.get()))

    async def ask(name: str, run_id: str) -> None:
        caller.set(name)
        await client.wait_for_run(run_id)
        assert wait.get() == "none"

    server.on("GET", "/runs/run_1", answer(run(run_id="run_1")))
    server.on("GET", "/runs/run_2", answer(run(run_id="run_2")))
    async with Flora("sk_1", base_url=server.base_url, poll=often, on_event=on_event) as client:
        await asyncio.gather(ask("ann", "run_1"), ask("ben", "run_2"))
    kinds = ("WaitStarted", "PollStarted", "RequestFinished", "PollFinished", "WaitFinished")
    for name, what in (("ann", "wait for run_1"), ("ben", "wait for run_2")):
        assert tuple(kind for kind, whose, which in seen if (whose, which) == (name, what)) == kinds


# -- who listens


@pytest.mark.parametrize("wrong", ["print", 7, asyncio.sleep, type("Async", (), {"__call__": asyncio.sleep})()])
def test_only_a_plain_function_listens(wrong: Any) -> None:
    """A coroutine would never be awaited."""
    with pytest.raises(ConfigurationError, match="on_event must be a plain function that takes an Event"):
        Flora("sk_1", on_event=wrong)


async def test_what_on_event_raises_goes_no_further(server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, once; all events are told, and the client works."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        raise ValueError("mine")

    server.on("POST", "/generate", answer(started(), 201))
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")), answer(run()))
    async with Flora("sk_1", base_url=server.base_url, poll=often, on_event=on_event) as flora:
        assert (await flora.generate(**ORDER)).succeeded
    assert len(events) > 6
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "ValueError: mine" in caplog.text
    assert vars(record)["event_type"] == "RequestFinished"


@pytest.mark.virtual_time
async def test_without_a_listener_no_event_is_made(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client does."""
    made: list[object] = []
    for module in (transport, generations, poller, waiting):
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and issubclass(value, Event):
                monkeypatch.setattr(module, name, lambda **fields: made.append(fields))
    server.on("POST", "/generate", error(429), answer(started(), 201))
    server.on("GET", f"/runs/{RUN_ID}", error(500), answer(run("running")), answer(run()))
    server.on("GET", "/generations", page("run_1", "run_2"))
    async with Flora("sk_1", base_url=server.base_url, poll=often) as flora:
        await flora.generate(**ORDER)
        assert len([seen async for seen in flora.watch_run([RUN_ID, "run_1", "run_2"])]) == 3
    assert made == []
    async with Flora("sk_1", base_url=server.base_url, poll=often, on_event=made.append) as flora:
        await flora.generate(**ORDER)
    assert made


async def test_events_are_records() -> None:
    """Frozen, with names; they go to JSON as they are."""
    event: Event = RunCreated(run_id="run_1", type="image", model_id=None, charged_cost=0.04, recovered=False)
    assert msgspec.to_builtins(event)["charged_cost"] == 0.04
    with pytest.raises(AttributeError):
        event.run_id = "run_2"  # type: ignore[attr-defined]


async def test_a_burst_on_the_sandbox_adds_up() -> None:
    """A hundred runs: each created once, waited for once; every request is told."""
    told = Told()
    async with (
        Sandbox(time_scale=0.01) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, poll=often, on_event=told.append) as flora,
    ):
        order = flora_async.Order(type="text", prompt="a haiku", workspace_id="ws_demo", project_id="prj_demo")
        outcomes = [outcome async for outcome in flora.generate_many([order] * 100, concurrency=100)]
    assert all(outcome.run for outcome in outcomes)
    ids = sorted(created.run_id for created in told.of(RunCreated))
    assert len(set(ids)) == 100
    assert (
        sorted(wait.run_id for wait in told.of(WaitStarted)) == sorted(w.run_id for w in told.of(WaitFinished)) == ids
    )
    assert {wait.status for wait in told.of(WaitFinished)} == {"completed"}
    assert min(wait.polls for wait in told.of(WaitFinished)) >= 1
    polls = [ended for ended in told.of(RequestFinished) if ended.method == "GET"]
    assert len(polls) == len(told.of(PollFinished)) == len(told.of(PollStarted))


# -- the log


def fields_of(tree: ast.Module) -> Iterator[str]:
    """Give the names of the fields that the log records of a module carry: each must carry some."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and re.fullmatch(r"log\.[a-z]+", ast.unparse(call.func)):
            (extra,) = (keyword.value for keyword in call.keywords if keyword.arg == "extra")
            if isinstance(extra, ast.Name):
                before = [node for node in assigned if node.lineno < call.lineno and _name(node) == extra.id]
                extra = max(before, key=lambda node: node.lineno).value
            assert isinstance(extra, ast.Dict)
            yield from (ast.literal_eval(key) for key in extra.keys if key)


def _name(node: ast.Assign) -> str:
    return ast.unparse(node.targets[0])


def test_log_records_have_fields() -> None:
    """Every log record of the client has fields. Their names are documented, and no record has them already."""
    root = Path(flora_async.__file__).parent
    client = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in ("durable", "sandbox")]
    used = {name for path in client for name in fields_of(ast.parse(path.read_text(encoding="utf-8")))}
    assert not used & {*vars(logging.makeLogRecord({})), "message", "asctime"}
    guide = (Path(__file__).parent.parent / "docs" / "guide" / "telemetry.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## The log\n.*", guide, re.DOTALL)
    assert used == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


async def test_a_log_record(flora: Flora, server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """Of a failure, and of each request."""
    caplog.set_level(logging.DEBUG, "flora_async")
    server.on("GET", f"/runs/{RUN_ID}", error(503), answer(run()))
    await flora.generations.retrieve(RUN_ID)
    refused, again, answered = (vars(record) for record in caplog.records if record.name == "flora_async")
    assert (refused["status"], refused["request_id"], refused["path"]) == (503, "req_1", "/runs/{id}")
    assert (again["error"], again["attempt"], again["method"]) == ("InternalServerError", 1, "GET")
    assert answered["status"] == 200


async def test_a_failed_connection_is_told(told: Told) -> None:
    """With no status."""
    async with Flora("sk_1", base_url="http://127.0.0.1:9", max_retries=0, on_event=told.append) as flora:
        with pytest.raises(APIConnectionError):
            await flora.generations.retrieve(RUN_ID)
    assert [(ended.status, ended.error) for ended in told.of(RequestFinished)] == [(None, "APIConnectionError")]
