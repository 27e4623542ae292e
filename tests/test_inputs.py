"""Arguments of other types than FLORA's own: sent as what they mean, or refused by an error that names their place."""

import asyncio
import inspect
import io
import json
import math
import pickle
import sys
import uuid
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from raw import Raw, http, say
from scripted import run

from flora_async import (
    AnyOrder,
    ClientClosedError,
    CompletedOutcome,
    ConfigurationError,
    FailedOutcome,
    Flora,
    NotFoundError,
    Order,
    Run,
    RunFailedError,
    StartedRun,
)
from flora_async._http.requests import create_request, custom_request
from flora_async._http.urls import parse_base_url
from flora_async._validation import check_count, check_flag, check_limit, check_seconds, check_usd, encode
from flora_async.export import record_batches
from flora_async.sandbox import Sandbox

FLORA = parse_base_url("https://app.flora.ai/api/v1")
PLACE: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": "prj_demo"}
COMPLETED = Run(run_id="run_1", status="completed", progress=100, created_at=0)


class Text(str):
    """A str of somebody's own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not what it holds"


class Kind(StrEnum):
    """Kinds, as a service may list them."""

    IMAGE = "image"


class OldKind(str, Enum):  # noqa: UP042
    """Kinds, as they were listed before StrEnum."""

    IMAGE = "image"


class Plain(Enum):
    """An enum that is no str."""

    IMAGE = "image"


class Size(IntEnum):
    """Numbers with names."""

    LARGE = 1024


@dataclass
class Point:
    """A record that JSON does not know."""

    x: int


Pair = namedtuple("Pair", "a b")  # noqa: PYI024


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Serve a FLORA whose runs end at once."""
    async with Sandbox(time_scale=0.01) as served:
        yield served


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Connect a client to it."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as client:
        yield client


def sent(params: object) -> Any:
    """Return the params that FLORA would read."""
    order = Order(type="image", prompt="a mug", params=params, **PLACE)  # type: ignore[arg-type]
    body = create_request(FLORA, order, "key").body
    return json.loads(body or b"")["params"]


def refusal(params: object) -> str:
    """Return the message by which params are refused."""
    with pytest.raises(ConfigurationError) as caught:
        sent(params)
    return str(caught.value)


# -- params


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (Text("bold"), "bold"),
        (np.str_("bold"), "bold"),
        (Markup("<b>"), "<b>"),
        (Kind.IMAGE, "image"),
        (OldKind.IMAGE, "image"),
        (Plain.IMAGE, "image"),
        (Size.LARGE, 1024),
        (np.int64(7), 7),
        (np.uint8(255), 255),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.array(3), 3),
        ((1, 2), [1, 2]),
        (Pair(1, "x"), [1, "x"]),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict(a=UserDict(b=1)), {"a": {"b": 1}}),
        (MappingProxyType({"a": [MappingProxyType({"b": np.int8(1)})]}), {"a": [{"b": 1}]}),
        ({Kind.IMAGE: 1, Text("t"): 2, np.str_("n"): 3}, {"image": 1, "t": 2, "n": 3}),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        ("ünïcode \U0001f600", "ünïcode \U0001f600"),
        ([], []),
        ({}, {}),
    ],
)
def test_values_are_sent_as_they_are_meant(value: object, meant: object) -> None:
    """Subclasses, enums, mappings and numpy scalars become JSON's own types, at any depth."""
    assert sent({"x": value}) == {"x": meant}
    assert sent({"x": [{"y": value}]}) == {"x": [{"y": meant}]}
    assert type(sent({"x": value})["x"]) is type(meant)


@pytest.mark.parametrize("value", [np.bool_(True), True])
def test_a_bool_stays_a_bool(value: object) -> None:
    """A numpy bool is no number."""
    assert sent({"x": value})["x"] is True


