"""Local files and assets among the params of orders: uploaded once, replaced by URLs before the order goes out."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scripted import DUPLICATE, Scripted, answer, error, hang_up, page, run, silence, started, tasks_of_ours
from stores import PNG, pending, ready

from flora_async import (
    ActionOrder,
    Asset,
    ConfigurationError,
    CreateOutcomeUnknownError,
    FailedOutcome,
    Flora,
    ListedAsset,
    Order,
    TechniqueOrder,
    UploadError,
)
from flora_async._http.requests import encode_order
from flora_async._http.urls import parse_base_url
from flora_async._inputs import STAND_IN, find_files, inputs_of, is_file, replace_files, without_files
from flora_async._resources import assets

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries")]

PLACE: dict[str, Any] = {"type": "video", "prompt": "it turns", "workspace_id": "ws_1", "project_id": "prj_1"}
ASSET = Asset(asset_id="asset_9", status="ready", url="https://media.flora.ai/nine.png")
LISTED = ListedAsset(asset_id="asset_8", status="ready", url="https://media.flora.ai/eight.png")


class Store:
    """A scripted FLORA that gives each uploaded file an id and a URL of its own."""

    def __init__(self, server: Scripted) -> None:
        self.server = server
        self.files: list[bytes] = []
        self.runs = 0
        server.on("POST", "/assets", self.take).on("POST", "/generate", self.start)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Store a file."""
        self.files.append(await request.read())
        number = len(self.files)
        await asyncio.sleep(0.01)
        asset = ready(f"asset_{number}", url=f"https://media.flora.ai/{number}.png")
        return await answer(asset, 201)(request)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Start a run, which is completed at once."""
        self.runs += 1
        run_id = f"run_{self.runs}"
        self.server.on("GET", f"/runs/{run_id}", answer(run(run_id=run_id)))
        return await answer(started(run_id), 201)(request)

    def params(self) -> list[Any]:
        """Return the params of the orders that were sent."""
        return [json.loads(asked.body)["params"] for asked in self.server.asked if asked.path == "/generate"]


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """Run the scripted FLORA."""
    async with Scripted() as server:
        yield Store(server)


@pytest.fixture
async def flora(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Flora]:
    """Open a client."""
    monkeypatch.setattr(assets, "READY_DELAYS", (0.001,))
    async with Flora("sk_test_1", base_url=store.server.base_url) as client:
        yield client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return the path of a picture."""
    path = tmp_path / "mug.png"
    path.write_bytes(PNG + b"mug")
    return path


# -- pure


def test_a_plain_string_is_no_file() -> None:
    """Only paths and assets stand for a URL."""
    assert [is_file(each) for each in ("a.png", b"a", Path("a"), PurePosixPath("a"), ASSET, None)] == [
        *(False, False, True, True, True, False)
    ]


nested = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.text(max_size=3) | st.just(Path("a.png")) | st.just(ASSET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), nested, max_size=4))
def test_files_are_found_and_replaced_in_any_position(inputs: dict[str, Any]) -> None:
    """As many URLs appear as there were files, all else stays, and the given object is not changed."""
    before = repr(inputs)
    files = find_files(inputs)
    order = Order(**PLACE, params=inputs)
    replaced = replace_files(order, lambda _: "URL").params
    assert not find_files(replaced)
    assert repr(replaced).replace("'URL'", "*") == before.replace(repr(Path("a.png")), "*").replace(repr(ASSET), "*")
    assert repr(inputs) == before
    assert (without_files(order) is order) == (not files)
    assert json.dumps(without_files(order).params).count(STAND_IN) == len(files)


def test_endless_nesting_with_a_file() -> None:
    """An object that contains itself is refused, not walked for ever."""
    inputs: dict[str, Any] = {"a": Path("a.png")}
    inputs["self"] = inputs
    inputs["twice"] = [inputs, inputs]
    order = without_files(Order(**PLACE, params=inputs))
    with pytest.raises(ConfigurationError, match="nested"):
        encode_order(parse_base_url("https://app.flora.ai/api/v1"), order)


