"""Workspaces, projects and models: the ids that an order wants, and what a model takes."""

from collections.abc import AsyncIterator

import pytest
from scripted import Scripted, answer
from test_single_response import fails

from flora_async import ConfigurationError, Flora, PaginationError
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
        assert len(await flora.models.list()) == 6
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
