"""Workspaces, projects and models: the ids that an order wants, and what a model takes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted import Scripted, answer
from test_single_response import fails

from flora_async import ConfigurationError, Flora, Model, ModelOption, ModelParam, PaginationError
from flora_async._resources.catalog import check_params
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.mark.virtual_time
async def test_on_the_sandbox() -> None:
    """Everything that an order wants is found, and works."""
    async with Sandbox(time_scale=0.01) as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        (workspace,) = await flora.workspaces.list()
        project = (await flora.projects.list())[0]
        (model,) = await flora.models.list(type="image")
        assert len(await flora.models.list()) == 4
        assert project.workspace_id == workspace.workspace_id
        assert await flora.models.check(model.model_id, {"seed": 7, "style": "bold"}) == ()
        run = await flora.generate(
            type="image",
            prompt="a mug",
            model=model.model_id,
            workspace_id=workspace.workspace_id,
            project_id=project.project_id,
        )
        assert run.succeeded


async def test_projects_come_in_pages(server: Scripted) -> None:
    """All of them, and no circle."""
    project = {"project_id": "prj_1", "workspace_id": "ws_1", "name": "One", "new": True}
    server.on(
        "GET",
        "/projects",
        answer({"projects": [project], "meta": {"next_cursor": "a"}}),
        answer({"projects": [{**project, "project_id": "prj_2"}], "meta": {"next_cursor": None}}),
        answer({"projects": [], "meta": {"next_cursor": "b"}}),
    )
    async with Flora("any", base_url=server.base_url) as flora:
        found = await flora.projects.list(workspace_id="ws_1")
        assert [one.project_id for one in found] == ["prj_1", "prj_2"]
        assert [asked.query.get("cursor") for asked in server.asked] == [None, "a"]
        assert isinstance(await fails(flora.projects.list(workspace_id="ws_1")), PaginationError)
        assert isinstance(await fails(flora.projects.list(workspace_id="prj_1")), ConfigurationError)


async def test_a_model_that_is_not(server: Scripted) -> None:
    """The error names the nearest."""
    server.on("GET", "/models", answer({"models": [{"model_id": "t2i-flux-2-pro", "name": "Flux", "type": "image"}]}))
    async with Flora("any", base_url=server.base_url) as flora:
        with pytest.raises(ConfigurationError, match="did you mean t2i-flux-2-pro"):
            await flora.models.check("flux-2-pro", {})
        with pytest.raises(ConfigurationError, match=r"there is no model 'zzz'$"):
            await flora.models.check("zzz", {})
        with pytest.raises(ConfigurationError, match="params must be a mapping"):
            await flora.models.check("t2i-flux-2-pro", [1])  # type: ignore[arg-type]


MODEL = Model(
    model_id="m",
    name="M",
    type="image",
    params=(
        ModelParam(name="prompt_image", type="string", required=True),
        ModelParam(name="steps", type="int", required=True, default=4, min=1, max=50),
        ModelParam(name="style", type="string", options=(ModelOption(value="plain"), ModelOption(value="bold"))),
        ModelParam(name="tags", type="string[]", options=(ModelOption(value="a"), ModelOption(value="b"))),
        ModelParam(name="strength", type="float", min=0.0, max=1.0),
        ModelParam(name="limit", type="int?"),
        ModelParam(name="tiled", type="bool"),
        ModelParam(name="camera", type="dict"),
        ModelParam(name="novel", type="of a type that is new"),
    ),
)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {}),
        ({"steps": 50, "style": "bold", "tags": ["a"], "strength": 1, "limit": None, "tiled": True}, {}),
        ({"camera": {"x": 1}, "novel": object()}, {}),
        ({"sedd": 1}, {"sedd": "does not take it; it takes prompt_image, steps"}),
        ({"steps": 51}, {"steps": "at most 50, not 51"}),
        ({"steps": 0}, {"steps": "at least 1, not 0"}),
        ({"steps": True}, {"steps": "of type int, not bool"}),
        ({"steps": 1.5}, {"steps": "of type int, not float"}),
        ({"style": "loud"}, {"style": "one of plain, bold, not 'loud'"}),
        ({"tags": ["a", "c"]}, {"tags": "one of a, b"}),
        ({"tags": "a"}, {"tags": "of type string"}),
        ({"strength": 1.01, "tiled": 1}, {"strength": "at most 1", "tiled": "of type bool, not int"}),
        ({"camera": [], "limit": "x"}, {"camera": "of type dict", "limit": "of type int"}),
    ],
)
def test_parameters(given: dict[str, Any], told: dict[str, str]) -> None:
    """Of the right names, types and ranges; what FLORA may have learned since passes."""
    found = {fault.field: fault.message for fault in check_params(MODEL, {"prompt_image": "x", **given})}
    assert set(found) == set(told)
    assert all(words in found[name] for name, words in told.items())


def test_a_parameter_that_lacks() -> None:
    """Unless it has a default."""
    assert [fault.field for fault in check_params(MODEL, {})] == ["prompt_image"]
