"""``techniques``, ``actions``, ``projects create``, ``canvas run`` and ``feedback``."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flora_async import Flora
from flora_async.cli import main
from flora_async.sandbox import Sandbox

PLACE = ("--workspace-id", "ws_demo", "--project-id", "prj_demo")

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sandbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    """Give a fast sandbox that the command finds by its variables."""
    async with Sandbox(time_scale=0.01) as started:
        monkeypatch.setenv("FLORA_API_KEY", started.api_key)
        monkeypatch.setenv("FLORA_BASE_URL", started.base_url)
        yield started


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command in a thread, and returns its code, its JSON and its messages."""

    async def run(*words: str) -> tuple[int, Any, str]:
        import asyncio

        code = await asyncio.to_thread(main, [*words])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return run


async def test_techniques(sandbox: Sandbox, call: Any) -> None:
    """They are listed, shown and run; wrong inputs are refused with the flag's words, before anything is sent."""
    assert len((await call("techniques", "list"))[1]["techniques"]) == 2
    assert (await call("techniques", "retrieve", "--technique-id", "poster"))[1]["technique_id"] == "tech_poster"
    words = ("techniques", "run", "--technique-id", "tech_poster", "--workspace-id", "ws_demo")
    code, run, _ = await call(*words, "--inputs", "subject=a mug", "--wait")
    assert (code, run["status"]) == (0, "completed")
    code, started, _ = await call(*words, "--inputs", '{"subject": "a mug"}', "--idempotency-key", "one")
    assert (code, started["type"]) == (0, "technique")
    code, _, said = await call(*words, "--inputs", "title=x")
    assert code == 2
    assert "title is not declared" in said
    assert sandbox.accepted == 2


async def test_actions(sandbox: Sandbox, call: Any, tmp_path: Path) -> None:
    """Inputs are a type and a URL, a file or a text."""
    assert len((await call("actions", "list"))[1]["actions"]) > 10
    assert (await call("actions", "retrieve", "--action-id", "flip-image"))[1]["action_id"] == "flip-image"
    texts = ("--input", "text=a", "--input", "text=b", "--params", "separator=-")
    code, run, _ = await call("actions", "run", "--action-id", "concat-text", *texts, *PLACE, "--wait")
    assert (code, run["outputs"][0]["url"]) == (0, "a-b")
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    image = ("--input", f"image=@{path}", "--download", str(tmp_path / "out"))
    code, _, said = await call("actions", "run", "--action-id", "flip-image", *image, *PLACE)
    assert code == 0, said
    assert len(list((tmp_path / "out").iterdir())) == 1


async def test_projects_canvas_and_feedback(sandbox: Sandbox, call: Any) -> None:
    """A project is created, its nodes are run with a reason for those that are not, and a message is sent."""
    project = (await call("projects", "create", "--name", "One", "--workspace-id", "ws_demo"))[1]["project_id"]
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        changed = await flora.canvas.change(
            add=[{"ref": "a", "type": "text", "prompt": "x"}], workspace_id="ws_demo", project_id=project
        )
    node = changed.created["a"].node_id
    place = ("--workspace-id", "ws_demo", "--project-id", project)
    code, found, _ = await call("canvas", "run", node, "node_x", *place)
    assert code == 1
    assert [run["reason"] for run in found["runs"]] == [None, "node_not_found"]
    assert found["runs"][0]["run"]["run_id"].startswith("run_")
    words = ("feedback", "--kind", "bug", "--summary", "s", "--detail", "d")
    assert (await call(*words))[1]["feedback_id"].startswith("fb_")
