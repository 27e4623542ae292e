"""The client against a FLORA that is not the sandbox: settings, requests, retries, errors."""

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import anyio.from_thread
import anyio.to_thread
import msgspec
import pytest
from aiohttp import web
from scripted import RUN_ID, Scripted, answer, error, hang_up, history, run, silence, started

from flora_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    FloraError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InternalServerError,
    NotFoundError,
    Order,
    Output,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
    RunTimeoutError,
    StartedRun,
)
from flora_async._aio import import_in_thread

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries")]

ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}
KEY = "sk_test_not-for-your-eyes"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read no setting from the environment."""
    for variable in ("FLORA_API_KEY", "FLORA_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora(KEY, base_url=server.base_url) as client:
        yield client


# -- settings


def test_the_key_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty string counts as unset; without a key nothing begins."""
    with pytest.raises(ConfigurationError, match=r"api_key=.*FLORA_API_KEY"):
        Flora()
    monkeypatch.setenv("FLORA_API_KEY", "")
    with pytest.raises(ConfigurationError, match="FLORA_API_KEY"):
        Flora("")
    monkeypatch.setenv("FLORA_API_KEY", " sk_env \n")
    Flora("")
    Flora()


async def test_settings_from_the_environment(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both variables are read, the key stripped; an explicit argument goes first."""
    server.on("GET", "/models", answer({}))
    monkeypatch.setenv("FLORA_API_KEY", " My API Key\n")
    monkeypatch.setenv("FLORA_BASE_URL", server.base_url)
    async with Flora() as flora:
        await flora.request("GET", "/models")
    monkeypatch.setenv("FLORA_BASE_URL", "http://127.0.0.1:1/")
    async with Flora("sk_other", base_url=server.base_url + "/") as flora:
        await flora.request("GET", "/models")
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer My API Key", "Bearer sk_other"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        *(({"api_key": key}, "key") for key in ("sk_ä", "sk_\n1", "sk_\x00", 5, b"sk_1")),
        *(
            ({"base_url": url}, "base_url")
            for url in ("http://app.flora.ai/api/v1", "https://a:b@c/", "https://a/?b", 5)
        ),
        *(({"timeout": timeout}, "timeout") for timeout in (0, -1, float("nan"), float("inf"), "5", None, True)),
        *(({"max_retries": retries}, "max_retries") for retries in (-1, 1.5, "2", None, True)),
        *(({"poll": poll}, "poll") for poll in (2, "fast")),
        *(({"session": session}, "session") for session in (5, "x")),
        *(({"proxy": proxy}, "proxy") for proxy in (5, "", "socks5://localhost")),
        *(({"max_download_bytes": size}, "max_download_bytes") for size in (0, 1.5, None)),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], word: str) -> None:
    """One clear error at construction, without the key in it."""
    with pytest.raises(ConfigurationError, match=word) as caught:
        Flora(**{"api_key": KEY, **settings})
    assert KEY not in str(caught.value)


def test_the_key_is_not_in_the_repr() -> None:
    """Clients end up in logs."""
    assert repr(Flora(KEY)) == "Flora(base_url='https://app.flora.ai/api/v1')"


# -- requests


async def test_a_create_on_the_wire(flora: Flora, server: Scripted) -> None:
    """One POST with the key, an idempotency key and exactly what was ordered."""
    server.on("POST", "/generate", answer(started(poll_url=None, model={"model_id": "m"}, new_field=1), 201))
    run_started = await flora.generations.create(**ORDER, params={"seed": 7})
    assert isinstance(run_started, StartedRun)
    assert (run_started.run_id, run_started.charged_cost) == (RUN_ID, 0.04)
    (asked,) = server.asked
    assert json.loads(asked.body) == {**ORDER, "params": {"seed": 7}}
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.headers["User-Agent"].startswith("flora-async/")
    assert len(asked.headers["Idempotency-Key"]) == 36
    assert "Cookie" not in asked.headers


async def test_an_order_of_megabytes(flora: Flora, server: Scripted) -> None:
    """It goes out whole, and again whole."""
    server.on("POST", "/generate", error(500), answer(started(), 201))
    await flora.generations.create(**ORDER, params={"mask": "x" * 3_000_000})
    assert [len(json.loads(asked.body)["params"]["mask"]) for asked in server.asked] == [3_000_000] * 2


async def test_two_creates_have_two_keys(flora: Flora, server: Scripted) -> None:
    """Each order is billed once, and two orders twice."""
    server.on("POST", "/generate", answer(started(), 201), answer(started("run_2"), 201))
    await flora.generations.create(**ORDER)
    await flora.generations.create(**ORDER)
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 2


async def test_a_callers_own_idempotency_key(flora: Flora, server: Scripted) -> None:
    """It is sent as it is; a replayed answer is a success."""
    server.on("POST", "/generate", answer(started(), 201, {"idempotent-replayed": "true"}))
    assert (await flora.generations.create(**ORDER, idempotency_key="batch-7:1")).run_id == RUN_ID
    assert server.asked[0].headers["Idempotency-Key"] == "batch-7:1"


async def test_a_retrieve(flora: Flora, server: Scripted) -> None:
    """Runs of all kinds, with unknown values."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("paused", progress=12.5, new_field=[])))
    seen = await flora.generations.retrieve(RUN_ID)
    assert (seen.status, seen.progress, seen.finished) == ("paused", 12.5, False)


async def test_bad_arguments_send_nothing(flora: Flora, server: Scripted) -> None:
    """Wrong prefix, empty prompt, NaN, limit=0, an id that climbs: one error each, before anything is sent."""
    generations = flora.generations
    not_a_schedule: Any = 2
    for bad in (
        generations.create(**{**ORDER, "workspace_id": "prj_1"}),
        generations.create(**{**ORDER, "prompt": ""}),
        generations.create(**ORDER, params={"x": float("nan")}),
        generations.create(**ORDER, idempotency_key="a b"),
        generations.retrieve("run_../../admin"),
        flora.wait_for_run("job_1"),
        flora.wait_for_run(RUN_ID, timeout=0),
        flora.wait_for_run(RUN_ID, timeout=float("nan")),
        flora.wait_for_run(RUN_ID, poll=not_a_schedule),
        flora.wait_for_run(RUN_ID, on_update=not_a_schedule),
        flora.wait_for_run(not_a_schedule),
        flora.generate(**ORDER, timeout=-1),
        flora.request("GET", "https://evil.example/"),
    ):
        with pytest.raises(ConfigurationError):
            await bad
    with pytest.raises(ConfigurationError, match="limit"):
        generations.list(limit=0)
    assert not server.asked


async def test_any_request(flora: Flora, server: Scripted) -> None:
    """Undocumented paths, with query, body and a type of one's own."""

    class Model(msgspec.Struct):
        model_id: str

    server.on("GET", "/models/flux", answer({"model_id": "m", "x": 1}, headers={"X-Word": "y"}))
    server.on("POST", "/things", answer({"n": 1}, 202))
    server.on("DELETE", "/things/7", answer(b"", 204))
    response = await flora.request("GET", "/models/flux", params={"type": "image"}, decode_as=Model)
    assert (response.data.model_id, response.status, response.request_id) == ("m", 200, "req_1")
    assert response.headers["x-word"] == "y"
    posted = await flora.request("POST", "things", json={"a": [1]}, idempotency_key="k-1")
    assert posted.data == {"n": 1}
    assert (await flora.request("DELETE", "/things/7")).data == {}
    assert server.asked[0].query == {"type": "image"}
    assert (server.asked[1].body, server.asked[1].headers["Idempotency-Key"]) == (b'{"a":[1]}', "k-1")


async def test_a_plain_post_is_sent_once(flora: Flora, server: Scripted) -> None:
    """Without an idempotency key nobody can say what a second one would do."""
    server.on("POST", "/things", error(503))
    with pytest.raises(InternalServerError):
        await flora.request("POST", "/things", json={})
    with pytest.raises(InternalServerError):
        await flora.request("POST", "/things", json={}, idempotency_key="k")
    assert server.count("POST", "/things") == 1 + 3


# -- errors and retries


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "input_validation_error", BadRequestError),
        (401, "invalid_api_key", AuthenticationError),
        (402, "insufficient_credits", InsufficientCreditsError),
        (404, "not_found", NotFoundError),
        (409, "idempotency_duplicate", IdempotencyConflictError),
    ],
)
async def test_refusals_are_told_and_not_repeated(
    flora: Flora, server: Scripted, status: int, code: str, kind: type[APIError]
) -> None:
    """With all that FLORA says."""
    server.on("POST", "/generate", error(status, code, fields=[{"field": "prompt", "message": "Required"}]))
    with pytest.raises(kind) as caught:
        await flora.generations.create(**ORDER)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, code, "req_1")
    assert (caught.value.fields[0].field, caught.value.attempts) == ("prompt", 1)
    assert server.count("POST", "/generate") == 1


