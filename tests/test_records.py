"""Records as plain data: ``to_dict`` for JSON, and FastAPI routes that return and take them."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI
from msgspec import structs

from flora_async import (
    CompletedOutcome,
    FailedOutcome,
    FloraError,
    Generation,
    GenerationPage,
    Model,
    ModelRef,
    Order,
    Output,
    PageMeta,
    RateLimited,
    RateLimitError,
    Response,
    Run,
    RunFailedError,
    StartedRun,
    models,
)
from flora_async.export import ExportResult
from flora_async.webhooks import WebhookData, WebhookEvent

OUTPUT = Output(output_id="output_1", type="imageUrl", url="https://media.flora.ai/1.png")
RUN = Run(run_id="run_1", status="completed", progress=100, created_at=1, outputs=(OUTPUT,))
PENDING = Run(run_id="run_2", status="pending", progress=0, created_at=1)
PLACED = Generation(
    **structs.asdict(RUN), generation_id="run_1", project_id="prj_1", workspace_id="ws_1", model=ModelRef(model_id="m")
)
ORDER = Order(type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1", params={"seed": 7})
RECORDS = [
    RUN,
    PENDING,
    PLACED,
    ORDER,
    StartedRun(run_id="run_1", type="generation", charged_cost=0.04, recovered=True),
    GenerationPage(generations=(PLACED,), meta=PageMeta(next_cursor="c")),
    Model(model_id="m", name="M", type="image", capabilities=("a",)),
    WebhookEvent(id="whd_1", type="run.completed", created_at=1, data=WebhookData(run_id="run_1", status="completed")),
    WebhookEvent(id="whd_2", type="ping", created_at=1, data={"a": [1]}),
    Response(data=RUN, status=200, headers={"a": "b"}, request_id=None),
    RateLimited(path="/generate", retry_after=2.5, pause=2.5),
    ExportResult(path=Path("h.jsonl"), rows=2, broken=0),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_plain_json(record: Any) -> None:
    """Every field is in the dict by its name, whatever its value, and json.dumps takes it as it is."""
    plain = record.to_dict()
    assert list(plain) == list(record.__struct_fields__)
    assert json.loads(json.dumps(plain)) == plain


def test_nested_records_are_whole_dicts() -> None:
    """Outputs, models and pages within a record have all of their fields too."""
    assert PLACED.to_dict()["outputs"] == [{"output_id": "output_1", "type": "imageUrl", "url": OUTPUT.url}]
    page = GenerationPage(generations=(PLACED,), meta=PageMeta()).to_dict()
    assert page["generations"] == [PLACED.to_dict()]
    assert page["meta"] == {"next_cursor": None, "total_estimate": None}
    assert PENDING.to_dict()["outputs"] == []
    assert PENDING.to_dict()["recovered"] is False


def test_every_record_has_it() -> None:
    """There is no public record without ``to_dict``."""
    records = [kind for kind in vars(models).values() if isinstance(kind, type) and hasattr(kind, "__struct_fields__")]
    assert len(records) > 15
    assert all(hasattr(kind, "to_dict") for kind in records if kind.__module__ == "flora_async.models")


def test_outcomes_are_plain_json() -> None:
    """Both kinds of outcome have the same keys: the order, the run or its error, and the id of the run."""
    completed = CompletedOutcome(order=ORDER, run=RUN).to_dict()
    assert completed == {
        "order": ORDER.to_dict(),
        "run_id": "run_1",
        "run": RUN.to_dict(),
        "error": None,
        "attempts": [],
    }
    gone = Run(run_id="run_3", status="failed", progress=0, created_at=1, error_code="safety_blocked")
    failed = FailedOutcome(order=None, error=RunFailedError(gone), run_id="run_3").to_dict()
    assert failed.keys() == completed.keys()
    assert (failed["order"], failed["run"], failed["run_id"]) == (None, None, "run_3")
    assert (failed["error"]["type"], failed["error"]["code"]) == ("RunFailedError", "safety_blocked")
    assert all(json.loads(json.dumps(plain)) == plain for plain in (completed, failed))


def test_errors_are_plain_json() -> None:
    """Every error has the same keys, and what it lacks is None."""
    limited = RateLimitError("Slow down", status=429, code="rate_limited", request_id="req_1").to_dict()
    assert (limited["status"], limited["code"], limited["request_id"]) == (429, "rate_limited", "req_1")
    other = FloraError("some trouble").to_dict()
    assert other["message"] == "some trouble"
    assert other.keys() == limited.keys()
    assert json.loads(json.dumps([limited, other])) == [limited, other]


def test_an_order_of_odd_values_is_plain_json() -> None:
    """An order that create takes has a dict: subclasses of str, numbers and mappings are what they mean."""

    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    odd = Order(
        type="text",
        prompt=Text("a haiku"),
        workspace_id="ws_1",
        project_id="prj_1",
        params=MappingProxyType({"a": Number(3), Text("b"): MappingProxyType({"c": Text("d")})}),
    )
    plain = odd.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["prompt"] == "a haiku"
    assert plain["params"] == {"a": 3, "b": {"c": "d"}}


def test_an_order_survives_a_round_trip() -> None:
    """An Order that was stored as a dict is made again by its fields."""
    assert Order(**ORDER.to_dict()) == ORDER


app = FastAPI()


@app.get("/dict")
async def show() -> dict[str, Any]:
    """Return a run as plain data."""
    return RUN.to_dict()


@app.get("/run")
async def show_run() -> Run:
    """Return a run whose record is the response model."""
    return RUN


@app.post("/orders")
async def take(order: Annotated[Order, Body()]) -> list[Order]:
    """Take an order as the body."""
    return [order]


async def ask(method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    """Send a request to the application, without a socket."""
    sent: list[dict[str, Any]] = []
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "server": ("test", 80),
        "client": ("test", 1),
        "scheme": "http",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.anyio
async def test_fastapi_returns_records() -> None:
    """A route returns to_dict(), or declares the record as its response model."""
    assert await ask("GET", "/dict") == (200, RUN.to_dict())
    assert await ask("GET", "/run") == (200, RUN.to_dict())


@pytest.mark.anyio
async def test_fastapi_takes_an_order() -> None:
    """An order is a body; one that is none is a 422 and not a 500."""
    assert await ask("POST", "/orders", json.dumps(ORDER.to_dict()).encode()) == (200, [ORDER.to_dict()])
    status, told = await ask("POST", "/orders", b'{"type": "image", "prompt": 7}')
    assert status == 422
    assert "prompt" in json.dumps(told)


@pytest.mark.anyio
async def test_fastapi_describes_records() -> None:
    """The schema of the application names the fields of a run."""
    _, schema = await ask("GET", "/openapi.json")
    described = schema["paths"]["/run"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"run_id", "status", "outputs"} <= described["properties"].keys()
