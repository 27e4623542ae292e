"""A FLORA that is not the sandbox: it says what a test has written for it, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import msgspec
from aiohttp import web

RawResponse = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]

RUN_ID = "run_abc123"


class Asked(msgspec.Struct, frozen=True):
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


def answer(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answer with JSON (or bytes as they are)."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)

    async def say(request: web.Request) -> web.Response:
        return web.Response(body=raw, status=status, headers={"request-id": "req_1", **(headers or {})})

    return say


def error(
    status: int, code: str = "some_code", headers: Mapping[str, str] | None = None, **more: object
) -> RawResponse:
    """Answer with FLORA's error envelope."""
    return answer({"error": {"code": code, "message": f"says {code}", **more}}, status, headers)


async def silence(request: web.Request) -> web.Response:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up(request: web.Request) -> web.Response:
    """Cut the connection without a word."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def started(run_id: str = RUN_ID, **more: object) -> dict[str, object]:
    """Give the answer to an accepted create."""
    return {"run_id": run_id, "type": "generation", "estimated_seconds": 0.1, "charged_cost": 0.04, **more}


def run(status: str = "completed", run_id: str = RUN_ID, **more: object) -> dict[str, object]:
    """Give a run as FLORA tells it."""
    finished = {"outputs": [{"output_id": "output_1", "type": "text", "url": "hello"}]} if status == "completed" else {}
    return {
        "run_id": run_id,
        "status": status,
        "progress": 100 if finished else 0,
        "created_at": 1.0,
        **finished,
        **more,
    }


def generation(run_id: str, **more: object) -> dict[str, object]:
    """Give an item of the history."""
    return {**run(run_id=run_id), "generation_id": run_id, "project_id": "prj_1", "workspace_id": "ws_1", **more}


def page(*run_ids: str, cursor: str | None = None) -> RawResponse:
    """Answer with a page of the history."""
    return answer({"generations": [generation(run_id) for run_id in run_ids], "meta": {"next_cursor": cursor}})


def row(run_id: str = RUN_ID, *, age: float = 0.0, **more: object) -> dict[str, object]:
    """Give an item of the history that was begun so many seconds ago."""
    return generation(run_id, **{"status": "pending", "created_at": time.time() - age, **more})


def history(*rows: dict[str, object]) -> RawResponse:
    """Answer with this history, on one page."""
    return answer({"generations": list(rows), "meta": {"next_cursor": None}})


DUPLICATE = error(409, "idempotency_duplicate")
"""FLORA knows the idempotency key already."""


class Scripted:
    """The server: for each method and path a list of answers, of which the last one is repeated."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.base_url = ""
        self._script: dict[tuple[str, str], list[RawResponse]] = {}
        self._runner: web.AppRunner | None = None

    def on(self, method: str, path: str, *answers: RawResponse) -> Self:
        """Write the answers to one method and path below the base URL."""
        self._script[method, path] = list(answers)
        return self

    def count(self, method: str, path: str) -> int:
        """Say how often something was asked."""
        return sum(asked.method == method and asked.path == path for asked in self.asked)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/api/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0].removeprefix("/api/v1")
        self.asked.append(
            Asked(request.method, path, dict(request.query), request.headers.copy(), await request.read())
        )
        answers = self._script.get((request.method, path))
        if not answers:
            say: RawResponse = error(404, "not_found")
        else:
            say = answers.pop(0) if len(answers) > 1 else answers[0]
        return say if isinstance(say, web.StreamResponse) else await say(request)


def tasks_of_ours() -> set[asyncio.Task[object]]:
    """Give the tasks of this loop, but for those that serve the scripted FLORA's connections."""
    return {task for task in asyncio.all_tasks() if "RequestHandler" not in repr(task.get_coro())}