@pytest.mark.parametrize("fault", [hang_up, error(500), error(503), error(429), error(502)])
async def test_reads_are_tried_again(flora: Flora, server: Scripted, fault: Any) -> None:
    """Twice, as the client is set."""
    server.on("GET", f"/runs/{RUN_ID}", fault, fault, fault, fault, answer(run()))
    # aiohttp itself repeats a GET whose pooled connection was cut, so cuts are not counted here.
    for _ in range(2):
        try:
            assert (await flora.generations.retrieve(RUN_ID)).succeeded
        except (APIConnectionError, APIError) as caught:
            assert caught.attempts == 3
        else:
            break
    else:
        pytest.fail("five answers were not enough")


async def test_without_retries_a_request_is_sent_once(server: Scripted) -> None:
    """max_retries=0: one try, one POST."""
    server.on("POST", "/generate", error(500)).on("GET", f"/runs/{RUN_ID}", error(500))
    async with Flora(KEY, base_url=server.base_url, max_retries=0) as flora:
        with pytest.raises(CreateOutcomeUnknownError):
            await flora.generations.create(**ORDER)
        with pytest.raises(InternalServerError):
            await flora.generations.retrieve(RUN_ID)
    assert (server.count("POST", "/generate"), server.count("GET", f"/runs/{RUN_ID}")) == (1, 1)