def test_any_mapping_is_params() -> None:
    """Params need not be a dict."""
    for params in (UserDict(a=1), MappingProxyType({"a": 1}), OrderedDict(a=1)):
        assert sent(params) == {"a": 1}


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (b"\x89PNG", "Upload"),
        (bytearray(b"x"), "Upload"),
        (memoryview(b"x"), "Upload"),
        (np.bytes_(b"x"), "Upload"),
        (Path("mug.png"), "Upload"),
        (io.BytesIO(b"x"), "Upload"),
        (np.zeros((2, 2)), "tolist"),
        (np.array([1]), "tolist"),
        (Decimal("0.5"), "float"),
        (Fraction(1, 3), "float"),
        (1j, "real"),
        ({1, 2}, "list"),
        (frozenset({1}), "list"),
        (deque([1]), "list"),
        (range(3), "list"),
        ((n for n in "ab"), "list"),
        ({"a": 1}.keys(), "list"),
        (datetime(2026, 1, 1, tzinfo=UTC), "isoformat"),
        (date(2026, 1, 1), "isoformat"),
        (np.datetime64("2026-01-01"), "str"),
        (timedelta(seconds=1), "total_seconds"),
        (uuid.UUID(int=1), "str"),
        (Point(1), "asdict"),
        (Run(run_id="run_1", status="completed", progress=1, created_at=1), "to_dict"),
        (object(), "dict"),
        (math.nan, "finite"),
        (np.float32("inf"), "finite"),
        (2**64, "text"),
        (-(2**63) - 1, "text"),
        ("half \udcff", "surrogate"),
        ({1: "a"}, "'1'"),
        ({None: "a"}, "'None'"),
        ({("a", "b"): 1}, "text"),
    ],
)
def test_values_of_other_types_are_refused_with_their_place(value: object, fix: str) -> None:
    """What JSON has no type for is not billed as a guess: the error names the place and the fix."""
    message = refusal({"image": value})
    assert message.startswith("params['image'] ")
    assert fix in message
    assert refusal({"a": [{}, (value,)]}).startswith("params['a'][1][0] ")
    with pytest.raises(ConfigurationError, match=r"^json\['x'\] "):
        encode("json", {"x": value})


@pytest.mark.parametrize(
    ("params", "word"),
    [([1], "dict"), ('{"seed": 7}', "json.loads"), (b"{}", "dict"), (7, "dict"), (Point(1), "asdict")],
)
def test_params_that_are_no_mapping(params: object, word: str) -> None:
    """A list, or JSON that was encoded before, is refused, and the fix is named."""
    assert word in refusal(params)


def test_structures_without_an_end() -> None:
    """A structure that contains itself is refused with the way into it."""
    endless: dict[str, Any] = {}
    endless["self"] = [endless]
    assert refusal(endless).startswith("params['self'][0]['self']...")
    assert "contains itself" in refusal(endless)
    deep: object = 1
    for _ in range(90):
        deep = [deep]
    assert sent({"x": deep})


def test_params_near_the_end_of_the_stack() -> None:
    """Params that are walked from deep within a program, with too few frames left, are refused like others."""
    deep: object = 1
    for _ in range(95):
        deep = [deep]

    def dive(levels: int) -> str:
        return refusal({"x": deep}) if levels == 0 else dive(levels - 1)

    assert "too deep" in dive(sys.getrecursionlimit() - len(inspect.stack()) - 100)


def test_what_is_sent_is_a_snapshot() -> None:
    """Params that change after the call do not change a retry."""
    params = {"a": [1]}
    request = create_request(FLORA, Order(type="image", prompt="x", params=params, **PLACE), "key")
    params["a"].append(2)
    assert isinstance(request.order, Order)
    assert request.order.params == {"a": [1]}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.dates()
VALUES = st.recursive(
    LEAVES | st.sampled_from([Kind.IMAGE, Size.LARGE, np.float32(1), np.zeros(2), object()]),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES))
def test_no_params_leave_the_package_by_another_error(params: dict[str, Any]) -> None:
    """Whatever params hold, they are sent as valid JSON or refused by a ConfigurationError."""
    try:
        body = encode("params", params)
    except ConfigurationError as error:
        assert str(error).startswith("params")
    else:
        assert list(json.loads(body)) == list(params)