# -- orders


async def test_files_in_any_position(store: Store, flora: Flora, photo: Path) -> None:
    """Paths and assets, in objects and lists, become URLs; a string that looks like a path stays."""
    other = photo.with_name("other.png")
    other.write_bytes(PNG + b"other")
    params = {
        "image_url": photo,
        "image_urls": [photo, ASSET, (other, LISTED)],
        "deep": MappingProxyType({"a": [{"b": PurePosixPath(photo)}]}),
        "name": str(photo),
        "seed": 7,
    }
    await flora.generations.create(**PLACE, params=params)
    (sent,) = store.params()
    one, two = sent["image_url"], sent["image_urls"][2][0]
    assert sorted((one, two)) == ["https://media.flora.ai/1.png", "https://media.flora.ai/2.png"]
    assert sent == {
        "image_url": one,
        "image_urls": [one, ASSET.url, [two, LISTED.url]],
        "deep": {"a": [{"b": one}]},
        "name": str(photo),
        "seed": 7,
    }
    assert params["image_url"] is photo


@pytest.mark.virtual_time
async def test_each_file_is_uploaded_once(store: Store, flora: Flora, photo: Path) -> None:
    """The same bytes under two names, at the same time or later, by every way to start a run: one upload."""
    copy = photo.with_name("copy.png")
    copy.write_bytes(photo.read_bytes())
    orders = [Order(**PLACE, params={"image_url": path}) for path in (photo, copy) * 4]
    await asyncio.gather(*map(flora.generations.create, orders[:4]))
    await flora.generate(orders[0])
    async with flora.generate_many(orders) as outcomes:
        done = [outcome async for outcome in outcomes]
    assert [type(outcome.order) for outcome in done] == [Order] * 8
    assert {id(outcome.order) for outcome in done} == set(map(id, orders))
    assert len(store.files) == 1
    assert store.params() == [{"image_url": "https://media.flora.ai/1.png"}] * 13


async def test_a_changed_file_and_another_workspace_are_uploaded_again(store: Store, flora: Flora, photo: Path) -> None:
    """Other bytes under the same name are another file; an asset belongs to a workspace."""
    await flora.generations.create(**PLACE, params={"image_url": photo})
    photo.write_bytes(PNG + b"another mug")
    await flora.generations.create(**PLACE, params={"image_url": photo})
    await flora.generations.create(**{**PLACE, "workspace_id": "ws_2"}, params={"image_url": photo})
    assert len(store.files) == 3


async def test_all_else_is_checked_before_a_file_is_sent(store: Store, flora: Flora, photo: Path) -> None:
    """An error in another field, in another value, in another file or asset sends nothing."""
    late = Asset(asset_id="asset_8", status="pending_upload")
    for wrong, message in (
        ({"params": {"image_url": photo, "mask": b"x"}}, "flora.assets.upload"),
        ({"params": {"image_url": photo, "mask": late}}, "asset_8 is pending_upload"),
        ({"params": {"image_url": photo}, "prompt": ""}, "prompt must not be empty"),
        ({"params": {"image_url": photo}, "idempotency_key": "no key"}, "idempotency_key"),
        ({"params": {"image_url": photo.with_name("none.png")}}, "cannot read .*none.png"),
        ({"params": {"image_url": photo.parent}}, "it is a folder"),
    ):
        arguments: dict[str, Any] = {**PLACE, **wrong}
        with pytest.raises(ConfigurationError, match=message):
            await flora.generations.create(**arguments)
    assert not store.server.asked


