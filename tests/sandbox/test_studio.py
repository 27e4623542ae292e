"""The sandbox's techniques, actions, projects and canvases: they do what they say, and keep FLORA's contract."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from test_single_response import fails

from flora_async import (
    ActionOrder,
    BadRequestError,
    Flora,
    IdempotencyConflictError,
    InternalServerError,
    NotFoundError,
    Output,
    TechniqueOrder,
)
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

PLACE: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": "prj_demo"}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a fast sandbox."""
    async with Sandbox(time_scale=0.01) as started:
        yield started


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as client:
        yield client


async def picture(output: Output) -> Image.Image:
    """Return the picture of an output."""
    async with aiohttp.ClientSession() as session, session.get(output.url) as response:
        assert response.status == 200
        return Image.open(io.BytesIO(await response.read()))


async def test_an_action_shows_its_input(flora: Flora) -> None:
    """A picture that is mirrored and turned has the same pixels in other places."""
    made = (await flora.generate(type="image", prompt="a mug", **PLACE)).outputs[0]
    image = [{"type": "image", "url": made.url}]
    flip = ActionOrder(action_id="flip-image", inputs=image, params={"direction": "horizontal"}, **PLACE)
    before, after = await picture(made), await picture((await flora.generate(flip)).outputs[0])
    width = before.width
    for x, y in ((0, 0), (10, 300), (700, 500)):
        assert before.convert("RGB").getpixel((x, y)) == after.getpixel((width - 1 - x, y))
    small = ActionOrder(action_id="resize-image-browser", inputs=image, params={"width": 64, "height": 32}, **PLACE)
    run = await flora.generate(small)
    assert (await picture(run.outputs[0])).size == (64, 32)
    assert run.charged_cost == 0


@pytest.mark.parametrize(
    ("action_id", "texts", "params", "expected"),
    [
        ("concat-text", ["a", "b"], {"separator": "-"}, ["a-b"]),
        ("find-and-replace-text-browser", ["a mug"], {"find": "mug", "replace": "cup"}, ["a cup"]),
        ("split-text", ["a,b,,c"], {"separator": ","}, ["a", "b", "c"]),
    ],
)
async def test_an_action_on_texts(
    flora: Flora, action_id: str, texts: list[str], params: dict[str, Any], expected: list[str]
) -> None:
    """The text of an output is its URL."""
    inputs = [{"type": "text", "text": text} for text in texts]
    run = await flora.generate(ActionOrder(action_id=action_id, inputs=inputs, params=params, **PLACE))
    assert [output.url for output in run.outputs] == expected


async def test_a_technique_of_two_steps(flora: Flora) -> None:
    """It writes a caption, and puts it on the photo."""
    photo = (await flora.generate(type="image", prompt="a mug", **PLACE)).outputs[0]
    order = TechniqueOrder(
        technique_id="tech_poster", inputs={"subject": "a mug", "photo": photo.url}, workspace_id="ws_demo"
    )
    run = await flora.generate(order)
    caption, poster = run.outputs
    assert "a mug" in caption.url
    assert (caption.type, poster.type) == ("text", "imageUrl")
    before, after = (await picture(photo)).convert("RGB"), await picture(poster)
    corner, rest = (0, 0, before.width, 80), (0, 200, before.width, 400)
    assert before.crop(rest).tobytes() == after.crop(rest).tobytes()
    assert before.crop(corner).tobytes() != after.crop(corner).tobytes()
    assert run.charged_cost == 0.05


async def test_the_history_of_techniques(flora: Flora, sandbox: Sandbox) -> None:
    """It has no generations, and is walked by its cursor with filters."""
    await flora.generations.create(type="text", prompt="x", **PLACE)
    for number in range(5):
        await flora.techniques.run(
            technique_id="tech_poster", inputs={"subject": f"word {number}"}, workspace_id="ws_demo"
        )
    rows = [row async for row in flora.technique_runs.list(limit=2, technique_id="tech_poster")]
    assert len(rows) == 5
    assert [row async for row in flora.technique_runs.list(technique_id="tech_recolor")] == []
    orders = sandbox.technique_and_action_orders
    assert [order.inputs["subject"] for order in orders.values() if isinstance(order, TechniqueOrder)] == [
        f"word {number}" for number in range(5)
    ]
    assert len(sandbox.orders) == 1