@pytest.mark.parametrize(
    "fault",
    [
        hang_up,
        error(500),
        error(502),
        answer(b"<html>", 201),
        answer({}, 201),
        answer(started(), 200),
        answer(b"", 204),
    ],
)
async def test_a_create_whose_answer_was_lost_is_sent_again_under_its_key(
    flora: Flora, server: Scripted, fault: Any
) -> None:
    """A 201 in the end, replayed or not, is a success."""
    server.on("POST", "/generate", fault, answer(started(), 201, {"idempotent-replayed": "true"}))
    assert (await flora.generations.create(**ORDER)).run_id == RUN_ID
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    "answers",
    [
        (hang_up,),
        (error(500),),
        (answer(started(), 200),),
        (answer({**started(), "run_id": "job_1"}, 201),),
        (hang_up, error(409, "idempotency_duplicate")),
        (error(503), error(409, "idempotency_duplicate")),
        (error(500), error(401)),
        (hang_up, error(429)),
        (hang_up, error(302)),
    ],
)
async def test_a_create_that_stays_unknown(flora: Flora, server: Scripted, answers: tuple[Any, ...]) -> None:
    """It ends in the error that holds its one key, its order and its window."""
    server.on("POST", "/generate", *answers)
    with pytest.raises(CreateOutcomeUnknownError) as caught:
        await flora.generations.create(**ORDER)
    unknown = caught.value
    posts = [asked for asked in server.asked if asked.method == "POST"]
    assert {asked.headers["Idempotency-Key"] for asked in posts} == {unknown.idempotency_key}
    assert unknown.idempotency_key in str(unknown)
    assert isinstance(unknown.order, Order)
    assert unknown.order.prompt == "a mug"
    assert unknown.attempts == len(posts)
    assert unknown.window[0] <= time.time() <= unknown.window[1]