async def test_the_order_that_is_recorded_has_urls(store: Store, photo: Path) -> None:
    """``on_create`` is called after the upload, and errors carry the order that was sent."""
    recorded: list[tuple[int, Any]] = []
    store.server.on("POST", "/generate", DUPLICATE)

    class Mine(Order, frozen=True):
        """A caller's own order."""

        note: str = ""

    async with Flora(
        "sk_test_1",
        base_url=store.server.base_url,
        on_create=lambda _, order: recorded.append((len(store.files), order)),
    ) as flora:
        order = Mine(**PLACE, params={"image_url": photo}, note="mine")
        with pytest.raises(Exception, match="idempotency_duplicate") as caught:
            await flora.generations.create(order)
        assert flora.generations.validate(order) is not order
        assert inputs_of(flora.generations.validate(order)) == {"params": {"image_url": photo}}
    urls = {"image_url": "https://media.flora.ai/1.png"}
    assert [(count, seen.params) for count, seen in recorded] == [(1, urls)]
    assert isinstance(recorded[0][1], Mine)
    assert getattr(caught.value, "order").params == urls  # noqa: B009
    assert order.params == {"image_url": photo}


async def test_a_lost_create_is_not_uploaded_again(store: Store, flora: Flora, photo: Path) -> None:
    """The order of the error has URLs: its recovery needs no file."""
    store.server.on("POST", "/generate", hang_up).on("GET", "/generations", page())
    with pytest.raises(CreateOutcomeUnknownError) as caught:
        await flora.generations.create(**PLACE, params={"image_url": photo})
    photo.unlink()
    assert inputs_of(caught.value.order)["params"] == {"image_url": "https://media.flora.ai/1.png"}
    store.server.on("POST", "/generate", answer(started(), 201))
    assert (await flora.recover_create(caught.value)).run_id == "run_abc123"
    assert len(store.files) == 1


async def test_a_failed_upload_orders_nothing_and_is_not_remembered(store: Store, flora: Flora, photo: Path) -> None:
    """Each order fails with the same error; the next order uploads the file again."""
    store.server.on("POST", "/assets", answer(pending(status="failed", failure_message="a broken picture"), 201))
    orders = [Order(**PLACE, params={"image_url": photo}) for _ in range(3)]
    async with flora.generate_many(orders) as outcomes:
        done = [outcome async for outcome in outcomes]
    for outcome in done:
        assert isinstance(outcome, FailedOutcome)
        assert isinstance(outcome.error, UploadError)
    assert not store.params()
    store.server.on("POST", "/assets", store.take)
    await flora.generations.create(orders[0])
    assert len(store.files) == 1


async def test_one_of_several_callers_is_cancelled(store: Store, flora: Flora, photo: Path) -> None:
    """The others get their URL. If all are cancelled, the upload ends, and a later order begins another."""
    reached, release = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        reached.set()
        await release.wait()
        return await store.take(request)

    store.server.on("POST", "/assets", wait)
    order = Order(**PLACE, params={"image_url": photo})
    before = tasks_of_ours()
    first, second = (asyncio.create_task(flora.generations.create(order)) for _ in range(2))
    await reached.wait()
    first.cancel()
    await asyncio.wait([first])
    release.set()
    assert (await second).run_id == "run_1"
    assert len(store.files) == 1

    photo.write_bytes(PNG + b"new")
    reached.clear()
    store.server.on("POST", "/assets", lambda request: _hang(reached, request))
    creates = [asyncio.create_task(flora.generations.create(order)) for _ in range(2)]
    await reached.wait()
    for create in creates:
        create.cancel()
    await asyncio.wait(creates)
    assert all(create.cancelled() for create in creates)
    assert tasks_of_ours() == before
    store.server.on("POST", "/assets", store.take)
    await flora.generations.create(order)
    assert len(store.files) == 2


async def _hang(reached: asyncio.Event, request: web.Request) -> web.StreamResponse:
    reached.set()
    return await silence(request)


