"""The sandbox keeps FLORA's contract, over real HTTP."""

import asyncio
import importlib.util
import io
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anyio
import pytest

from flora_async import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    FloraError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    RunFailedError,
    RunTimeoutError,
    UnprocessableEntityError,
)
from flora_async.models import Order
from flora_async.sandbox import Sandbox, _runs
from flora_async.sandbox._runs import HistoryQuery, Runs, decode_cursor, encode_cursor, plan_run

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries", "fast_polls")]

ORDER: dict[str, Any] = {"type": "text", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}


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


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session that speaks to it without a client."""
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield session


# -- runs


@pytest.mark.parametrize("kind", ["image", "video", "audio", "text"])
async def test_a_run_from_order_to_output(flora: Flora, kind: Any) -> None:
    """A run is pending, runs with progress and completes, with times in milliseconds and an output of its type."""
    started = await flora.generations.create(**{**ORDER, "type": kind})
    assert started.type == "generation"
    assert started.charged_cost > 0
    assert started.estimated_seconds is not None
    assert started.poll_url is not None
    assert started.poll_url.endswith(f"/runs/{started.run_id}")
    run = await flora.wait_for_run(started)
    assert run.succeeded
    assert run.progress == 100
    assert run.charged_cost == started.charged_cost
    assert run.started is not None
    assert run.completed is not None
    assert run.created <= run.started <= run.completed
    assert run.outputs[0].type == ("text" if kind == "text" else f"{kind}Url")


def plan(prompt: str = "a mug", kind: Any = "image", scale: float = 1.0, **params: Any) -> _runs.SandboxRun:
    """Plan a run that is created at zero."""
    order = Order(type=kind, prompt=prompt, workspace_id="ws_1", project_id="prj_1", params=params)
    return plan_run(order, now=0.0, unix=1_790_000_000.0, time_scale=scale)


def test_a_run_is_a_function_of_time() -> None:
    """Pending, running with rising progress, completed; its estimate is near the truth."""
    run = plan()
    whole = run.waiting + run.working
    assert 6 * 0.75 <= whole <= 6 * 1.25
    assert 0.85 <= run.estimate / whole <= 1.15
    told = [_runs.run_record(run, whole * (step + 0.5) / 100, "u") for step in range(120)]
    assert [record["status"] for record in told] == ["pending"] * 10 + ["running"] * 90 + ["completed"] * 20
    progress = [record["progress"] for record in told]
    assert progress == sorted(progress, key=lambda share: float(str(share)))
    assert "started_at" not in told[0]
    assert told[-1]["created_at"] == 1_790_000_000_000


def test_the_same_prompt_and_seed_go_the_same_way() -> None:
    """Another seed goes another."""
    assert plan(seed=1).working == plan(seed=1).working != plan(seed=2).working
    assert plan(seed="x").working == plan().working


def test_slow_runs_take_a_minute_whatever_the_scale() -> None:
    """A slow run takes a minute at any time scale, also if it fails."""
    for prompt in ("[slow] a mug", "[slow] [fail:provider_error] a mug"):
        run = plan(prompt, scale=0.001)
        assert run.waiting + run.working >= 60


async def test_a_run_that_is_to_fail(flora: Flora) -> None:
    """A run fails with the code in its prompt, known to FLORA or not, and without a charge."""
    for code in ("safety_blocked", "my_own_code"):
        with pytest.raises(RunFailedError) as caught:
            await flora.generate(**{**ORDER, "prompt": f"a mug [fail:{code}]"})
        assert caught.value.code == code
        assert caught.value.message
        assert caught.value.run.charged_cost == 0
        assert caught.value.run.outputs == ()


@pytest.mark.virtual_time
async def test_a_slow_run(flora: Flora) -> None:
    """A slow run exceeds the timeout of a wait."""
    with pytest.raises(RunTimeoutError):
        await flora.generate(**{**ORDER, "prompt": "[slow] a mug"}, timeout=0.2)


# -- refusals


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequestError), (402, InsufficientCreditsError), (429, RateLimitError), (503, InternalServerError)],
)
@pytest.mark.virtual_time
async def test_a_prompt_can_ask_for_an_answer(sandbox: Sandbox, flora: Flora, status: int, kind: Any) -> None:
    """Nothing is started then."""
    with pytest.raises(kind):
        await flora.generations.create(**{**ORDER, "prompt": f"[http:{status}] a mug"})
    assert sandbox.accepted == 0


async def test_errors_on_demand(sandbox: Sandbox, flora: Flora) -> None:
    """For the next requests of a kind, as many as asked for."""
    sandbox.fail_next(404, path="/runs", code="gone_fishing")
    sandbox.fail_next(429, method="POST", retry_after=77, times=2)
    for _ in range(2):
        with pytest.raises(RateLimitError) as limited:
            await flora.generations.create(**ORDER)
        assert limited.value.retry_after == 77
    started = await flora.generations.create(**ORDER)
    with pytest.raises(NotFoundError) as missing:
        await flora.generations.retrieve(started.run_id)
    assert missing.value.code == "gone_fishing"
    assert (await flora.generations.retrieve(started.run_id)).run_id == started.run_id
    with pytest.raises(ConfigurationError, match="status"):
        sandbox.fail_next(200)


BEFORE = ("reset", "hang", "html", "redirect", 503)
AFTER = ("lost_reply", "half_reply", "repeated_reply", "garbage", "empty", "wrong_run")


@pytest.mark.virtual_time
@pytest.mark.parametrize("fault", [*BEFORE, *AFTER])
async def test_faults_by_name(fault: Any) -> None:
    """Before anything is done, or when all is; a create under the same key puts each right."""
    async with (
        Sandbox(time_scale=0.01, idempotency="replay") as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0, timeout=0.2) as flora,
    ):
        sandbox.fail_next(fault, method="POST")
        try:
            started = await flora.generations.create(**ORDER, idempotency_key="key-1")
        except FloraError as error:
            assert sandbox.accepted == (fault in AFTER)
            unknown = isinstance(error, CreateOutcomeUnknownError)
            assert unknown is (fault not in ("redirect", "html", 503))
            started = await flora.generations.create(**ORDER, idempotency_key="key-1")
        assert sandbox.accepted == 1
        assert list(sandbox.orders) == [started.run_id]
        if fault != "repeated_reply":
            # aiohttp itself repeats a read whose connection was cut.
            sandbox.fail_next(fault, path="/runs", times=2 if fault in ("reset", "lost_reply") else 1)
            with pytest.raises(FloraError):
                await flora.generations.retrieve(started.run_id)
        assert (await flora.generations.retrieve(started.run_id)).run_id == started.run_id


async def test_faults_by_their_share() -> None:
    """Faults hit their share of the requests, the same ones for the same seed."""

    async def met(**settings: Any) -> str:
        async with (
            Sandbox(**settings) as sandbox,
            Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as flora,
        ):
            seen = ""
            for _ in range(100):
                try:
                    await flora.request("GET", "/models")
                except FloraError as error:
                    seen += type(error).__name__[:1]
                else:
                    seen += "."
            return seen

    first = await met(faults={503: 0.2, "garbage": 0.2}, seed=7)
    assert first == await met(faults={503: 0.2, "garbage": 0.2}, seed=7) != await met(faults={503: 0.2, "garbage": 0.2})
    assert 10 <= first.count("I") <= 30
    assert 10 <= first.count("R") <= 30
    assert await met() == "." * 100


@pytest.mark.parametrize(
    "faults", [{"fire": 0.1}, {200: 0.1}, {503: -0.1}, {503: 0.6, "reset": 0.6}, {503: float("nan")}]
)
def test_faults_that_are_none(faults: Any) -> None:
    """Said at once."""
    with pytest.raises(ConfigurationError):
        Sandbox(faults=faults)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "unauthorized"),
        ({"Authorization": "Basic x"}, "unauthorized"),
        ({"Authorization": "Bearer "}, "unauthorized"),
        ({"Authorization": "Bearer sk_other"}, "invalid_api_key"),
    ],
)
async def test_keys_that_are_not_taken(sandbox: Sandbox, headers: dict[str, str], code: str) -> None:
    """Only its own."""
    async with aiohttp.ClientSession() as session, session.get(sandbox.base_url + "/models", headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, code)
        assert answer.headers["request-id"].startswith("req_")


async def test_a_sandbox_that_takes_any_key() -> None:
    """`any_key` accepts every key, as the command does."""
    async with Sandbox(any_key=True) as sandbox, Flora("anything at all", base_url=sandbox.base_url) as flora:
        assert (await flora.request("GET", "/models")).status == 200
    async with Sandbox(api_key="sk_mine") as sandbox, Flora("sk_other", base_url=sandbox.base_url) as flora:
        assert sandbox.api_key == "sk_mine"
        with pytest.raises(AuthenticationError):
            await flora.request("GET", "/models")


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        (b"{", "invalid_json", set()),
        (b"\xff", "invalid_json", set()),
        (b'{"a":' + b"[" * 100_000, "invalid_json", set()),
        (b"[]", "input_validation_error", set()),
        ({}, "input_validation_error", {"type", "prompt", "workspace_id", "project_id"}),
        ({**ORDER, "prompt": "", "type": "t2i"}, "input_validation_error", {"prompt", "type"}),
        (
            {**ORDER, "workspace_id": "prj_1", "project_id": "prj_"},
            "input_validation_error",
            {"workspace_id", "project_id"},
        ),
        ({**ORDER, "model": 5, "params": [], "new": 1}, "input_validation_error", {"model", "params", "new"}),
        ({**ORDER, "callback_url": "http://x.example"}, "input_validation_error", {"callback_url"}),
        ({**ORDER, "idempotency_key": "k"}, "input_validation_error", {"idempotency_key"}),
    ],
)
async def test_orders_that_are_not_valid(
    sandbox: Sandbox, http: aiohttp.ClientSession, body: Any, code: str, fields: set[str]
) -> None:
    """Each wrong field is named."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(sandbox.base_url + "/generate", data=raw) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, code)
    assert {field["field"] for field in error.get("fields", [])} == fields
    assert sandbox.accepted == 0