@pytest.mark.parametrize("fault", [error(503), error(429)])
async def test_a_create_that_was_put_off_is_not_unknown(flora: Flora, server: Scripted, fault: Any) -> None:
    """A 429 starts nothing; after 503s the history shows that nothing was started."""
    server.on("POST", "/generate", fault).on("GET", "/generations", history())
    with pytest.raises((InternalServerError, RateLimitError)) as caught:
        await flora.generations.create(**ORDER)
    assert caught.value.attempts == 3
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked if asked.method == "POST"}) == 1


async def test_a_server_that_is_not_there() -> None:
    """A refused connection is not_sent, for creates too."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Flora(KEY, base_url=f"http://127.0.0.1:{taken.getsockname()[1]}") as flora:
            for call in (flora.generations.create(**ORDER), flora.generations.retrieve(RUN_ID)):
                with pytest.raises(APIConnectionError) as caught:
                    await call
                assert (caught.value.sent, caught.value.attempts) == ("not_sent", 3)
                assert caught.value.__cause__ is None
                assert caught.value.__context__ is None


@pytest.mark.virtual_time
async def test_a_server_that_does_not_answer(server: Scripted) -> None:
    """The exchange ends at the timeout; a create may have arrived."""
    server.on("GET", f"/runs/{RUN_ID}", silence).on("POST", "/generate", silence)
    async with Flora(KEY, base_url=server.base_url, timeout=0.1, max_retries=1) as flora:
        with pytest.raises(APITimeoutError) as caught:
            await flora.generations.retrieve(RUN_ID)
        assert (caught.value.sent, caught.value.attempts) == ("maybe_sent", 2)
        with pytest.raises(CreateOutcomeUnknownError):
            await flora.generations.create(**ORDER)


@pytest.mark.virtual_time
async def test_retry_after_is_sat_out(flora: Flora, server: Scripted) -> None:
    """And one above a minute is an error at once."""
    server.on("GET", f"/runs/{RUN_ID}", error(429, headers={"Retry-After": "1"}), answer(run()))
    began = asyncio.get_running_loop().time()
    await flora.generations.retrieve(RUN_ID)
    assert asyncio.get_running_loop().time() - began >= 1
    server.on("GET", f"/runs/{RUN_ID}", error(429, headers={"Retry-After": "61"}))
    with pytest.raises(RateLimitError) as caught:
        await flora.generations.retrieve(RUN_ID)
    assert (caught.value.retry_after, caught.value.attempts) == (61.0, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(flora: Flora, server: Scripted, status: int) -> None:
    """Neither the key nor the prompt goes elsewhere."""
    async with Scripted() as elsewhere:
        away = answer(b"", status, {"Location": elsewhere.base_url + "/generate"})
        server.on("POST", "/generate", away).on("GET", f"/runs/{RUN_ID}", away)
        for call in (flora.generations.create(**ORDER), flora.generations.retrieve(RUN_ID)):
            with pytest.raises(ProtocolError, match="redirect"):
                await call
        assert not elsewhere.asked
    assert len(server.asked) == 2


async def test_an_answer_about_another_run(flora: Flora, server: Scripted) -> None:
    """It is no answer."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run(run_id="run_other")))
    with pytest.raises(ProtocolError, match="run_other"):
        await flora.generations.retrieve(RUN_ID)


async def test_an_answer_that_is_not_what_was_promised(flora: Flora, server: Scripted) -> None:
    """The error names field, URL and request id."""
    server.on("GET", f"/runs/{RUN_ID}", answer({"run_id": RUN_ID}))
    with pytest.raises(ResponseDecodeError) as caught:
        await flora.generations.retrieve(RUN_ID)
    assert (caught.value.field, caught.value.request_id) == ("$.status", "req_1")
    assert caught.value.url.endswith(f"/runs/{RUN_ID}")