# -- text, ids, numbers


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Text, np.str_, Markup])
@pytest.mark.virtual_time
async def test_text_arguments_take_any_str(sandbox: Sandbox, flora: Flora, kind: type[str]) -> None:
    """A prompt out of a template or an array, and ids out of a data frame, are sent as their text."""
    words = {"type": "text", "prompt": "a word", "model": "sandbox-text", **PLACE}
    order: dict[str, Any] = {name: kind(word) for name, word in words.items()}
    started = await flora.generations.create(**order, idempotency_key=kind("key-1"))
    received = sandbox.orders[started.run_id]
    assert {name: getattr(received, name) for name in words} == words
    run = await flora.wait_for_run(kind(started.run_id))
    assert run == await flora.generations.retrieve(kind(started.run_id))
    asked: dict[str, Any] = {"status": kind("completed"), "project_id": kind("prj_demo"), "limit": np.int64(5)}
    pages = flora.generations.list(**asked).pages()
    assert [listed.run_id for listed in (await anext(pages)).generations] == [started.run_id]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_an_order_of_odd_text_does_not_end_the_others(flora: Flora) -> None:
    """In generate_many each order has its outcome, and an error of one is its own."""
    orders = [
        Order(type="text", prompt=prompt, params=params, **PLACE)
        for prompt, params in (("a", None), (Text("b"), {"seed": np.int64(1)}), ("c", {"image": b"x"}))
    ]
    outcomes = {outcome.order.prompt: outcome async for outcome in flora.generate_many(orders)}
    assert [outcomes[prompt].run is not None for prompt in "abc"] == [True, True, False]
    assert "params['image']" in str(outcomes["c"].error)


@pytest.mark.parametrize("kind", [Kind.IMAGE, OldKind.IMAGE, Text("image")])
def test_types_are_any_str(kind: Any) -> None:
    """The type of an order can be a member of a StrEnum."""
    request = create_request(FLORA, Order(type=kind, prompt="x", **PLACE), "key")
    assert json.loads(request.body or b"")["type"] == "image"


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"type": Plain.IMAGE}, r"\.value"),
        ({"type": ["image"]}, "'image'"),
        ({"prompt": Path("prompt.txt")}, r"\.read_text\(\)"),
        ({"prompt": uuid.uuid4()}, r"str\(\.\.\.\)"),
        ({"project_id": uuid.uuid4()}, "'prj_'.*the id that FLORA shows"),
        ({"type": np.array(["image", "video"])}, "'image'"),
        ({"prompt": b"x"}, r"\.decode"),
        ({"model": Plain.IMAGE}, r"\.value"),
        ({"callback_url": "http://example.com"}, "https://example.com"),
    ],
)
def test_text_arguments_of_other_types(changes: dict[str, Any], fix: str) -> None:
    """What is no str is refused, and the error names the fix."""
    order: dict[str, Any] = {"type": "image", "prompt": "x", **PLACE, **changes}
    with pytest.raises(ConfigurationError, match=fix):
        create_request(FLORA, Order(**order), "key")


def test_numbers_of_numpy_are_numbers() -> None:
    """Settings take numpy's scalars, and keep Python's own."""
    assert type(check_limit(np.int64(5))) is int
    assert check_count("n", np.uint8(3), least=1) == 3
    assert check_seconds("timeout", np.float32(0.5)) == 0.5
    assert check_usd("max_cost", np.float64(2)) == 2.0
    assert check_flag("flag", np.bool_(True)) is True
    query: dict[str, Any] = {"a": np.int64(1), "b": np.bool_(False), "c": Kind.IMAGE}
    request = custom_request(FLORA, "GET", "/x", params=query, json=None, idempotency_key=None)
    assert request.url.endswith("?a=1&b=false&c=image")


@pytest.mark.parametrize("value", [np.bool_(True), np.float64("nan"), np.array([1]), "1", None, timedelta(1), 10**400])
def test_numbers_that_are_none(value: Any) -> None:
    """A bool, a NaN, an array and text are no seconds, and a timedelta is told how to become some."""
    with pytest.raises(ConfigurationError, match="total_seconds" if isinstance(value, timedelta) else "timeout"):
        check_seconds("timeout", value)


# -- an Order as the argument