async def test_an_order_with_everything(sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
    """Model, params and an https call-back are accepted with a 201."""
    body = {**ORDER, "model": "t2i-flux-2-pro", "params": {"seed": 7}, "callback_url": "https://x.example/hook"}
    async with http.post(sandbox.base_url + "/generate", json=body) as answer:
        assert (answer.status, (await answer.json())["model"]["model_id"]) == (201, "t2i-flux-2-pro")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nowhere", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/media/run_1/output_1.png", 404),
        ("DELETE", "/api/v1/generate", 405),
        ("GET", "/api/v1/runs/job_1", 400),
        ("GET", "/api/v1/runs/run_unknown", 404),
        ("GET", "/api/v1/models?type=t2i", 400),
        *(
            ("GET", f"/api/v1/generations?{query}", 400)
            for query in ("limit=0", "limit=101", "limit=x", "limit=1000000")
        ),
        *(
            ("GET", f"/api/v1/generations?{query}", 400)
            for query in ("cursor=x", "cursor=bnVsbA", "cursor=%C3%A4", "status=odd")
        ),
        *(("GET", f"/api/v1/generations?{query}", 400) for query in ("project_id=ws_1", "workspace_id=prj_1")),
    ],
)
async def test_every_refusal_is_in_floras_envelope(
    sandbox: Sandbox, http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    """Each error response has a request id."""
    async with http.request(method, sandbox.base_url.removesuffix("/api/v1") + path) as answer:
        error = (await answer.json())["error"]
        assert answer.status == status
        assert answer.headers["request-id"].startswith("req_")
    assert error["code"]
    assert error["message"]
    assert status != 400 or error["fields"]


async def test_a_body_that_is_too_large(sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
    """A body that is too large is rejected before it is read."""
    async with http.post(sandbox.base_url + "/generate", data=io.BytesIO(b" " * (2**20 + 1))) as answer:
        assert answer.status == 413


async def test_a_fault_of_its_own(
    sandbox: Sandbox, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal error of the sandbox is a 500 like FLORA's."""
    monkeypatch.delattr("flora_async.sandbox._catalog.MODELS")
    async with http.get(sandbox.base_url + "/models") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (500, "internal_error")


# -- idempotency


async def test_a_used_key_is_rejected(sandbox: Sandbox, flora: Flora, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two hours, without the run's id; keys belong to an API key."""
    await flora.generations.create(**ORDER, idempotency_key="k-1")
    for prompt in ("a mug", "another"):
        with pytest.raises(IdempotencyConflictError) as caught:
            await flora.generations.create(**{**ORDER, "prompt": prompt}, idempotency_key="k-1")
        assert "run_" not in str(caught.value)
    assert sandbox.accepted == 1
    monkeypatch.setitem(server_key_seconds(), "reject", -1.0)
    await flora.generations.create(**ORDER, idempotency_key="k-1")
    assert sandbox.accepted == 2


def server_key_seconds() -> dict[str, float]:
    """Give how long keys are remembered."""
    from flora_async.sandbox import _server

    return _server.KEY_LIFETIMES


async def test_a_used_key_is_answered_again() -> None:
    """By FLORA's other account: the first answer, or 422 for another body; as header or in the body."""
    async with (
        Sandbox(idempotency="replay") as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {sandbox.api_key}"}) as http,
    ):
        first = await flora.generations.create(**ORDER, idempotency_key="k-1")
        repeated = await flora.generations.create(**ORDER, idempotency_key="k-1")
        assert (repeated.run_id, repeated.poll_url) == (first.run_id, first.poll_url)
        async with http.post(sandbox.base_url + "/generate", json={**ORDER, "idempotency_key": "k-1"}) as answer:
            assert (answer.status, answer.headers["idempotent-replayed"]) == (201, "true")
            assert (await answer.json())["run_id"] == first.run_id
        with pytest.raises(UnprocessableEntityError):
            await flora.generations.create(**{**ORDER, "prompt": "another"}, idempotency_key="k-1")
        assert sandbox.accepted == 1


async def test_keys_of_two_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key under two API keys is two keys; the oldest are forgotten first."""
    async with (
        Sandbox(any_key=True, max_runs=3) as sandbox,
        Flora("sk_1", base_url=sandbox.base_url) as one,
        Flora("sk_2", base_url=sandbox.base_url) as two,
    ):
        await one.generations.create(**ORDER, idempotency_key="k")
        await two.generations.create(**ORDER, idempotency_key="k")
        for number in range(2):
            await two.generations.create(**ORDER, idempotency_key=f"k-{number}")
        await one.generations.create(**ORDER, idempotency_key="k")
        assert sandbox.accepted == 5


# -- the history


async def test_pages_newest_first(sandbox: Sandbox, flora: Flora) -> None:
    """With cursors, filters and a total; a finished item tells all that a run tells."""
    made = [(await flora.generations.create(**{**ORDER, "project_id": f"prj_{n % 2}"})).run_id for n in range(25)]
    await flora.wait_for_run(made[-1])
    listed = [generation async for generation in flora.generations.list(limit=10)]
    assert [generation.run_id for generation in listed] == made[::-1]
    assert listed[0].generation_id == made[-1]
    assert listed[0].model is not None
    pages = [page async for page in flora.generations.list(project_id="prj_1", limit=5).pages()]
    assert [len(page.generations) for page in pages] == [5, 5, 2]
    assert {page.total_estimate for page in pages} == {12}
    assert [page.next_cursor is None for page in pages] == [False, False, True]
    completed = [generation async for generation in flora.generations.list(status="completed", workspace_id="ws_1")]
    run = await flora.generations.retrieve(made[-1])
    assert completed[0].outputs == run.outputs
    assert [generation async for generation in flora.generations.list(workspace_id="ws_2")] == []


async def test_new_runs_shift_the_pages(flora: Flora) -> None:
    """As they do at FLORA: offsets count from the newest."""
    made = [(await flora.generations.create(**ORDER)).run_id for _ in range(4)]
    pages = flora.generations.list(limit=2).pages()
    first = await anext(pages)
    await pages.aclose()
    await flora.generations.create(**ORDER)
    second = await anext(flora.generations.list(limit=2, cursor=first.next_cursor).pages())
    assert [generation.run_id for generation in second.generations] == [made[2], made[1]]


def test_runs_are_bounded() -> None:
    """The oldest go first."""
    kept = Runs(3)
    made = [plan() for _ in range(5)]
    for run in made:
        kept.add(run)
    assert len(kept) == 3
    assert kept.get(made[0].run_id) is None
    page, following, total = kept.page(HistoryQuery(limit=2), 0.0)
    assert ([run.run_id for run in page], following, total) == ([made[4].run_id, made[3].run_id], 2, 3)


def test_cursors_are_floras() -> None:
    """The reference's example reads as an offset."""
    assert encode_cursor(20) == "eyJvZmZzZXQiOjIwfQ"
    assert decode_cursor("eyJvZmZzZXQiOjIwfQ") == 20
    assert decode_cursor(encode_cursor(-1)) is None


# -- what it offers


async def test_the_catalogue(flora: Flora) -> None:
    """A few models, workspaces and projects, in FLORA's shapes."""
    models: Any = (await flora.request("GET", "/models")).data["models"]
    assert {model["type"] for model in models} == {"image", "video", "audio", "text"}
    (image,) = (await flora.request("GET", "/models", params={"type": "image"}, decode_as=dict[str, Any])).data[
        "models"
    ]
    names = {"model_id", "name", "provider", "type", "estimated_seconds", "estimated_credits", "capabilities", "params"}
    assert set(image) == names
    workspaces: Any = (await flora.request("GET", "/workspaces")).data["workspaces"]
    projects: Any = (await flora.request("GET", "/projects", params={"workspace_id": "ws_demo"})).data["projects"]
    assert [workspace["workspace_id"] for workspace in workspaces] == ["ws_demo"]
    assert {project["workspace_id"] for project in projects} == {"ws_demo"}
    assert (await flora.request("GET", "/projects", params={"workspace_id": "ws_x"})).data["projects"] == []


async def test_media_in_parts(sandbox: Sandbox, flora: Flora) -> None:
    """Without a key, whole or by range; not before the run has completed."""
    run = await flora.generate(**{**ORDER, "type": "audio"})
    url = run.outputs[0].url
    async with aiohttp.ClientSession() as http:
        async with http.get(url) as answer:
            whole = await answer.read()
            assert (answer.status, answer.content_type) == (200, "audio/wav")
            assert answer.headers["request-id"]
        async with http.get(url, headers={"Range": "bytes=10-19"}) as answer:
            assert (answer.status, await answer.read()) == (206, whole[10:20])
            assert answer.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
        async with http.get(url, headers={"Range": "bytes=-5"}) as answer:
            assert await answer.read() == whole[-5:]
        for wrong in (f"bytes={len(whole)}-", "bytes=x-y"):
            async with http.get(url, headers={"Range": wrong}) as answer:
                assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
        for other in (url + "x", url.replace("output_1", "output_2")):
            async with http.get(other) as answer:
                assert answer.status == 404
        slow = await flora.generations.create(**{**ORDER, "type": "image", "prompt": "[slow]"})
        async with http.get(url.replace(run.run_id, slow.run_id).replace(".wav", ".png")) as answer:
            assert answer.status == 404


# -- life


async def test_several_at_once_and_what_they_count(sandbox: Sandbox, flora: Flora) -> None:
    """Each has its own state."""
    async with Sandbox() as other, Flora(other.api_key, base_url=other.base_url) as elsewhere:
        started = await flora.generations.create(**ORDER)
        with pytest.raises(NotFoundError):
            await elsewhere.generations.retrieve(started.run_id)
        assert (sandbox.requests["POST /generate"], other.requests["GET /runs"]) == (1, 1)


async def test_life_by_hand() -> None:
    """Start, close, close again; it has no address before."""
    sandbox = Sandbox(host="::1") if socket.has_ipv6 else Sandbox()
    with pytest.raises(ConfigurationError, match="started"):
        _ = sandbox.base_url
    await sandbox.start()
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        assert (await flora.request("GET", "/models")).status == 200
    await sandbox.close()
    await sandbox.close()


async def test_a_port_that_is_taken(sandbox: Sandbox) -> None:
    """It says so."""
    port = int(sandbox.base_url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match="in use"):
        await Sandbox(port=port).start()


@pytest.mark.parametrize(
    "settings",
    [
        {"time_scale": 0},
        {"time_scale": float("nan")},
        {"time_scale": "fast"},
        {"idempotency": "x"},
        {"max_runs": 0},
        {"port": 99999},
        {"port": -1},
        {"rate_limit": 0},
        {"rate_limit": float("inf")},
        {"lost_webhooks": 1.5},
        {"lost_webhooks": "all"},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    """One clear error."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Sandbox(**settings)


async def test_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    real = importlib.util.find_spec
    monkeypatch.setattr("flora_async.sandbox._server.find_spec", lambda name: None if name == "av" else real(name))
    with pytest.raises(ConfigurationError, match=r"needs av: pip install 'flora-async\[sandbox\]'"):
        await Sandbox().start()


async def test_closing_with_connections_open() -> None:
    """It does not wait for clients that keep theirs."""
    sandbox = Sandbox()
    await sandbox.start()
    async with aiohttp.ClientSession() as http:
        async with http.get(sandbox.base_url):
            pass
        with anyio.fail_after(5):
            await sandbox.close()


async def test_many_runs_at_once(sandbox: Sandbox, flora: Flora) -> None:
    """All complete."""
    finished = await asyncio.gather(*(flora.generate(**ORDER) for _ in range(100)))
    assert len({run.run_id for run in finished}) == 100
    assert sandbox.accepted == 100


@pytest.mark.parametrize(
    "settings", [{"times": 0}, {"times": -1}, {"times": 1.5}, {"retry_after": -1}, {"retry_after": float("nan")}]
)
async def test_faults_planned_with_numbers_that_make_no_sense(sandbox: Sandbox, settings: dict[str, Any]) -> None:
    """A plan that could never be carried out is refused, and nothing is planned."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        sandbox.fail_next(503, **settings)
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as flora:
        assert await flora.models.list()


@pytest.mark.virtual_time
async def test_a_rate_limit() -> None:
    """Each key may send a second's worth at once and so many a second; more is a 429 with the time until the next."""
    async with Sandbox(time_scale=0.01, rate_limit=5, any_key=True) as sandbox, aiohttp.ClientSession() as http:

        async def status(key: str = "sk_1") -> tuple[int, float]:
            headers = {"Authorization": f"Bearer {key}"}
            async with http.get(f"{sandbox.base_url}/models", headers=headers) as answer:
                return answer.status, float(answer.headers.get("Retry-After", 0))

        assert [await status() for _ in range(5)] == [(200, 0.0)] * 5
        assert await status() == (429, 0.2)
        assert (await status("sk_2"))[0] == 200
        await asyncio.sleep(0.2)
        assert (await status())[0] == 200
        assert (await status())[0] == 429
        await asyncio.sleep(60)
        assert [(await status())[0] for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.virtual_time
@pytest.mark.parametrize(("orders", "seconds"), [(40, 3), (300, 29)])
async def test_the_client_under_a_rate_limit(orders: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of orders far beyond the limit loses none with the default retries, and the limit holds."""
    monkeypatch.undo()  # with quick pauses and a floor of a thousand requests a second nothing holds a limit
    async with (
        Sandbox(time_scale=0.01, rate_limit=10) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
    ):
        began = asyncio.get_running_loop().time()
        _runs = await asyncio.gather(*(flora.generate(**ORDER, timeout=None) for _ in range(orders)))
        assert all(run.succeeded for run in _runs)
        assert sandbox.accepted == orders
        assert asyncio.get_running_loop().time() - began >= seconds