async def test_garbage_instead_of_http() -> None:
    """It is no BadRequestError, whatever the parser calls it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, Flora(KEY, base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as flora:
        with pytest.raises(ProtocolError):
            await flora.generations.retrieve(RUN_ID)
        with pytest.raises(CreateOutcomeUnknownError):
            await flora.generations.create(**ORDER)


@pytest.mark.virtual_time
async def test_the_key_and_the_prompt_stay_out_of_the_log(
    flora: Flora, server: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids, statuses and times only, at every level."""
    caplog.set_level(logging.DEBUG)
    server.on("POST", "/generate", error(500), answer(started(), 201))
    server.on("GET", f"/runs/{RUN_ID}", error(500, prompt="a mug"), answer({"prompt": "a mug"}), answer(run()))
    started_run = await flora.generations.create(**ORDER)
    await flora.wait_for_run(started_run)
    ours = [record.getMessage() for record in caplog.records if record.name == "flora_async"]
    assert any(RUN_ID in line for line in ours)
    assert any(server.asked[0].headers["Idempotency-Key"] in line for line in ours)
    assert not any(KEY in line or "a mug" in line for line in ours)


# -- life


async def test_without_async_with(server: Scripted) -> None:
    """A client may be opened by its first request and closed by hand, twice."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    flora = Flora(KEY, base_url=server.base_url)
    assert (await flora.generations.retrieve(RUN_ID)).succeeded
    await flora.close()
    await flora.close()
    for call in (flora.generations.retrieve(RUN_ID), flora.generations.create(**ORDER), flora.wait_for_run(RUN_ID)):
        with pytest.raises(ClientClosedError):
            await call


async def test_closing_a_client_that_was_never_used() -> None:
    """There is nothing to close."""
    await Flora(KEY).close()


async def test_close_ends_what_is_under_way(server: Scripted) -> None:
    """Reads and waits end in ClientClosedError; a create that was sent is unknown."""
    server.on("GET", f"/runs/{RUN_ID}", silence).on("POST", "/generate", silence)
    server.on("GET", "/runs/run_2", answer(run("running", "run_2")))
    flora = Flora(KEY, base_url=server.base_url)
    caught: list[str] = []

    async def watch(call: Any) -> None:
        try:
            await call
        except FloraError as error:
            caught.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for call in (
            flora.generations.retrieve(RUN_ID),
            flora.generations.create(**ORDER),
            flora.wait_for_run("run_2"),
        ):
            group.start_soon(watch, call)
        while len(server.asked) < 3:
            await anyio.sleep(0.001)
        await flora.close()
    assert sorted(caught) == ["ClientClosedError", "ClientClosedError", "CreateOutcomeUnknownError"]


async def test_close_ends_the_reading_of_responses(server: Scripted) -> None:
    """A response whose body is on its way is not waited for: neither of a read, nor of a create, nor of a download."""

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"run_id": ')
        await asyncio.Event().wait()
        return response

    server.on("GET", f"/runs/{RUN_ID}", stall).on("POST", "/generate", stall).on("GET", "/file", stall)
    flora = Flora(KEY, base_url=server.base_url)
    output = Output(output_id="1", type="imageUrl", url=f"{server.base_url}/file")
    with TemporaryDirectory() as folder:
        calls = flora.generations.retrieve(RUN_ID), flora.generations.create(**ORDER), flora.download(output, folder)
        ends = [asyncio.create_task(call) for call in calls]
        while len(server.asked) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            await flora.close()
            read, create, download = await asyncio.gather(*ends, return_exceptions=True)
    assert (type(read), type(download)) == (ClientClosedError, ClientClosedError)
    assert isinstance(create, CreateOutcomeUnknownError)
    assert "https?" not in str(create)


async def test_close_ends_the_reads_of_a_callers_session(server: Scripted) -> None:
    """The session stays open, and a read by it does not go on until its timeout; a timeout of its own stays one."""
    server.on("GET", f"/runs/{RUN_ID}", silence)
    async with aiohttp.ClientSession() as session:
        flora = Flora(KEY, base_url=server.base_url, session=session, max_retries=0)
        read = asyncio.create_task(flora.generations.retrieve(RUN_ID))
        while not server.asked:
            await asyncio.sleep(0.001)
        with pytest.raises(APITimeoutError):
            await flora.generations.retrieve(RUN_ID, timeout=0.1)
        async with asyncio.timeout(2):
            await flora.close()
            with pytest.raises(ClientClosedError):
                await read
        assert not session.closed


async def test_two_closes_in_any_step_end_the_reads_of_a_callers_session(server: Scripted) -> None:
    """A second close that begins while the first one ends the reads has no effect, at whatever step it begins."""
    server.on("GET", f"/runs/{RUN_ID}", silence)
    for steps in range(5):
        async with aiohttp.ClientSession() as session:
            flora = Flora(KEY, base_url=server.base_url, session=session, max_retries=0)
            asked = len(server.asked)
            read = asyncio.create_task(flora.generations.retrieve(RUN_ID))
            while len(server.asked) == asked:
                await asyncio.sleep(0.001)
            first = asyncio.create_task(flora.close())
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(2):
                await flora.close()
                await first
                with pytest.raises(ClientClosedError):
                    await read


async def test_close_ends_what_pauses_and_what_waits_for_its_turn(server: Scripted) -> None:
    """A call in its retry pause, calls and polls behind it, and a create: at once, and nothing more is sent."""
    server.on("GET", f"/runs/{RUN_ID}", error(429, headers={"Retry-After": "20"}))
    flora = Flora(KEY, base_url=server.base_url)
    pausing = asyncio.create_task(flora.generations.retrieve(RUN_ID))
    while not flora._transport._limiter.delay():
        await asyncio.sleep(0.001)
    queued = [
        asyncio.create_task(call)
        for call in (
            *(flora.generations.retrieve(RUN_ID) for _ in range(5)),
            flora.generations.create(**ORDER),
            flora.wait_for_run("run_2"),
            anext(flora.generations.list().pages()),
        )
    ]
    await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        await flora.close()
        ends = await asyncio.gather(pausing, *queued, return_exceptions=True)
    assert {type(end) for end in ends} == {ClientClosedError}
    assert len(server.asked) == 1


async def test_close_under_an_ambiguous_create_does_not_hide_it(
    server: Scripted, change_policies: Callable[..., None]
) -> None:
    """A create that may have been accepted, and pauses before it is sent again, ends in the error that says so."""
    server.on("POST", "/generate", hang_up)
    change_policies(retry={"resend_pause": 20.0})
    flora = Flora(KEY, base_url=server.base_url)
    create = asyncio.create_task(flora.generations.create(**ORDER))
    while not server.asked:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await flora.close()
        with pytest.raises(CreateOutcomeUnknownError):
            await create


async def test_a_close_that_is_cancelled_closes_all_the_same(server: Scripted) -> None:
    """Its connections do not stay, whenever the cancellation comes."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")))
    for steps in range(1, 6):
        flora = Flora(KEY, base_url=server.base_url)
        wait = asyncio.create_task(flora.wait_for_run(RUN_ID))
        while not server.count("GET", f"/runs/{RUN_ID}"):
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(flora.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing, wait], timeout=5)
        server.asked.clear()
        assert isinstance(wait.exception(), ClientClosedError)
        assert flora._transport._sessions is not None
        assert flora._transport._sessions.closed