class Row(Order, frozen=True, kw_only=True):
    """An order with the caller's own number."""

    line: int


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_create_and_generate_take_an_order(sandbox: Sandbox) -> None:
    """What FLORA gets is the order, without what a subclass adds; on_create gets the caller's own object."""
    heard: list[tuple[str, AnyOrder]] = []
    row = Row(type="text", prompt="a word", params={"seed": 7}, line=3, **PLACE)
    async with Flora(
        sandbox.api_key, base_url=sandbox.base_url, on_create=lambda key, order: heard.append((key, order))
    ) as flora:
        started = await flora.generations.create(row, idempotency_key="key-1")
        run = await flora.generate(row, timeout=20)
    assert [order for _, order in heard] == [row, row]
    assert heard[0] == ("key-1", row)
    for run_id in (started.run_id, run.run_id):
        received = sandbox.orders[run_id]
        assert (received.prompt, received.params) == ("a word", {"seed": 7})
    assert sandbox.accepted == 2


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_outcomes_return_the_run_or_raise_the_error(flora: Flora) -> None:
    """An outcome has the caller's own order, its result, and it pickles; as_completed's has the run's id alone."""
    rows = [Row(type="text", prompt=prompt, line=line, **PLACE) for line, prompt in enumerate(("a", "[fail:x]"))]
    outcomes = {outcome.order.line: outcome async for outcome in flora.generate_many(rows)}
    done, failed = outcomes[0], outcomes[1]
    assert isinstance(done, CompletedOutcome)
    assert isinstance(failed, FailedOutcome)
    assert (done.order, done.error, done.run_id) == (rows[0], None, done.run.run_id)
    assert done.result() is done.run
    assert (failed.order, failed.run, failed.run_id) == (rows[1], None, failed.error.run_id)
    with pytest.raises(RunFailedError) as caught:
        failed.result()
    assert caught.value is failed.error
    run_ids = [done.run_id, failed.run_id or "", "run_of_nobody"]
    ended = {outcome.run_id: outcome async for outcome in flora.as_completed(run_ids)}
    assert {run_id: type(ended[run_id].error) for run_id in run_ids} == dict(
        zip(run_ids, (type(None), RunFailedError, NotFoundError), strict=True)
    )
    assert {outcome.order for outcome in ended.values()} == {None}
    for outcome in (done, failed, *ended.values()):
        again = pickle.loads(pickle.dumps(outcome))
        assert (type(again), again.run, str(again.error)) == (type(outcome), outcome.run, str(outcome.error))
        assert again.run_id == outcome.run_id


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "words", "message"),
    [
        ((), {}, "lacks type, prompt, workspace_id, project_id"),
        ((), {"type": "text", "prompt": "x", "workspace_id": "ws_1"}, "lacks project_id"),
        ((), {"type": "text", "prompt": None, **PLACE}, "lacks prompt"),
        (("image",), {}, "must be an Order, not str"),
        (({"type": "image"},), {}, "must be an Order, not dict"),
        ((Order(type="text", prompt="x", **PLACE),), {"prompt": "y"}, "Leave out prompt"),
    ],
)
async def test_orders_that_are_not_whole(
    sandbox: Sandbox, flora: Flora, arguments: tuple[Any, ...], words: dict[str, Any], message: str
) -> None:
    """A field that is missing, or given twice, is named before anything is sent."""
    for call in (flora.generations.create, flora.generate):
        with pytest.raises(ConfigurationError, match=message):
            await call(*arguments, **words)
    assert sandbox.accepted == 0


# -- runs


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_retrieve_takes_any_record_of_a_run(flora: Flora) -> None:
    """What wait_for_run takes, retrieve takes too."""
    started = await flora.generations.create(type="text", prompt="x", **PLACE)
    run = await flora.wait_for_run(started)
    (listed,) = [generation async for generation in flora.generations.list()]
    for record in (started, run, listed, started.run_id):
        assert (await flora.generations.retrieve(record)).run_id == started.run_id


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("run", "fix"),
    [
        (["run_1", "run_2"], "as_completed"),
        (("run_1",), "as_completed"),
        ((name for name in ("run_1",)), "as_completed"),
        (Order(type="text", prompt="x", **PLACE), r"create\(order\)"),
        ({"run_id": "run_1"}, "run_id"),
        (None, "NoneType"),
        (7, "int"),
    ],
)
async def test_runs_that_are_none(flora: Flora, run: Any, fix: str) -> None:
    """Whatever is no run is refused at once, with what was probably meant."""
    for call in (flora.wait_for_run, flora.generations.retrieve):
        with pytest.raises(ConfigurationError, match=fix):
            await call(run)


@pytest.mark.anyio
async def test_a_create_that_was_not_awaited(flora: Flora) -> None:
    """A forgotten await is named."""
    forgotten = flora.generations.create(type="text", prompt="x", **PLACE)
    with pytest.raises(ConfigurationError, match="Await it first"):
        await flora.wait_for_run(forgotten)  # type: ignore[arg-type]
    forgotten.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("source", "fix"),
    [
        ("https://media.flora.ai/1.png", r"run\.outputs"),
        ("run_1", "wait_for_run"),
        (StartedRun(run_id="run_1", type="generation", charged_cost=0), "wait_for_run"),
        (CompletedOutcome(order=None, run=COMPLETED), r"outcome\.run"),
        ([COMPLETED], "once for each"),
    ],
)
async def test_downloads_of_what_is_no_run(flora: Flora, tmp_path: Path, source: Any, fix: str) -> None:
    """A URL, an id, a started run, an outcome and a list of runs are refused with what to pass in their place."""
    with pytest.raises(ConfigurationError, match=fix):
        await flora.download(source, tmp_path)


