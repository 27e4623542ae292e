"""The sandbox's front page, over HTTP: what runs, with the prompts, for everybody on this machine."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from test_cards import Read

from flora_async import Flora
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

ORDER: dict[str, Any] = {"type": "image", "workspace_id": "ws_1", "project_id": "prj_1"}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Give a sandbox whose runs take their time."""
    async with Sandbox() as own:
        yield own


async def look(sandbox: Sandbox, query: str = "") -> tuple[aiohttp.ClientResponse, str]:
    """Ask for the page, without a key."""
    address = f"{sandbox.base_url.removesuffix('api/v1')}{query}"
    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        return answer, await answer.text()


async def test_what_runs(sandbox: Sandbox) -> None:
    """Newest first, with prompt and type, which the history does not tell; it is no request of the API."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        first = await flora.generations.create(**ORDER, prompt="a mug & a spoon")
        second = await flora.generations.create(**ORDER, prompt="a lighthouse")
    _, document = await look(sandbox)
    shown = Read(document)
    assert [item["data-run"] for item in shown.all("li")] == [second.run_id, first.run_id]
    assert [item["data-types"] for item in shown.all("li")] == ["image", "image"]
    assert "a mug & a spoon" in shown.text
    assert sandbox.base_url in shown.text
    assert not any("GET" in asked for asked in sandbox.requests)


async def test_its_policy(sandbox: Sandbox) -> None:
    """Stands in the head and in the page; nobody frames it, keeps it, or takes it for another kind."""
    answer, document = await look(sandbox)
    (inside,) = [one["content"] for one in Read(document).all("meta") if one.get("http-equiv")]
    assert answer.headers["Content-Security-Policy"] == f"{inside}; frame-ancestors 'none'"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content_type == "text/html"


async def test_pages(sandbox: Sandbox) -> None:
    """A hundred runs on each, and a way to the next one; an address that cannot be is refused, not shown."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        for number in range(102):
            await flora.generations.create(**ORDER, prompt=f"number {number}")
    _, document = await look(sandbox)
    shown = Read(document)
    assert len(shown.all("li")) == 100
    assert "the newest 100 of 102" in shown.text
    (older,) = [link["href"] for link in shown.all("a") if "cursor" in (link["href"] or "")]
    assert older is not None
    _, document = await look(sandbox, older.removeprefix("/"))
    assert len(Read(document).all("li")) == 2
    answer, document = await look(sandbox, "?cursor=%22%3E%3Cscript%3E")
    assert answer.status == 400
    assert answer.content_type == "application/json"
