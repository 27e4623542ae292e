"""Techniques and actions: declared inputs, the route with a webhook, lost responses, and batches of all kinds."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import backoff
import msgspec
import pytest
from scripted import DUPLICATE, RUN_ID, Scripted, answer, error, hang_up, run, started
from test_single_response import fails

from flora_async import (
    ActionOrder,
    AnyOrder,
    ConfigurationError,
    CreateOutcomeUnknownError,
    Flora,
    IdempotencyConflictError,
    InternalServerError,
    NotFoundError,
    Order,
    ResponseDecodeError,
    TechniqueOrder,
)
from flora_async._resources import declarations
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

TECHNIQUE: dict[str, Any] = {
    "technique_id": "tech_1",
    "name": "Poster",
    "run_cost": 0.1,
    "inputs": [
        {"id": "subject", "name": "Subject", "type": "text"},
        {"id": "photos", "name": "Photos", "type": "imageUrl", "optional": True, "allow_multiple": True},
        {"id": "face", "name": "Face", "type": "imageUrl", "optional": True, "accepts_element": True},
    ],
    "outputs": [],
}
ACTION: dict[str, Any] = {
    "action_id": "stitch-videos",
    "name": "Stitch",
    "description": "d",
    "charged_cost": 0,
    "language": "python",
    "inputs": [{"name": "videos", "type": "video", "multiple": {"min": 2, "max": 3}}],
    "outputs": [],
    "params": [
        {"key": "transition", "type": "select", "available_values": [{"label": "No", "value": "none"}]},
        {"key": "seconds", "type": "number", "min_number_value": 0, "max_number_value": 2},
    ],
}
ORDER = TechniqueOrder(technique_id="tech_1", inputs={"subject": "a mug"}, workspace_id="ws_1")
VIDEO = {"type": "video", "url": "https://a.example/a.mp4"}
ACT = ActionOrder(action_id="stitch-videos", inputs=[VIDEO, VIDEO], workspace_id="ws_1", project_id="prj_1")
PLACE: dict[str, Any] = {"workspace_id": "ws_1", "project_id": "prj_1"}


@pytest.fixture(autouse=True)
def quick(change_policies: Callable[..., None], fast_retries: None) -> None:
    """Make pauses short."""
    change_policies(recovery={"pauses": (0.01, 0.01)})


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA that declares one technique and one action."""
    async with Scripted() as scripted:
        scripted.on("GET", "/techniques/tech_1", answer(TECHNIQUE))
        scripted.on("GET", "/actions/stitch-videos", answer(ACTION))
        yield scripted


@pytest.fixture
async def flora(server: Scripted) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora("any", base_url=server.base_url) as client:
        yield client


def technique_row(run_id: str = RUN_ID, **more: object) -> dict[str, object]:
    """Give an item of the history of techniques, begun now."""
    return {
        **run("pending", run_id, created_at=time.time()),
        "technique_run_id": run_id,
        "technique": {"technique_id": "tech_1", "name": "Poster"},
        "workspace_id": "ws_1",
        "project_id": "prj_9",
        **more,
    }


def technique_runs(*rows: dict[str, object]) -> Any:
    """Answer with this history of techniques, on one page."""
    return answer({"technique_runs": list(rows), "meta": {"next_cursor": None}})