async def test_a_new_caller_while_the_last_one_is_cancelled(store: Store, flora: Flora, photo: Path) -> None:
    """The cancellation of one order does not reach another that begins at that moment."""
    reached = asyncio.Event()
    store.server.on("POST", "/assets", lambda request: _hang(reached, request), store.take)
    order = Order(**PLACE, params={"image_url": photo})
    first = asyncio.create_task(flora.generations.create(order))
    await reached.wait()
    first.cancel()
    await asyncio.sleep(0)
    assert (await flora.generations.create(order)).run_id == "run_1"
    await asyncio.wait([first])
    assert first.cancelled()


async def test_the_memory_of_files_is_bounded(store: Store, flora: Flora, photo: Path) -> None:
    """The oldest files are forgotten, and uploaded again."""
    files = flora.assets._inputs
    files._digests._known.limit = files._urls._known.limit = 2
    for content in (b"1", b"2", b"3", b"3", b"1"):
        photo.write_bytes(PNG + content)
        os.utime(photo, ns=(0, int(content)))
        await flora.generations.create(**PLACE, params={"image_url": photo})
    assert len(store.files) == 4


async def test_a_file_that_is_changed_during_its_upload(store: Store, flora: Flora, photo: Path) -> None:
    """The upload is refused: its URL would stand for other bytes, also in later orders with the first ones."""
    first = photo.read_bytes()

    async def rewrite(request: web.Request) -> web.StreamResponse:
        photo.write_bytes(PNG + b"another, longer mug")
        return await store.take(request)

    store.server.on("POST", "/assets", rewrite)
    with pytest.raises(UploadError, match="changed during the upload"):
        await flora.generations.create(**PLACE, params={"image_url": photo})
    assert not store.params()
    store.server.on("POST", "/assets", store.take)
    photo.write_bytes(first)
    await flora.generations.create(**PLACE, params={"image_url": photo})
    assert store.params() == [{"image_url": "https://media.flora.ai/2.png"}]


async def test_an_error_of_flora_leaves_as_it_is(store: Store, flora: Flora, photo: Path) -> None:
    """A refused key is an AuthenticationError of the create."""
    store.server.on("POST", "/assets", error(401, "invalid_api_key"))
    with pytest.raises(Exception, match="invalid_api_key") as caught:
        await flora.generate(**PLACE, params={"image_url": photo})
    assert type(caught.value).__name__ == "AuthenticationError"
    assert not store.params()


@pytest.mark.virtual_time
async def test_files_of_techniques_and_actions(store: Store, flora: Flora, photo: Path) -> None:
    """The inputs of all kinds of orders may have files; they are compared with the declared ones before an upload."""
    technique = {"technique_id": "tech_1", "name": "Turn", "inputs": [{"id": "a", "name": "A", "type": "imageUrl"}]}
    action: dict[str, Any] = {"action_id": "flip-image", "name": "Flip", "inputs": [{"name": "a", "type": "image"}]}
    action["params"] = [{"key": "mask", "type": "string"}]
    store.server.on("GET", "/techniques/tech_1", answer(technique)).on("GET", "/actions/flip-image", answer(action))
    store.server.on("POST", "/runs/technique", store.start).on("POST", "/runs/action", store.start)
    turn = TechniqueOrder(technique_id="tech_1", inputs={"a": photo}, workspace_id="ws_1")
    with pytest.raises(ConfigurationError, match="is not declared"):
        await flora.generate(replace(turn, inputs={"a": photo, "b": photo}))
    assert not store.files
    flip = ActionOrder(
        action_id="flip-image",
        inputs=[{"type": "image", "url": photo}],
        workspace_id="ws_1",
        project_id="prj_1",
        params={"mask": ASSET},
    )
    await flora.generate(turn)
    await flora.generate(flip)
    sent = {asked.path: asked.body.decode() for asked in store.server.asked if asked.path.startswith("/runs/")}
    assert "https://media.flora.ai/1.png" in sent["/runs/technique"]
    assert "https://media.flora.ai/1.png" in sent["/runs/action"]
    assert ASSET.url is not None
    assert ASSET.url in sent["/runs/action"]
    assert len(store.files) == 1