@pytest.mark.anyio
async def test_a_download_before_the_end(flora: Flora, tmp_path: Path) -> None:
    """What cannot be saved yet is refused with the way to it."""
    waiting = Run(run_id="run_1", status="pending", progress=0, created_at=0)
    started = StartedRun(run_id="run_1", type="generation", charged_cost=0)
    for source in (waiting, started, "run_1"):
        with pytest.raises(ConfigurationError, match=r"await flora\.wait_for_run"):
            await flora.download(source, tmp_path)  # type: ignore[arg-type]


# -- what is read with ``async for``


@pytest.mark.anyio
async def test_awaiting_what_is_read_with_async_for(flora: Flora) -> None:
    """An await, or a loop without async, is refused with the right way, and sends nothing."""
    listing = flora.generations.list(limit=10)
    misused: list[tuple[Any, str]] = [
        (listing, "async for generation in flora.generations.list"),
        (listing, "pages"),
        (listing.pages(), "async for page"),
        (aiter(listing), "async for generation"),
        (flora.watch_run("run_1"), "await flora.wait_for_run"),
        (flora.as_completed(["run_1"]), "async for outcome in flora.as_completed"),
        (flora.generate_many([]), "async for outcome in flora.generate_many"),
        (record_batches(listing), "async for batch"),
    ]
    for thing, way in misused:
        with pytest.raises(ConfigurationError, match="cannot be awaited") as awaited:
            await thing
        with pytest.raises(ConfigurationError, match="iterated over without async") as looped:
            list(thing)
        assert way in str(awaited.value)
        assert way in str(looped.value)
        with pytest.raises(ConfigurationError, match="cannot be awaited"):
            await asyncio.gather(thing)
    assert [generation async for generation in listing] == []


def test_a_plain_with_names_async_with() -> None:
    """A client that is opened by a plain with says how it is opened."""
    plain: Any = Flora("sk_x", base_url="http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match=r"async with Flora\(\.\.\.\) as flora"), plain:
        pass


@pytest.mark.parametrize("key", ['"sk_live_1"', "'sk_live_1'", "Bearer sk_live_1", '"sk_live_1'])
def test_keys_that_were_copied_with_more(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotation marks or the scheme around a key are refused before a request, and the key is not shown."""
    with pytest.raises(ConfigurationError, match=r"API key .* (Remove the quotes|begins with 'Bearer')") as refused:
        Flora(key)
    assert "live" not in str(refused.value)
    monkeypatch.setenv("FLORA_API_KEY", key)
    with pytest.raises(ConfigurationError, match="FLORA_API_KEY"):
        Flora()


@pytest.mark.anyio
async def test_a_client_is_closed_by_aclosing(sandbox: Sandbox) -> None:
    """``contextlib.aclosing`` and ``AsyncExitStack`` find the name that they call."""
    async with aclosing(Flora(sandbox.api_key, base_url=sandbox.base_url)) as flora:
        await flora.generations.create(type="text", prompt="x", **PLACE)
    with pytest.raises(ClientClosedError):
        await flora.generations.retrieve("run_1")


# -- the base URL


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/api/v1;rev=2", "/t=a,b@c:1", "/%61pi/a%2Fb%20c", "/~x!$&'()*+", "/relay//api"])
async def test_the_path_of_a_base_url_is_sent_as_it_stands(path: str) -> None:
    """Byte for byte, for a run, for a page, and for a poll_url below it."""
    waiting = Raw()
    async with waiting:
        origin = waiting.base_url.removesuffix("/api/v1")
        waiting.steps.extend(
            say(http(run("completed" if number else "running", poll_url=f"{origin}{path}/poll/1")))
            for number in range(3)
        )
        async with Flora("sk_test", base_url=origin + path) as flora:
            seen = await flora.generations.retrieve("run_abc123")
            await asyncio.wait_for(flora.wait_for_run(seen), 20)
        assert [asked.path for asked in waiting.asked] == [f"{path}/runs/run_abc123", f"{path}/poll/1"]
