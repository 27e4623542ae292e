"""The contestants: each creates runs, awaits them and saves their outputs, as its own users would write it."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.endtoend.server import Workspace
from flora_async import Flora, Order, Outcome, Outcomes

Contestant = Callable[[Workspace, int, Path], Awaitable[None]]
SAVERS = 16
"""Tasks that save outputs at the same time."""


async def flora(workspace: Workspace, count: int, folder: Path) -> None:
    """Run flora-async as its guide shows it, all defaults: each output is saved inside the loop."""
    async with _connect(workspace) as client:
        async for outcome in client.generate_many(_orders(workspace, count)):
            await _save(workspace, client, outcome, folder)


async def flora_wide(workspace: Workspace, count: int, folder: Path) -> None:
    """Run flora-async with all orders open at once, as ``asyncio.gather`` has them, and several tasks that save."""

    async def save(outcomes: Outcomes[Order]) -> None:
        async for outcome in outcomes:
            await _save(workspace, client, outcome, folder)

    async with _connect(workspace) as client, asyncio.TaskGroup() as group:
        outcomes = client.generate_many(_orders(workspace, count), concurrency=count)
        for _ in range(min(count, SAVERS)):
            group.create_task(save(outcomes))


def _connect(workspace: Workspace) -> Flora:
    return Flora("sk_live_bench", base_url=f"{workspace.origin}/await/flora")


def _orders(workspace: Workspace, count: int) -> list[Order]:
    kind: Any = workspace.kind
    return [
        Order(type=kind, prompt=f"a mug, number {number}", workspace_id="ws_bench", project_id="prj_bench")
        for number in range(count)
    ]


async def _save(workspace: Workspace, client: Flora, outcome: Outcome[Order], folder: Path) -> None:
    if outcome.run is None:
        workspace.failures[type(outcome.error).__name__] += 1
        return
    (path,) = await client.download(outcome.run, folder)
    _on_saved(workspace, int(outcome.run.run_id.removeprefix("run_")), path)


def _on_saved(workspace: Workspace, number: int, path: Path) -> None:
    workspace.saved[number] = asyncio.get_running_loop().time()
    assert path.stat().st_size == len(workspace.output), path
    path.unlink()  # 10,000 videos are 2 GB


# -- other clients: asyncio.gather over their own waiters, and their outputs by aiohttp

Find = Callable[[Workspace, Any], str]
"""Returns the URL of an output from what a client returned for the run."""


def _openai_output(workspace: Workspace, video: Any) -> str:
    """Return a URL without a limit: openai's own ``download_content`` asks the API."""
    number = int(video.id.removeprefix("run_"))
    return workspace.runs.url(number)


def gathered(client: str, find: Find) -> Contestant:
    """Return a contestant of a client in ``benchmarks/clients``."""
    module = importlib.import_module(f"benchmarks.clients.{client}")

    async def contestant(workspace: Workspace, count: int, folder: Path) -> None:

        async def one(number: int) -> None:
            try:
                url = find(workspace, await connected.await_run(number))
            except Exception as error:  # noqa: BLE001 - counted, whatever a client raises
                workspace.failures[type(error).__name__] += 1
                return
            async with session.get(url) as response:
                response.raise_for_status()
                body = await response.read()
            path = folder / url.rpartition("/")[2]
            await asyncio.to_thread(path.write_bytes, body)
            _on_saved(workspace, int(path.stem), path)

        base_url = f"{workspace.origin}/await/{module.API}"
        async with module.connect(base_url) as connected, aiohttp.ClientSession() as session:
            await asyncio.gather(*(one(number) for number in range(count)))

    return contestant


OURS: dict[str, Contestant] = {"flora-async": flora_wide, "flora-async, defaults": flora}
PEERS: dict[str, tuple[str, Find]] = {
    "openai": ("openai_client", _openai_output),
    "runwayml": ("runwayml_client", lambda _, task: task.output[0]),
    "elevenlabs": ("elevenlabs_client", lambda _, generation: generation.content_url),
    "fal": ("fal", lambda _, result: result["images"][0]["url"]),
    "replicate": ("replicate_client", lambda _, output: str(output)),
}
"""Module and output of each peer, by its name."""


def load(name: str) -> Contestant:
    """Return a contestant by its name. Raises ImportError if its package is not installed."""
    return OURS[name] if name in OURS else gathered(*PEERS[name])