WRONG_INPUTS: dict[str, dict[str, Any]] = {
    "subject is required": {},
    "colour is not declared; the inputs are subject, photos, face": {"subject": "a", "colour": "red"},
    "subject must be a str": {"subject": 7},
    "subject must not be None: leave": {"subject": None},
    "subject must not be empty": {"subject": ""},
    "subject takes one value, not a list": {"subject": ["a", "b"]},
    "photos must be a URL of type imageUrl": {"subject": "a", "photos": ["https://a.example/a.png", "a.png"]},
    "photos must not be an empty list": {"subject": "a", "photos": []},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
async def test_inputs_that_a_technique_does_not_declare(server: Scripted, flora: Flora, message: str) -> None:
    """They are refused before anything is sent, and the message names the input."""
    call = flora.techniques.run(technique_id="tech_1", inputs=WRONG_INPUTS[message], workspace_id="ws_1")
    failure = await fails(call)
    assert isinstance(failure, ConfigurationError)
    assert message in str(failure)
    assert server.count("POST", "/runs/technique") == 0


WRONG_ACTIONS: dict[str, dict[str, Any]] = {
    "must have 2 to 3 of type video, not 1": {"inputs": [VIDEO]},
    "image is not declared": {"inputs": [VIDEO, VIDEO, {"type": "image", "url": "https://a.example/a.png"}]},
    "inputs[0].name must be one of videos": {"inputs": [{**VIDEO, "name": "x"}, VIDEO]},
    "params.speed is not a parameter": {"params": {"speed": 1}},
    "params.transition must be one of none": {"params": {"transition": "wipe"}},
    "params.seconds must be at most 2": {"params": {"seconds": 3}},
    "params.seconds must be a number": {"params": {"seconds": "3"}},
    "inputs must be a list of at least one object": {"inputs": []},
    "inputs must be a list of at least one": {"inputs": 5},
    "inputs[0] must have a type": {"inputs": [{"url": "https://a.example/a.png"}]},
}


@pytest.mark.parametrize("message", WRONG_ACTIONS)
async def test_orders_that_an_action_does_not_declare(server: Scripted, flora: Flora, message: str) -> None:
    """Inputs are counted by their types, and parameters compared with their values and bounds."""
    failure = await fails(flora.start_run(msgspec.structs.replace(ACT, **WRONG_ACTIONS[message])))
    assert isinstance(failure, ConfigurationError)
    assert message in str(failure)
    assert server.count("POST", "/runs/action") == 0


async def test_values_that_are_allowed(server: Scripted, flora: Flora) -> None:
    """Lists where several values are accepted, and ids of elements where a URL would be."""
    inputs = {"subject": "a", "photos": ["https://a.example/1.png", "https://a.example/2.png"], "face": "element_1"}
    server.on("POST", "/runs/technique", answer(started(type="technique"), 201))
    assert (await flora.techniques.run(technique_id="tech_1", inputs=inputs, workspace_id="ws_1")).run_id == RUN_ID


async def test_a_declaration_is_read_once(server: Scripted, flora: Flora, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a hundred tasks at once; again after its lifetime, and before an order is refused for an old one."""
    server.on("POST", "/runs/technique", *(answer(started(f"run_{n}", type="technique")) for n in range(200)))
    await asyncio.gather(*(flora.start_run(ORDER) for _ in range(100)))
    assert server.count("GET", "/techniques/tech_1") == 1
    changed = {**TECHNIQUE, "inputs": [*TECHNIQUE["inputs"], {"id": "new", "name": "New", "type": "text"}]}
    server.on("GET", "/techniques/tech_1", answer(changed))
    await flora.techniques.run(technique_id="tech_1", inputs={"subject": "a", "new": "b"}, workspace_id="ws_1")
    assert server.count("GET", "/techniques/tech_1") == 2
    monkeypatch.setattr(declarations, "DECLARATION_LIFETIME", 0.0)
    assert isinstance(await fails(flora.start_run(ORDER)), ConfigurationError)
    assert server.count("GET", "/techniques/tech_1") == 3


async def test_few_declarations_are_kept(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is dropped, and read again."""
    monkeypatch.setattr(declarations, "MAX_DECLARATIONS", 1)
    server.on("GET", "/techniques/tech_2", answer({**TECHNIQUE, "technique_id": "tech_2"}))
    server.on("POST", "/runs/technique", *(answer(started(f"run_{n}", type="technique")) for n in range(3)))
    async with Flora("any", base_url=server.base_url) as flora:
        for technique_id in ("tech_1", "tech_2", "tech_1"):
            await flora.start_run(msgspec.structs.replace(ORDER, technique_id=technique_id))
    assert server.count("GET", "/techniques/tech_1") == 2


async def test_a_declaration_that_cannot_be_read(server: Scripted, flora: Flora) -> None:
    """Nothing is sent, and no error says that something may have been; the next call reads it again."""
    server.on("GET", "/techniques/tech_1", error(503), error(503), error(503), error(404), answer(TECHNIQUE))
    server.on("POST", "/runs/technique", answer(started(type="technique")))
    failure = await fails(flora.start_run(ORDER))
    assert isinstance(failure, InternalServerError)
    assert not failure.outcome_unknown
    assert isinstance(await fails(flora.start_run(ORDER)), NotFoundError)
    assert server.count("POST", "/runs/technique") == 0
    assert (await flora.start_run(ORDER)).run_id == RUN_ID


async def test_an_odd_declaration_refuses_no_order(
    server: Scripted, flora: Flora, caplog: pytest.LogCaptureFixture
) -> None:
    """An order whose declaration cannot be decoded is sent unchecked; with a webhook, its request needs the types."""
    server.on("GET", "/techniques/tech_1", answer({**TECHNIQUE, "run_cost": "0.1"}))
    server.on("GET", "/actions/stitch-videos", answer({**ACTION, "params": None}))
    server.on("POST", "/runs/technique", answer(started("run_1", type="technique"), 201))
    server.on("POST", "/runs/action", answer(started("run_2", type="action"), 201))
    assert (await flora.start_run(ORDER)).run_id == "run_1"
    assert (await flora.start_run(ACT)).run_id == "run_2"
    assert caplog.text.count("its inputs are not checked") == 2
    with_webhook = msgspec.structs.replace(ORDER, callback_url="https://a.example/hook")
    assert isinstance(await fails(flora.start_run(with_webhook)), ResponseDecodeError)
    assert server.count("POST", "/techniques/tech_1/runs") == 0


@pytest.mark.parametrize("given", [{"type": "video", "url": None}, {"type": None, "url": "https://a.example/a.mp4"}])
async def test_an_input_of_an_action_without_a_value(server: Scripted, flora: Flora, given: dict[str, Any]) -> None:
    """A field that is None counts as missing, as in other languages."""
    order = msgspec.structs.replace(ACT, inputs=[VIDEO, given])
    with pytest.raises(ConfigurationError, match="must have a type, and a url or a text"):
        await flora.start_run(order)
    assert not server.asked


async def test_an_action_that_is_not_listed_any_more(server: Scripted, flora: Flora) -> None:
    """FLORA decides on it: older actions still run."""
    server.on("POST", "/runs/action", answer(started(type="action"), 201))
    assert (await flora.start_run(msgspec.structs.replace(ACT, action_id="an-old-one"))).run_id == RUN_ID


async def test_a_cancelled_reader_does_not_stop_the_others(server: Scripted, flora: Flora) -> None:
    """The declaration is read by the next task."""

    async def slow(request: Any) -> Any:
        await asyncio.sleep(0.05)
        return await answer(TECHNIQUE)(request)

    server.on("GET", "/techniques/tech_1", slow)
    server.on("POST", "/runs/technique", answer(started(type="technique")))
    first = asyncio.create_task(flora.start_run(ORDER))
    second = asyncio.create_task(flora.start_run(ORDER))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).run_id == RUN_ID
    assert first.cancelled()


async def test_a_technique_with_a_webhook(server: Scripted, flora: Flora) -> None:
    """It takes the other route: inputs with their types, the key in the body, and its run at its own URL."""
    nested = "/techniques/tech_1/runs"
    server.on("POST", nested, answer(run("pending")))
    server.on("GET", f"{nested}/{RUN_ID}", answer(run("completed")))
    order = msgspec.structs.replace(
        ORDER, inputs={"subject": "a", "photos": "https://a.example/a.png"}, callback_url="https://example.com/flora"
    )
    finished = await flora.generate(
        order, idempotency_key="key-1", timeout=10, poll=lambda: backoff.constant(interval=[0.01] * 500)
    )
    assert finished.succeeded
    (sent,) = [asked for asked in server.asked if asked.method == "POST"]
    assert msgspec.json.decode(sent.body) == {
        "inputs": [
            {"id": "subject", "type": "text", "value": "a"},
            {"id": "photos", "type": "imageUrl", "value": "https://a.example/a.png"},
        ],
        "mode": "async",
        "callback_url": "https://example.com/flora",
        "idempotency_key": "key-1",
    }


async def test_a_lost_response_of_a_technique(server: Scripted, flora: Flora) -> None:
    """Its run is found in the history of techniques; rows of other techniques and workspaces are none."""
    others = [
        technique_row("run_x", technique={"technique_id": "tech_2", "name": "Another"}),
        technique_row("run_y", workspace_id="ws_2"),
    ]
    server.on("POST", "/runs/technique", hang_up, DUPLICATE)
    server.on("GET", "/technique-runs", technique_runs(technique_row(), *others))
    found = await flora.start_run(ORDER)
    assert (found.run_id, found.type, found.recovered) == (RUN_ID, "technique", True)
    assert found.technique is not None
    assert {asked.headers["Idempotency-Key"] for asked in server.asked if asked.method == "POST"} != set()
    queries = [asked.query for asked in server.asked if asked.path == "/technique-runs"]
    assert queries[0] == {"limit": "100", "technique_id": "tech_1", "workspace_id": "ws_1"}


async def test_a_lost_response_of_an_action(server: Scripted, flora: Flora) -> None:
    """FLORA has no history of actions: the error has the order, and the same key finds or repeats the run."""
    server.on("POST", "/runs/action", hang_up)
    failure = await fails(flora.start_run(ACT))
    assert isinstance(failure, CreateOutcomeUnknownError)
    assert not failure.accepted
    assert str(failure).startswith("unknown whether the action create was accepted")
    revived: CreateOutcomeUnknownError = pickle.loads(pickle.dumps(failure))
    assert revived.order == ACT
    server.on("GET", "/generations", answer({"generations": [], "meta": {}}, headers={"Date": _now()}))
    server.on("POST", "/runs/action", answer(started(type="action"), 201))
    assert (await flora.recover_create(revived)).run_id == RUN_ID
    keys = {asked.headers["Idempotency-Key"] for asked in server.asked if asked.method == "POST"}
    assert keys == {failure.idempotency_key}


async def test_a_recovery_that_cannot_read_the_declaration(server: Scripted) -> None:
    """The order is not sent again, and its outcome stays unknown: a declaration says nothing about the run."""
    nested = "/techniques/tech_1/runs"
    server.on("POST", nested, hang_up)
    server.on("GET", "/technique-runs", answer({"technique_runs": [], "meta": {}}, headers={"Date": _now()}))
    order = msgspec.structs.replace(ORDER, callback_url="https://example.com/flora")
    async with Flora("any", base_url=server.base_url) as flora:
        unknown = await fails(flora.start_run(order))
    assert isinstance(unknown, CreateOutcomeUnknownError)
    server.on("GET", "/techniques/tech_1", error(404))
    sent = server.count("POST", nested)
    async with Flora("any", base_url=server.base_url) as another:
        assert isinstance(await fails(another.recover_create(unknown)), CreateOutcomeUnknownError)
    assert server.count("POST", nested) == sent


async def test_an_action_whose_key_was_used(server: Scripted, flora: Flora) -> None:
    """The run exists and is not listed anywhere: the error says that it was accepted."""
    server.on("POST", "/runs/action", DUPLICATE)
    conflict = await fails(flora.start_run(ACT, idempotency_key="mine"))
    assert isinstance(conflict, IdempotencyConflictError)
    server.on("GET", "/generations", answer({"generations": [], "meta": {}}, headers={"Date": _now()}))
    unknown = await fails(flora.recover_create(conflict))
    assert isinstance(unknown, CreateOutcomeUnknownError)
    assert (unknown.accepted, unknown.candidates) == (True, ())


def _now() -> str:
    from email.utils import formatdate

    return formatdate(usegmt=True)


async def test_an_order_of_another_kind_in_the_wrong_place(flora: Flora, server: Scripted) -> None:
    """The error names the method that takes it."""
    with pytest.raises(ConfigurationError, match=r"flora\.start_run\(order\)"):
        await flora.generations.create(ORDER)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="TechniqueOrder has its fields already"):
        await flora.generate(ORDER, prompt="x")  # type: ignore[call-overload]
    assert server.asked == []