async def test_calls_from_all_worker_threads_at_once(server: Scripted) -> None:
    """The first request of a client needs a thread, and gets one though anyio's own all wait for that request."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    async with Flora(KEY, base_url=server.base_url) as flora:

        def call() -> bool:
            return anyio.from_thread.run(flora.generations.retrieve, RUN_ID).succeeded

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(2 * int(anyio.to_thread.current_default_thread_limiter().total_tokens)):
                    group.start_soon(anyio.to_thread.run_sync, call)
    assert len(server.asked) == 80


async def test_close_from_another_thread(server: Scripted) -> None:
    """It ends waits and requests on the event loop that they are on, and returns when that is done."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running"))).on("GET", "/runs/run_2", silence)
    flora = Flora(KEY, base_url=server.base_url)
    calls = [asyncio.create_task(call) for call in (flora.wait_for_run(RUN_ID), flora.generations.retrieve("run_2"))]
    while len(server.asked) < 2:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(2):
        await asyncio.to_thread(asyncio.run, flora.close())
        assert flora._transport._sessions is not None
        assert flora._transport._sessions.closed
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {ClientClosedError}


@pytest.mark.parametrize("left", ["closed", "stopped", "running nothing"])
def test_close_on_a_second_loop(left: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the first one is over it closes there and then, else when that runs again: no session is left open."""
    flora = Flora(KEY, base_url="http://127.0.0.1:1", max_retries=0)

    async def use() -> None:
        with pytest.raises(APIConnectionError):
            await flora.generations.retrieve(RUN_ID)

    with asyncio.Runner() as first:
        first.run(use())
        if left == "stopped":
            asyncio.run(flora.close())
            first.run(asyncio.sleep(0))
    if left == "closed":
        asyncio.run(flora.close())
    elif left == "running nothing":
        with pytest.raises(StopIteration):
            flora.close().send(None)
        asyncio.run(flora.close())
    assert flora._transport._sessions is not None
    assert flora._transport._sessions.closed
    assert not caplog.records


def test_each_client_belongs_to_one_loop() -> None:
    """Used on another, or on none, it says so."""
    flora = Flora(KEY, base_url="http://127.0.0.1:1", max_retries=0)

    async def use() -> None:
        with pytest.raises(APIConnectionError):
            await flora.generations.retrieve(RUN_ID)
        with pytest.raises(RunTimeoutError):
            await flora.wait_for_run(RUN_ID, timeout=0.1)

    async def misuse() -> None:
        for call in (flora.generations.retrieve(RUN_ID), flora.wait_for_run(RUN_ID)):
            with pytest.raises(ConfigurationError, match="event loop"):
                await call

    async def close() -> None:
        await flora.close()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        second.run(misuse())
        second.run(close())
        first.run(close())


def test_without_asyncio() -> None:
    """A loop of another kind is not taken."""
    flora = Flora(KEY)
    for call in (flora.generations.retrieve(RUN_ID), flora.wait_for_run(RUN_ID)):
        with pytest.raises(ConfigurationError, match="asyncio"):
            call.send(None)


def test_the_error_of_a_foreign_loop_is_the_one_that_is_seen() -> None:
    """``async with`` adds none of its own where asyncio does not run."""

    async def use() -> None:
        async with Flora(KEY) as flora:
            await flora.generations.retrieve(RUN_ID)

    with pytest.raises(ConfigurationError, match="asyncio") as caught:
        use().send(None)
    assert caught.value.__context__ is None
    with pytest.raises(StopIteration):
        Flora(KEY).close().send(None)


async def test_many_clients_in_one_process(server: Scripted) -> None:
    """Each with its own key."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    async with Flora("sk_1", base_url=server.base_url) as one, Flora("sk_2", base_url=server.base_url) as two:
        await asyncio.gather(one.generations.retrieve(RUN_ID), two.generations.retrieve(RUN_ID))
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sk_1", "Bearer sk_2"}


async def test_a_borrowed_session_carries_the_reads_and_stays_open(server: Scripted) -> None:
    """Creates use connections of their own."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run())).on("POST", "/generate", answer(started(), 201))
    seen: list[str] = []

    async def note(session: object, context: object, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.method)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        async with Flora(KEY, base_url=server.base_url, session=session) as flora:
            await flora.generations.retrieve(RUN_ID)
            await flora.generations.create(**ORDER)
        assert seen == ["GET"]
        assert not session.closed
        flora = Flora(KEY, base_url=server.base_url, session=session)
    with pytest.raises(ClientClosedError, match="session"):
        await flora.generations.retrieve(RUN_ID)
    await flora.close()


def test_a_session_of_another_event_loop() -> None:
    """One error says so, before anything is sent."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(session: aiohttp.ClientSession) -> None:
        async with Flora(KEY, base_url="http://127.0.0.1:1/api/v1", session=session) as flora:
            for call in (flora.generations.retrieve(RUN_ID), flora.generations.create(**ORDER)):
                with pytest.raises(ConfigurationError, match="session= belongs to another event loop"):
                    await call

    with asyncio.Runner() as other:
        session = other.run(make())
        asyncio.run(use(session))
        other.run(session.close())


async def test_a_session_whose_pool_is_full_of_others(server: Scripted) -> None:
    """The error names the pool, and nothing was sent."""
    server.on("GET", "/slow", silence)
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        Flora(KEY, base_url=server.base_url, session=session, timeout=0.5, max_retries=0) as flora,
    ):
        other = asyncio.create_task(session.get(f"{server.base_url}/slow"))
        while not server.asked:
            await asyncio.sleep(0)
        with pytest.raises(APITimeoutError, match="pool of session= is full") as caught:
            await flora.generations.retrieve(RUN_ID)
        assert caught.value.sent == "not_sent"
        other.cancel()
        await asyncio.wait([other])
        assert (await flora.generations.retrieve(RUN_ID)).run_id == RUN_ID