async def test_contract(flora: Flora) -> None:
    """Used keys, the nested route, malformed project ids and bodies."""
    order = TechniqueOrder(technique_id="tech_poster", inputs={"subject": "x"}, workspace_id="ws_demo")
    started = await flora.start_run(order, idempotency_key="one")
    assert isinstance(await fails(flora.start_run(order, idempotency_key="one")), IdempotencyConflictError)
    nested = flora.technique_runs.retrieve(technique_id="tech_poster", run_id=started.run_id)
    assert isinstance(await fails(nested), NotFoundError)
    body = {"type": "text", "prompt": "x", "workspace_id": "ws_1", "project_id": "prj_a b"}
    failure = await fails(flora.request("POST", "/generate", json=body))
    assert isinstance(failure, InternalServerError)
    assert failure.code == "unknown_error"
    empty = {"inputs": {}, "workspace_id": "ws_1", "technique_id": "tech_poster"}
    assert isinstance(await fails(flora.request("POST", "/runs/technique", json=empty)), BadRequestError)


async def test_a_post_without_a_body(flora: Flora, sandbox: Sandbox) -> None:
    """Aiohttp sends it with a content type that is not JSON, and is refused; the client sends ``{}``."""
    node = await flora.canvas.add_action(project_id="prj_demo", action_id="concat-text")
    url = f"{sandbox.base_url}/projects/prj_demo/actions/{node.node_id}/run"
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "invalid_json"
    run = await flora.wait_for_run(await flora.canvas.run_action(project_id="prj_demo", node_id=node.node_id))
    assert run.succeeded


async def test_a_canvas(flora: Flora, sandbox: Sandbox) -> None:
    """Nodes are added, connected and run; each that is not run has its reason."""
    project = await flora.projects.create(name="One", workspace_id="ws_demo")
    place: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": project.project_id}
    changed = await flora.canvas.change(
        add=[
            {"ref": "a", "type": "text", "prompt": "a poem"},
            {"ref": "b", "type": "image", "prompt": "a mug"},
            {"ref": "c", "type": "group", "label": "Both"},
        ],
        connect=[{"from": "a", "to": "b"}],
        **place,
    )
    ids = [changed.created[name].node_id for name in "abc"]
    text, image, group, missing = await flora.canvas.run_nodes([*ids, "node_x"], **place)
    assert (group.reason, missing.reason) == ("node_not_executable", "node_not_found")
    assert text.run is not None
    assert image.run is not None
    again = await flora.canvas.run_nodes(ids[:1], **place)
    assert again[0].reason == "generation_already_running"
    outcomes = [outcome async for outcome in flora.as_completed([text.run, image.run])]
    assert all(outcome.error is None for outcome in outcomes)
    graph = await flora.canvas.retrieve_graph(**place)
    assert [node.status for node in graph.nodes] == ["done", "done", "idle"]
    assert graph.nodes[0].output_text is not None
    assert (await flora.canvas.retrieve(project.project_id)).summary is not None
    assert sandbox.accepted == 2
    definition = await flora.canvas.retrieve_definition(**place)
    assert len(definition.definition["nodes"]) == 3
    removed = await flora.canvas.change(remove=[{"id": node.id} for node in graph.nodes], **place)
    assert removed.applied["removed"] == 3
    assert (await flora.canvas.retrieve_graph(**place)).nodes == ()


async def test_an_action_on_an_uploaded_picture(flora: Flora, tmp_path: Path) -> None:
    """A local file among the inputs is uploaded, and the result shows it."""
    path = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    order = ActionOrder(
        action_id="color-filter-image", inputs=[{"type": "image", "url": path}], params={"filter": "invert"}, **PLACE
    )
    shown = await picture((await flora.generate(order)).outputs[0])
    with Image.open(path) as source:
        assert shown.size == source.size
        for point in ((0, 0), (9, 200)):
            before, after = source.getpixel(point), shown.getpixel(point)
            assert isinstance(before, tuple)
            assert after == tuple(255 - value for value in before)
