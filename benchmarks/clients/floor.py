"""The floor: aiohttp and msgspec by hand, without a retry, a check or a deadline of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec

IMPORTS = "aiohttp"


class Output(msgspec.Struct):
    output_id: str
    type: str
    url: str


class Model(msgspec.Struct):
    model_id: str | None = None


class Run(msgspec.Struct):
    run_id: str
    status: str
    progress: float
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    charged_cost: float | None = None
    outputs: list[Output] | None = None
    error_code: str | None = None
    error_message: str | None = None
    poll_url: str | None = None


class Generation(Run, kw_only=True):
    generation_id: str
    project_id: str
    workspace_id: str
    model: Model | None = None


class Meta(msgspec.Struct):
    next_cursor: str | None = None
    total_estimate: float | None = None


class Page(msgspec.Struct):
    generations: list[Generation]
    meta: Meta


class StartedRun(msgspec.Struct):
    run_id: str
    type: str
    charged_cost: float
    estimated_seconds: float | None = None
    poll_url: str | None = None
    project_id: str | None = None
    model: Model | None = None


_run = msgspec.json.Decoder(Run)
_page = msgspec.json.Decoder(Page)
_started = msgspec.json.Decoder(StartedRun)
decode_page = _page.decode


class Contestant:
    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._base_url = base_url
        self._session = session

    async def retrieve(self, run_id: str) -> Run:
        async with self._session.get(f"{self._base_url}/runs/{run_id}") as response:
            return _run.decode(await response.read())

    async def create(self, prompt: str) -> str:
        order = {"type": "image", "prompt": prompt, "workspace_id": "ws_bench", "project_id": "prj_bench"}
        async with self._session.post(f"{self._base_url}/generate", data=msgspec.json.encode(order)) as response:
            return _started.decode(await response.read()).run_id

    async def page(self, cursor: str | None) -> Page:
        query = {"limit": "100", "cursor": cursor} if cursor else {"limit": "100"}
        async with self._session.get(f"{self._base_url}/generations", params=query) as response:
            return _page.decode(await response.read())

    async def history(self) -> int:
        items = 0
        cursor: str | None = ""
        while cursor is not None:
            page = await self.page(cursor)
            for _ in page.generations:
                items += 1
            cursor = page.meta.next_cursor
        return items


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    headers = {"Authorization": "Bearer sk_live_bench", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield Contestant(base_url, session)
