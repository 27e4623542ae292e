"""Arguments that cannot be used are refused before anything is paid; after that every error knows its run."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from collections.abc import Callable as Function
from functools import partial
from typing import Any

import backoff
import msgspec
import pytest
from scripted import Scripted, answer, hang_up, run, silence, started

from flora_async import ConfigurationError, Flora, Order, ResponseDecodeError, StartedRun
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

ORDER = Order(type="text", prompt="a mug", workspace_id="ws_1", project_id="prj_1")


class Left(msgspec.Struct):
    """One of two types that msgspec cannot tell apart."""

    a: int


class Right(msgspec.Struct):
    """The other one."""

    b: int


class Callable:
    """An object whose call is a coroutine function."""

    async def __call__(self, *_: object) -> None:
        """Do nothing."""


async def coroutine_function(*_: object) -> None:
    """Do nothing, when awaited."""


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox with quick runs."""
    async with Sandbox(time_scale=0.01) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Return a client of the sandbox."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as client:
        yield client


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_update": coroutine_function},
        {"on_update": partial(coroutine_function, 1)},
        {"on_update": Callable()},
        {"on_update": ["not", "callable"]},
        {"poll": 2},
        {"poll": lambda: 2},
        {"poll": lambda: iter(())},
        {"poll": lambda: iter((None, "soon"))},
        {"poll": lambda: backoff.constant(interval=-1)},
        {"poll": lambda: iter((None, float("nan")))},
        {"timeout": 0},
        {"timeout": float("nan")},
    ],
)
async def test_generate_checks_everything_first(sandbox: Sandbox, flora: Flora, wrong: dict[str, Any]) -> None:
    """The error says that nothing was sent, and nothing was."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        await flora.generate(ORDER, **wrong)
    assert sandbox.accepted == 0


@pytest.mark.parametrize("function", [coroutine_function, partial(coroutine_function, 1), Callable(), "journal"])
def test_on_create_is_a_plain_function(function: Any) -> None:
    """A coroutine function would record nothing."""
    with pytest.raises(ConfigurationError, match="on_create must be a"):
        Flora("sk_1", on_create=function)


async def test_on_create_that_returns_a_coroutine(sandbox: Sandbox) -> None:
    """A function that wraps a coroutine function has recorded nothing either: the order is not sent."""
    wrapped: Any = lambda *about: coroutine_function(*about)  # noqa: E731
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, on_create=wrapped) as flora:
        with pytest.raises(ConfigurationError, match="on_create returned a coroutine"):
            await flora.generations.create(ORDER)
    assert sandbox.accepted == 0


async def test_a_clients_own_schedule_is_tried_first(sandbox: Sandbox) -> None:
    """A bad one is refused by generate and generate_many alike."""
    bad: Any = lambda: iter(())  # noqa: E731
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, poll=bad) as flora:
        with pytest.raises(ConfigurationError, match="poll"):
            await flora.generate(ORDER)
        with pytest.raises(ConfigurationError, match="poll"):
            flora.generate_many([ORDER])
    assert sandbox.accepted == 0


@pytest.mark.virtual_time
async def test_an_exception_of_on_update_names_the_run(sandbox: Sandbox, flora: Flora) -> None:
    """The run is paid for: a note says which it is."""

    def fail(_run: object) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        await flora.generate(ORDER, on_update=fail)
    ((run_id, _),) = sandbox.orders.items()
    assert any(run_id in note for note in caught.value.__notes__)


async def test_a_cancelled_generate_names_the_run(sandbox: Sandbox, flora: Flora) -> None:
    """By a note on the exception, also through a timeout."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(1):
            await flora.generate(type="text", prompt="[slow]", workspace_id="ws_1", project_id="prj_1")
    ((run_id, _),) = sandbox.orders.items()
    assert caught.value.__cause__ is not None
    assert any(run_id in note for note in caught.value.__cause__.__notes__)


async def test_a_cancelled_create_names_its_key() -> None:
    """It may have been accepted."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("POST", "/generate", silence)
        creating = asyncio.ensure_future(flora.generations.create(ORDER, idempotency_key="key-1"))
        while not server.asked:
            await asyncio.sleep(0.001)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await creating
        assert any("key-1" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("kind", [Left | Right, "not a type", 5])
async def test_decode_as_is_checked_first(kind: Any) -> None:
    """What msgspec cannot decode into is refused, and the request is not sent."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("POST", "/techniques/tech_1/runs", answer({"a": 1}))
        with pytest.raises(ConfigurationError, match="decode_as"):
            await flora.request("POST", "/techniques/tech_1/runs", decode_as=kind)
        assert not server.asked


async def test_a_raw_post_that_is_not_understood_names_its_run() -> None:
    """The response has the run id, whatever else is wrong with it."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("POST", "/techniques/tech_1/runs", answer({"run_id": "run_1"}, 201))
        with pytest.raises(ResponseDecodeError) as caught:
            await flora.request("POST", "/techniques/tech_1/runs", decode_as=Left)
        assert caught.value.run_id == "run_1"


@pytest.mark.parametrize(("method", "body"), [("POST", b"{}"), ("GET", b""), ("DELETE", b"")])
async def test_a_raw_post_has_a_body(method: str, body: bytes) -> None:
    """Several operations refuse a POST without one; other methods need none."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on(method, "/assets/asset_1/complete", answer({}))
        await flora.request(method, "/assets/asset_1/complete")
        assert server.asked[0].body == body


async def test_a_raw_post_under_a_key_waits_as_a_create_does(change_policies: Function[..., None]) -> None:
    """Two requests under one key at once may both execute."""
    change_policies(retry={"resend_pause": 0.3, "first_delay": 0.001})
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("POST", "/techniques/tech_1/runs", hang_up, answer({}))
        began = asyncio.get_running_loop().time()
        await flora.request("POST", "/techniques/tech_1/runs", idempotency_key="key-1")
        assert asyncio.get_running_loop().time() - began >= 0.3


@pytest.mark.virtual_time
async def test_a_started_run_carries_its_origin() -> None:
    """It outlives pickling, holds no prompt, and is never read from a response."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        forged = started(origin={"type": 5}, recovered=True)
        server.on("POST", "/generate", answer(forged, 201))
        server.on("GET", "/runs/run_abc123", answer(run(charged_cost=0.04)))
        begun = await flora.generations.create(ORDER)
        assert begun.origin is not None
        assert (begun.origin.type, begun.origin.workspace_id, begun.recovered) == ("text", "ws_1", False)
        assert "a mug" not in repr(begun)
        revived: StartedRun = pickle.loads(pickle.dumps(begun))
        assert revived == begun
        assert (await flora.wait_for_run(revived)).succeeded
        assert not flora._awaited