def mixed(count: int) -> list[AnyOrder]:
    """Return orders of all three kinds for the sandbox, by turns."""
    orders: list[AnyOrder] = []
    for number in range(count):
        words = f"order {number}"
        orders.append(
            (
                Order(type="text", prompt=words, **PLACE),
                TechniqueOrder(technique_id="tech_poster", inputs={"subject": words}, workspace_id="ws_1"),
                ActionOrder(action_id="concat-text", inputs=[{"type": "text", "text": words}], **PLACE),
            )[number % 3]
        )
    return orders


@pytest.mark.virtual_time
@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.proof)])
async def test_orders_of_all_kinds_at_once(count: int) -> None:
    """generate_many yields each outcome once, with the caller's own order."""
    orders = mixed(count)
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        outcomes = [outcome async for outcome in flora.generate_many(orders, max_cost=100)]
        assert sorted(map(id, (outcome.order for outcome in outcomes))) == sorted(map(id, orders))
        assert all(outcome.error is None for outcome in outcomes)
        assert sandbox.accepted == count
        assert sandbox.requests["GET /techniques"] == 1


async def test_watching_techniques_reads_no_page_of_generations(server: Scripted, flora: Flora) -> None:
    """The history of generations does not list them: each is polled at its own URL."""
    server.on("POST", "/runs/technique", *(answer(started(f"run_{n}", type="technique")) for n in range(5)))
    for number in range(5):
        server.on("GET", f"/runs/run_{number}", answer(run("completed", f"run_{number}")))
    runs = [await flora.start_run(ORDER) for _ in range(5)]
    assert [outcome.error async for outcome in flora.as_completed(runs, timeout=20)] == [None] * 5
    assert server.count("GET", "/generations") == 0