class ElsewhereConnector(aiohttp.TCPConnector):
    """A connector that may connect to another host, as those of proxies do."""


async def test_a_session_that_would_show_the_key_to_another_host() -> None:
    """A proxy or a kind of connector of its own is refused before anything is sent."""
    async with (
        aiohttp.ClientSession(proxy="http://127.0.0.1:1") as proxied,
        aiohttp.ClientSession(connector=ElsewhereConnector()) as elsewhere,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector("/tmp/none")) as local,
    ):
        with pytest.raises(ConfigurationError, match="its own proxy"):
            Flora(KEY, session=proxied)
        for session in (elsewhere, local):
            with pytest.raises(ConfigurationError, match="must connect with aiohttp"):
                Flora(KEY, session=session)


async def test_a_session_that_does_not_verify_certificates() -> None:
    """A connector with ``ssl=False`` is refused; one with a custom TLS context is used."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as unverified,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ssl.create_default_context())) as verified,
    ):
        with pytest.raises(ConfigurationError, match="must verify TLS certificates"):
            Flora(KEY, session=unverified)
        await Flora(KEY, session=verified).close()


async def test_a_session_without_aiohttps_private_attributes(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private attribute that another aiohttp does not have is unknown: the session is used."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))

    def public(value: object) -> dict[str, object]:
        private = ("_loop", "_acquired", "_default_proxy", "_ssl")
        return {name: each for name, each in vars(value).items() if name not in private}

    await import_in_thread("flora_async._http.session")
    monkeypatch.setattr("flora_async._http.session.vars", public, raising=False)
    async with (
        aiohttp.ClientSession() as session,
        Flora(KEY, base_url=server.base_url, session=session) as flora,
    ):
        assert (await flora.generations.retrieve(RUN_ID)).run_id == RUN_ID


async def test_a_proxy_carries_everything(server: Scripted) -> None:
    """Requests go to it, with the whole URL."""
    server.on("GET", "http://flora.localhost/x", answer({}))
    proxy = server.base_url.removesuffix("/api/v1")
    async with Flora(KEY, base_url="http://127.0.0.1:1/api/v1", proxy=proxy, max_retries=0) as flora:
        with pytest.raises(NotFoundError):
            await flora.request("GET", "/models")
    assert server.asked[0].headers["Host"] == "127.0.0.1:1"


async def test_a_cancelled_request_is_cancelled(flora: Flora, server: Scripted) -> None:
    """Cancellation passes through as itself."""
    server.on("GET", f"/runs/{RUN_ID}", silence)
    task = asyncio.create_task(flora.generations.retrieve(RUN_ID))
    while not server.asked:
        await anyio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_more_requests_than_may_be_under_way(flora: Flora, server: Scripted) -> None:
    """They take turns."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    runs = await asyncio.gather(*(flora.generations.retrieve(RUN_ID) for _ in range(300)))
    assert len(runs) == 300
